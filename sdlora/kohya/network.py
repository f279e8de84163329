"""The adapter that kohya's `network_module` and `network_args` describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdlora.kohya.values import flag, number, whole, word_list
from sdlora.messages import Message

LINEAR = ("attention", "feed_forward")  # targets of sd-scripts' LoRA: Transformer2DModel, linear
ALL = (*LINEAR, "conv")
# LyCORIS' algorithms (docs/Network-Args.md) and ours
ALGORITHMS = {
    "lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "diag-oft": "oft",
    "oft": "oft",
}  # fmt: skip
_FALSE = "false"


@dataclass(frozen=True)
class Module:
    """A network module: the adapter it trains, a flag for convolutions adapted by default, and a
    flag for modules whose `algo` selects the adapter."""

    adapter: str = "lora"
    with_conv: bool = False
    has_algorithms: bool = False


MODULES = {
    "networks.lora": Module(),
    "networks.lora_fa": Module(),
    "networks.dylora": Module(),
    "networks.loha": Module("loha"),
    "networks.lokr": Module("lokr"),
    "networks.oft": Module("oft"),
    "lycoris.kohya": Module(with_conv=True, has_algorithms=True),
}
_DIFFERENT = {
    "networks.lora_fa": "both of its matrices learn here, as in networks.lora",
    "networks.dylora": "it is one LoRA of its full rank, as in networks.lora",
}
# LyCORIS' presets (lycoris/config.py), as far as their layers have groups here
PRESETS = {
    "full": ALL, "full-lin": LINEAR, "attn-mlp": LINEAR, "attn-only": ("attention",),
    "unet-transformer-only": LINEAR,
}  # fmt: skip
# Arguments of LyCORIS that ask for what is so here anyway
_NOTHING_TO_DO = {
    "use_tucker": (_FALSE,), "use_cp": (_FALSE,),
    "use_scalar": (_FALSE,), "rank_dropout_scale": (_FALSE,), "decompose_both": (_FALSE,),
    "train_norm": (_FALSE,), "bypass_mode": (_FALSE, "none"), "rank_dropout": ("0", "0.0"),
    "module_dropout": ("0", "0.0"), "constraint": ("0", "0.0"), "rescaled": (_FALSE,),
    "wd_on_output": (_FALSE,), "full_matrix": (_FALSE,), "unbalanced_factorization": (_FALSE,),
}  # fmt: skip


def read_network(flat: dict[str, Any], values: dict[str, Any]) -> list[Message]:
    """Add adapter, targets and their ranks to `values`; return notes on arguments not followed."""
    name = str(flat.get("network_module") or "networks.lora")
    module, notes = MODULES.get(name), list[Message]()
    if module is None:
        notes.append(
            Message("network_module = {name!r} is not known here: it is a LoRA", name=name)
        )
    elif name in _DIFFERENT:
        notes.append(Message("network_module = {name!r}: {how}", name=name, how=_DIFFERENT[name]))
    arguments, faulty = _arguments(flat.get("network_args"))
    network = _Network(module or Module(), arguments, values)
    return [*notes, *faulty, *network.read()]


def _arguments(given: Any) -> tuple[dict[str, str], list[Message]]:
    try:
        pairs = word_list(given or [])
    except (ValueError, TypeError):
        return {}, [Message("network_args = {given} is no list of words and not used", given=given)]
    table = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        table[key.strip()] = value.strip().strip("\"'")
    return table, []


class _Network:
    """The arguments of one module, each read once; the rest is named."""

    def __init__(self, module: Module, arguments: dict[str, str], values: dict[str, Any]) -> None:
        self.module, self.arguments, self.values = module, arguments, values
        self.notes: list[Message] = []

    def read(self) -> list[Message]:
        """Write adapter and targets into the values; return notes on arguments not used."""
        values, module = self.values, self.module
        values["adapter"] = self._algorithm() if module.has_algorithms else module.adapter
        dora = self._take("dora_wd", flag, False)
        if dora and values["adapter"] == "lora":
            values["adapter"] = "dora"
            by_output = self._take("wd_on_output", flag, True)  # LyCORIS 4's default
            values["dora_axis"] = "output" if by_output else "input"
        elif dora:
            self._unused("dora_wd", "the weight is decomposed for LoRA alone")
        if self._take("rs_lora", flag, False) and values["adapter"] == "lora":
            values["adapter"] = "rslora"
        self._convolutions()
        factor = self._take("factor", whole, -1)
        if factor > 1:
            values["lokr_factor"] = factor
        for name in ("loraplus_unet_lr_ratio", "loraplus_lr_ratio"):
            if ratio := self._take(name, number, 0.0):
                values["lora_plus_ratio"] = ratio
        if dropout := self._take("dropout", number, 0.0):
            values["dropout"] = dropout
        for name, value in self.arguments.items():
            if value.lower() not in (*_NOTHING_TO_DO.get(name, ()), ""):
                self._unused(name, "it is not known here", value)
        return self.notes

    def _algorithm(self) -> str:
        name = self.arguments.pop("algo", "lora").lower()
        if name not in ALGORITHMS:
            self._unused("algo", "it is a LoRA", name)
        return ALGORITHMS.get(name, "lora")

    def _convolutions(self) -> None:
        """Targets, and rank and alpha of convolutions: sd-scripts adapts them when `conv_dim` is
        there, with alpha 1 unless said; LyCORIS always, as the rest unless said."""
        values, always = self.values, self.module.with_conv
        rank = self._take("conv_dim", whole, values["rank"] if always else 0)
        alpha = self._take("conv_alpha", number, values["alpha"] if always else 1.0)
        targets = self._preset() if always else (ALL if rank > 0 else LINEAR)
        values["targets"] = [target for target in targets if target != "conv" or rank > 0]
        if "conv" not in values["targets"]:
            return
        values["conv_rank"] = rank
        values["group_alpha"] = [f"conv={alpha or rank:g}"]

    def _preset(self) -> tuple[str, ...]:
        name = self.arguments.pop("preset", "full")
        if name.lower() not in PRESETS:
            self._unused("preset", "all layers are adapted", name)
        return PRESETS.get(name.lower(), ALL)

    def _take(self, name: str, read: Callable[[Any], Any], missing: Any) -> Any:
        given = self.arguments.pop(name, "")
        if given.lower() in ("", "none"):
            return missing
        try:
            return read(given)
        except (ValueError, TypeError):
            self._unused(name, "it cannot be read", given)
            return missing

    def _unused(self, name: str, why: str, value: str = "") -> None:
        argument = f"{name}={value}" if value else name
        self.notes.append(
            Message("network_args {argument!r} is not used: {why}", argument=argument, why=why)
        )
