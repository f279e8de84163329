"""Endings of LoRA files: those that are read, and those that can hold program code."""

READABLE = (".safetensors", ".sft")  # the same format
# which can hold program code: listed, so that somebody who looks for one is told, never opened
PICKLES = (".pt", ".ckpt", ".bin", ".pth")


def is_pickle(name: str) -> bool:
    """Whether a file of that name is of a kind that is never opened."""
    return name.lower().endswith(PICKLES)
