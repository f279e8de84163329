"""Messages of refused LoRA files, by a short code that does not change."""

from __future__ import annotations

from sdlora.errors import LoraFileError

# Of a file that is refused by its ending alone
PICKLE = (
    "{file} may hold code and is not read; look for it as .safetensors, or convert it with "
    "Python: import torch, safetensors.torch as st; "
    "st.save_file(torch.load({file!r}, weights_only=True), {made!r})"
)
REFUSALS: dict[str, str] = {
    # the file
    "unreadable": "{file} cannot be read: {why}",
    "not_safetensors": "{file} is not a safetensors file, or it is cut short; download it again",
    "damaged_header": "the header of {file} is damaged: {why}; download it again",
    "tensor_count": "{file} holds {count} tensors; a LoRA has 1 to {limit}",
    "damaged_entry": "{file}: the entry of tensor {key!r:.82} is damaged; download it again",
    "not_numbers": "{file}: tensor {key!r:.82} is {dtype!r:.20}, not floating numbers",
    "impossible_shape": "{file}: tensor {key!r:.82} has the impossible shape {shape!r:.40}",
    "overlap": "{file} is damaged: its tensors overlap or leave a hole; download it again",
    "cut_short": "{file} is cut short or has bytes after its end; download it again",
    # its names
    "unknown_keys": (
        "this is not a LoRA for Stable Diffusion or FLUX: {count} of its {of} keys are unknown, "
        "such as {key!r:.82}"
    ),
    "unknown_kind": "this file holds {kind}, which cannot be used (it has {key!r:.82})",
    "no_layers": "this file holds no layer that changes a model, only {count} embeddings",
    "stands_twice": "layer {layer!r:.82} occurs twice, also as {key!r:.82}",
    # its layers
    "incomplete": "layer {layer!r:.82} lacks its {role} tensor; the file is incomplete",
    "mixed": "layer {layer!r:.82} is a {kind} that also has {role}, which do not go together",
    "unfit_tensors": "layer {layer!r:.82} has tensors that do not fit together: {shapes}",
    "rank": "layer {layer!r:.82} has rank {rank}; its {shape} weight holds 1 to {limit}",
    "embedding": "embedding {name!r:.82} has the shape {shape}; it must be vectors by width",
    "not_finite": "{name!r:.82} holds numbers that are not finite; the training broke down",
    # its place in a model
    "other_base": "it is a LoRA for {theirs}; the open model is {ours}",
    "other_model": "its layers do not fit the open model, {ours}; it was trained on another one",
    "stacked": (
        "a {kind} layer of this file stands for several layers of the model, stacked, and cannot "
        "be taken apart; LoRA, DoRA, LoHa and full ones can"
    ),
    "quantised": "{layer} is quantised; of such layers only linear ones can be changed",
    "overflow": "the weights are too high: the sum overflows; lower them",
    "unmatched": "{count} of its {of} layers are not in the open model, such as {layer!r:.82}",
}


def refusal(code: str, **facts: object) -> LoraFileError:
    """Return the error with the template of `code`, filled with `facts`."""
    return LoraFileError(REFUSALS[code], code, **facts)
