"""Adapter types as choices of a training: the settings that go with each, and kohya's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sdlora.messages import Message, Setting

AdapterName = Literal["lora", "dora", "rslora", "pissa", "loha", "lokr", "oft"]
DoraAxis = Literal["input", "output"]


@dataclass(frozen=True, kw_only=True)
class AdapterChoice:
    """One adapter type that can be trained, as settings and other programs' files have it."""

    has_up_matrix: bool = False  # the change is up · down: LoRA+ has a matrix to train faster
    has_dora_axis: bool = False
    unsupported: tuple[str, ...] = ()  # settings that must be 0
    why_unsupported: Message = field(default_factory=lambda: Message(""))
    # values of records that are older than the setting
    before: Mapping[str, str] = field(default_factory=dict)
    rank_factor: int = 1  # rank in the file per rank in training
    lycoris_algorithm: str = ""  # LyCORIS' `algo`; empty: sd-scripts' own network module
    kohya_module: str = "networks.lora"  # sd-scripts' module that comes nearest


ADAPTER_CHOICES: dict[str, AdapterChoice] = {
    "lora": AdapterChoice(has_up_matrix=True),
    "dora": AdapterChoice(
        has_up_matrix=True,
        has_dora_axis=True,
        before={"dora_axis": "output"},
        lycoris_algorithm="lora",
    ),
    "rslora": AdapterChoice(has_up_matrix=True),
    # the file has what it began as beside what it became
    "pissa": AdapterChoice(
        has_up_matrix=True,
        unsupported=("max_norm",),
        why_unsupported=Message(
            "{setting} is not for pissa, whose matrices begin large: leave it at 0",
            setting=Setting("max_norm"),
        ),
        rank_factor=2,
    ),
    "loha": AdapterChoice(lycoris_algorithm="loha", kohya_module="networks.loha"),
    "lokr": AdapterChoice(lycoris_algorithm="lokr", kohya_module="networks.lokr"),
    "oft": AdapterChoice(
        unsupported=("dropout", "max_norm"),
        why_unsupported=Message(
            "oft turns weights and adds nothing: set {dropout} and {max_norm} to 0",
            dropout=Setting("dropout"),
            max_norm=Setting("max_norm"),
        ),
        lycoris_algorithm="diag-oft",
        kohya_module="networks.oft",
    ),
}
WITH_UP_MATRIX = tuple(name for name, row in ADAPTER_CHOICES.items() if row.has_up_matrix)
