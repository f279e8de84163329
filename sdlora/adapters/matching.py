"""Match the layers of a LoRA file to modules of an open family; refuse files of other models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sdlora.architectures import FAMILIES
from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import refusal
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.models.base import ModelFamily

ParameterPath = tuple[str, str, str]  # part of the family, path of a module in it, its parameter
WordEmbeddings = Mapping[
    str, Mapping[str, Tensor]
]  # word -> text encoder -> (n,width): n tokens' vectors

# A file fits though some of its layers are not in the model, up to so many or such a share of them
STRAY_LAYERS, STRAY_SHARE = 12, 1 / 10


@dataclass(frozen=True)
class LoraMatch:
    """A LoRA matched to a family: adapters by parameter, embeddings, layers without a module."""

    places: Mapping[ParameterPath, Adapter]
    unmatched: tuple[str, ...]
    embeddings: WordEmbeddings = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """Modules that it changes."""
        return len({(part, path) for part, path, _ in self.places})


def match_layers(file: LoraFile, family: ModelFamily, strict: bool = False) -> LoraMatch:
    """Return the parameters of `family` that the layers of `file` change.

    LoraFileError, naming both bases, when it was made for another model: a layer of another shape,
    or more strays than a file that fits may have; when `strict`, any stray.
    """
    places: dict[ParameterPath, Adapter] = {}
    unmatched: list[str] = []
    for name, adapter in file.layers.items():
        slots = family.vocabulary.get(name, ())
        if not slots:
            unmatched.append(name)
        for slot in slots:
            share = _on_device(adapter.rows(*slot.rows) if slot.rows else adapter, family.device)
            module = family.adaptable_layers[slot.part][slot.path]
            for parameter in share.parameters:
                if not _can_change(share, module, parameter):
                    raise _wrong_model(file, family)
                if (slot.part, slot.path, parameter) in places:
                    raise refusal("stands_twice", layer=name, key=slot.path)
                places[slot.part, slot.path, parameter] = share
    _check_strays(file, family, unmatched, strict)
    embeddings, unused = _match_embeddings(file, family)
    return LoraMatch(places, (*unmatched, *unused), embeddings)


def weight_shape(module: Any) -> tuple[int, ...]:
    """Of the weight that a module multiplies with: a quantised one may store another."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return tuple(module.weight.shape)


def _on_device(adapter: Adapter, device: torch.device) -> Adapter:
    """Return the adapter with matrices on the device; single numbers stay, for reading them there
    has to wait for it."""
    if device.type == "cpu":
        return adapter
    moved = {role: t if t.numel() == 1 else t.to(device) for role, t in adapter.tensors.items()}
    return replace(adapter, tensors=moved)


def _can_change(adapter: Adapter, module: Any, parameter: str) -> bool:
    return getattr(module, parameter, None) is not None and adapter.fits(weight_shape(module))


def _check_strays(file: LoraFile, family: ModelFamily, strays: list[str], strict: bool) -> None:
    total, lost = len(file.layers), len(strays)
    if total and lost > min(total // 2, max(STRAY_LAYERS, total * STRAY_SHARE)):
        raise _wrong_model(file, family)
    if lost and strict:
        raise refusal("unmatched", count=lost, of=total, layer=strays[0])


def _wrong_model(file: LoraFile, family: ModelFamily) -> LoraFileError:
    theirs = FAMILIES.get(file.base)
    if theirs and theirs.name != family.name:
        return refusal("other_base", theirs=theirs.title, ours=family.title)
    return refusal("other_model", ours=family.title)


# The encoder that a bundled embedding is for -> the names of it in a family
_ENCODERS = {"": ("te",), "clip_l": ("te1", "te"), "clip_g": ("te2",)}


def _match_embeddings(file: LoraFile, family: ModelFamily) -> tuple[WordEmbeddings, list[str]]:
    """The textual inversions that the family's text encoders can take, and the names of others."""
    embeddings: dict[str, dict[str, Tensor]] = {}
    unused: list[str] = []
    for word, vectors in file.embeddings.items():
        encoders = {key: _encoder_for(family, key, value) for key, value in vectors.items()}
        if all(encoders.values()):
            embeddings[word] = {encoders[key]: value for key, value in vectors.items()}
        else:
            unused.append(f"bundle_emb.{word}")
    return embeddings, unused


def _encoder_for(family: ModelFamily, encoder: str, vectors: Tensor) -> str:
    """The family's name of the text encoder that such vectors are for; empty: it has none."""
    for part in _ENCODERS.get(encoder, ()):
        model = family.text_encoders.get(part)
        if model and model.get_input_embeddings().weight.shape[1:] == vectors.shape[1:]:
            return part
    return ""
