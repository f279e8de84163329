"""What a ComfyUI picture was made with, as far as its graph of nodes tells.

The chunk `prompt` holds the graph that ran: {id: {class_type, inputs}}, an input being a value or
[id, slot] of the node it comes from. The chunk `workflow` holds the editor's graph, whose nodes
keep their values in a list without names. Any node can be anything: this finds the sampler, walks
from it towards where its inputs come from, and takes the nearest value of each name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdlora.prompt.programs import file_stem
from sdlora.prompt.recalled import Recalled, with_loras
from sdlora.prompt.scanner import number

_Inputs = Mapping[str, Any]
_FIELDS = {
    "Steps": ("steps",),
    "Sampler": ("sampler_name",),
    "Schedule type": ("scheduler",),
    "CFG scale": ("cfg",),
    "Seed": ("seed", "noise_seed"),
    "Model": ("ckpt_name", "unet_name"),
    "VAE": ("vae_name",),
}
_TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string")
_SILENCED = "ConditioningZeroOut"  # what comes into it does not count
_JOINTS = {"ConditioningConcat": " BREAK ", "ConditioningCombine": " AND "}
# The names of the editor's nameless values, in their order; "" is one that no run sees.
_WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "CLIPTextEncode": ("text",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
}


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: _Inputs


class _Graph:
    def __init__(self, nodes: Mapping[str, _Node]) -> None:
        self.nodes = nodes

    def source(self, value: Any) -> _Node | None:
        """The node that a value comes from; None for a plain value."""
        linked = isinstance(value, list) and len(value) == 2
        return self.nodes.get(str(value[0])) if linked else None

    def upstream(self, start: _Node) -> Iterator[_Node]:
        """A node, then those it draws from, the nearest first, each once."""
        seen, waiting = {id(start)}, [start]
        for node in waiting:
            yield node
            for value in node.inputs.values():
                source = self.source(value)
                if source and id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)

    def value(self, start: _Node, *names: str) -> str:
        """The nearest value of one of the names; through a node that only holds a value too."""
        for node in self.upstream(start):
            for name in names:
                value = node.inputs.get(name)
                if source := self.source(value):
                    value = source.inputs.get("value", source.inputs.get(name))
                if isinstance(value, str | int | float):
                    return str(value)
        return ""

    def text(self, start: _Node, side: str) -> str:
        """The texts that a conditioning is made of. A node with both sides is left by its own."""
        found: dict[str, None] = {}
        joint = ", "
        seen, waiting = {id(start)}, [start]
        for node in waiting:
            if node.kind == _SILENCED:
                continue
            joint = _JOINTS.get(node.kind, joint)
            inputs = {side: node.inputs[side]} if side in node.inputs else node.inputs
            for name, value in inputs.items():
                if isinstance(value, str) and name in (*_TEXTS, side) and value.strip():
                    found[value] = None
                source = self.source(value)
                if source and name not in ("clip", "model", "vae") and id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)
        return joint.join(found)

    def loras(self, start: _Node) -> list[tuple[str, float, float]]:
        """The LoRAs between the model and the sampler, the first applied first."""
        found = [lora for node in self.upstream(start) for lora in _loras_of(node)]
        return found[::-1]


def read_comfyui(record: Mapping[str, Any]) -> Recalled | None:
    """What a graph says, either kind; None when the JSON is no graph or has no sampler."""
    nodes = _ran(record) or _drawn(record)
    samplers = [node for node in nodes.values() if _samples(node)]
    if not samplers:
        return None
    graph = _Graph(nodes)
    first = max(samplers, key=_denoise)  # a second pass denoises less
    fields = {name: graph.value(first, *places) for name, places in _FIELDS.items()}
    fields["Model"] = file_stem(fields["Model"]) if fields["Model"] else ""
    fields["Size"] = _size(graph, first)
    denoise = graph.value(first, "denoise")
    fields["Denoising strength"] = denoise if _weight(denoise) < 1 else ""
    last_layer = graph.value(first, "stop_at_clip_layer")
    fields["Clip skip"] = last_layer.removeprefix("-") if last_layer.startswith("-") else ""
    guide = graph.source(first.inputs.get("guider")) or first
    positive = graph.source(guide.inputs.get("positive", guide.inputs.get("conditioning")))
    negative = graph.source(guide.inputs.get("negative"))
    prompt = graph.text(positive, "positive") if positive else ""
    return Recalled(
        with_loras(prompt, graph.loras(guide))[0],
        graph.text(negative, "negative") if negative else "",
        {name: value for name, value in fields.items() if value},
        "ComfyUI",
    )


def _ran(record: Mapping[str, Any]) -> dict[str, _Node]:
    """The nodes of a graph that ran."""
    return {
        str(number): _Node(str(node["class_type"]), node["inputs"])
        for number, node in record.items()
        if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
    }


def _drawn(record: Mapping[str, Any]) -> dict[str, _Node]:
    """The nodes of an editor's graph, with names for the values of those that are known."""
    listed, links = record.get("nodes"), record.get("links")
    if not isinstance(listed, list) or not isinstance(links, list):
        return {}
    # a link is [number, from node, from slot, to node, to slot, type]
    sources = {str(link[0]): link[1:3] for link in links if isinstance(link, list) and link[2:]}
    nodes: dict[str, _Node] = {}
    for node in listed:
        if not isinstance(node, dict):
            continue
        values, slots = node.get("widgets_values"), node.get("inputs")
        kind = str(node.get("type"))
        names = _WIDGETS.get(kind, ("value",))
        inputs = dict(zip(names, values, strict=False)) if isinstance(values, list) else {}
        for slot in slots if isinstance(slots, list) else ():
            if isinstance(slot, dict) and str(slot.get("link")) in sources:
                inputs[str(slot.get("name"))] = sources[str(slot["link"])]
        nodes[str(node.get("id"))] = _Node(kind, inputs)
    return nodes


def _samples(node: _Node) -> bool:
    names = node.inputs.keys()
    return {"positive", "negative", "latent_image"} <= names or {"guider", "sampler"} <= names


def _denoise(node: _Node) -> float:
    return _weight(node.inputs.get("denoise"))


def _size(graph: _Graph, start: _Node) -> str:
    for node in graph.upstream(start):
        if "Latent" in node.kind and {"width", "height"} <= node.inputs.keys():
            return f"{graph.value(node, 'width')}x{graph.value(node, 'height')}"
    return ""


def _loras_of(node: _Node) -> Iterator[tuple[str, float, float]]:
    """A loader's LoRA, or those of a stack such as rgthree's, its last one first."""
    name, unet = node.inputs.get("lora_name"), _weight(node.inputs.get("strength_model"))
    if isinstance(name, str) and name != "None":
        has_own = "strength_clip" in node.inputs
        # without one of its own the text encoder is left alone
        yield file_stem(name), unet, _weight(node.inputs["strength_clip"]) if has_own else 0.0
    for row in reversed(list(node.inputs.values())):
        if isinstance(row, dict) and isinstance(row.get("lora"), str) and row.get("on", True):
            strength = _weight(row.get("strength"))
            yield file_stem(row["lora"]), strength, strength


def _weight(value: Any) -> float:
    found = number(str(value))
    return 1.0 if found is None else found
