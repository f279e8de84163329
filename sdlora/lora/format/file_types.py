"""Endings of LoRA files: safetensors, which are read, and pickles, which are refused."""

READABLE = (".safetensors", ".sft")  # the same format
# can hold program code: listed, so that looking one up gives a message, but never opened
PICKLES = (".pt", ".ckpt", ".bin", ".pth")


def is_pickle(name: str) -> bool:
    """True if a file of that name is a pickle, which is never opened."""
    return name.lower().endswith(PICKLES)
