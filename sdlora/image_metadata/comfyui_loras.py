"""LoRAs that ComfyUI's nodes apply, recognised by the names of a node's inputs.

LoraLoader                     lora_name, strength_model, strength_clip
CR LoRA Stack, LoRA Stacker    lora_name_1, model_weight_1 ..., switched or counted
Power Lora Loader (rgthree)    lora_1: {on, lora, strength, strengthTwo}
Lora Loader (LoraManager)      loras: [{name, strength, clipStrength, active}]
LoraTagLoader and others       text: '<lora:name:0.8>'
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdlora.image_metadata.comfyui_graph import Graph, Node
from sdlora.image_metadata.other_programs import file_stem
from sdlora.prompt.scanner import number
from sdlora.prompt.tags import parse_prompt

Lora = tuple[str, float, float]  # name, unet, text encoder
_Key = tuple[str, set[str]]
_Keys = Mapping[str, Sequence[_Key]]
_MOST_OF_A_NUMBER = 64
_WEIGHT_WORDS = {"strength", "weight", "wt", "str"}
_PARTS = {"clip": {"clip", "te"}, "model": {"model", "unet"}}
_OF_WEIGHTS = {*_WEIGHT_WORDS, "lora", "clip", "te", "model", "unet"}
_SWITCH_WORDS = {"switch", "toggle", "enabled", "on", "active"}
_OFF = (False, "off", "false", "disabled", "disable", "no")
_COUNTS = ("lora_count", "num_loras")
_READS_TAGS = re.compile(r"lora|wildcardencode|\APC", re.IGNORECASE)
_TAGGED = ("populated_text", "text", "prompt", "lora_syntax")


def loras_of(node: Node, graph: Graph) -> list[Lora]:
    """Return the LoRAs that a node applies or passes to one that does, in order."""
    keys = _by_number(node.inputs)
    if _is_off(node.inputs, keys.get("", ())):
        return []
    loras = [*_loras_in_inputs(node, graph, keys), *_loras_in_rows(node, graph)]
    return loras or [*_loras_in_text(node, graph)]


def _by_number(inputs: Mapping[str, Any]) -> _Keys:
    """Group inputs by the number in their names; of each the name and the words in it."""
    keys: dict[str, list[tuple[str, set[str]]]] = {}
    for key in inputs:
        group = keys.setdefault(_number_in_key(key), [])
        if len(group) < _MOST_OF_A_NUMBER:
            group.append((key, set(re.findall("[a-z]+", key.lower()))))
    return keys


def is_loader(node: Node, graph: Graph) -> bool:
    """True if a node is one whose LoRAs can be read, even if it has none now, or one that applies a
    stack made by other nodes."""
    rows = any(_lora_key(key) for key in node.inputs)
    rows = rows or any(isinstance(_row_name(row), str) for row in _object_rows(node))
    stack = {"model", "lora_stack"} <= node.inputs.keys()
    return rows or stack or bool([*_loras_in_text(node, graph)])


def _loras_in_inputs(node: Node, graph: Graph, keys: _Keys) -> Iterator[Lora]:
    """Yield LoRAs named by inputs, each with the weight inputs of the same number."""
    limits = [number(str(node.inputs.get(key))) for key in _COUNTS if key in node.inputs]
    limit = limits[0] if limits and limits[0] is not None else float("inf")
    weighted = any(name_words & _WEIGHT_WORDS for group in keys.values() for _, name_words in group)
    if not weighted and "model" not in node.inputs:
        return  # it only chooses a name for another node
    for index, group in keys.items():
        if index and (_is_off(node.inputs, group) or int(index) > limit):
            continue
        for key, name_words in group:
            value = node.inputs[key]
            if not _names_lora(name_words) or value is None or isinstance(value, dict):
                continue
            name = graph.plain(value, key)
            if not isinstance(name, str):
                graph.unresolved(node, key)
            elif name.strip() not in ("", "None", "none"):
                yield (file_stem(name), *_unet_and_text_weights(node, group, graph))


def _lora_key(key: str) -> bool:
    return _names_lora(set(re.findall("[a-z]+", key.lower())))


def _names_lora(name_words: set[str]) -> bool:
    return "lora" in name_words and name_words <= {"lora", "name", "file"}


def _number_in_key(key: str) -> str:
    return "".join(re.findall("[0-9]+", key)[:1])[:4]


def _is_off(inputs: Mapping[str, Any], group: Sequence[_Key]) -> bool:
    for key, name_words in group:
        if name_words & _SWITCH_WORDS and name_words <= _SWITCH_WORDS | {"lora"}:
            value = inputs[key]
            state = value.strip().lower() if isinstance(value, str) else value
            if isinstance(state, str | bool) and state in _OFF:
                return True
    return False


def _unet_and_text_weights(node: Node, group: Sequence[_Key], graph: Graph) -> tuple[float, float]:
    """Return (UNet, text encoder) weights. If only a weight for the model is given, the text
    encoder's is 0."""
    weights: dict[str, float] = {}
    for key, name_words in group:
        if name_words & _WEIGHT_WORDS and name_words <= _OF_WEIGHTS:
            part = next((part for part, signs in _PARTS.items() if name_words & signs), "both")
            weights[part] = _input_weight(node, key, graph)
    mode = str(node.inputs.get("input_mode", node.inputs.get("mode", "")))
    if "both" in weights and (mode == "simple" or "model" not in weights):
        both = weights["both"]
        return both, both if mode == "simple" else weights.get("clip", both)
    if not weights:
        return 1.0, 1.0
    return weights.get("model", 1.0), weights.get("clip", 0.0)


def _input_weight(node: Node, key: str, graph: Graph) -> float:
    weight = number(str(graph.plain(node.inputs[key], key)))
    if weight is None:
        graph.unresolved(node, key, "1")
    return 1.0 if weight is None else weight


def _loras_in_rows(node: Node, graph: Graph) -> Iterator[Lora]:
    """Yield LoRAs in rows that are JSON objects: rgthree's and LoraManager's."""
    for row in _object_rows(node):
        name = _row_name(row)
        is_on = row.get("on", row.get("active", True))
        if name is not None and not isinstance(name, str):
            graph.unreadable(node, str(row))
        elif name and name != "None" and is_on:
            unet = number(str(row.get("strength")))
            clip = number(str(row.get("strengthTwo", row.get("clipStrength"))))
            unet = 1.0 if unet is None else unet
            yield file_stem(name), unet, unet if clip is None else clip


def _row_name(row: Mapping[str, Any]) -> Any:
    return row.get("lora", row.get("name"))


def _object_rows(node: Node) -> Iterator[Mapping[str, Any]]:
    for key, value in node.inputs.items():
        inner = value.get("__value__", value) if isinstance(value, dict) else value
        is_list = isinstance(inner, list) and ("lora" in key.lower() or key.startswith("widget_"))
        for row in inner if is_list else [inner]:
            if isinstance(row, dict) and ("lora" in row or {"name", "strength"} <= row.keys()):
                yield row


def _loras_in_text(node: Node, graph: Graph) -> Iterator[Lora]:
    """Yield LoRA tags in the text of a node that reads tags; their first weight is the UNet's."""
    if not _READS_TAGS.search(node.kind) or [*_object_rows(node)]:
        return
    for key in _TAGGED:
        text = graph.plain(node.inputs.get(key), key)
        if isinstance(text, str):
            for tag in parse_prompt(text).loras:
                yield tag.name, tag.text_encoder, tag.unet
            return


def reads_tags(node: Node) -> bool:
    """True if a node's class applies the LoRA tags in its text."""
    return bool(_READS_TAGS.search(node.kind))
