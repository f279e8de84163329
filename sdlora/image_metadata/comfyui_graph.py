"""ComfyUI's node graphs, in both formats that pictures hold, and resolution of their values.

The chunk `prompt` holds the graph that ran: {id: {class_type, inputs}}, an input being a value or
[id, slot] of the node it comes from. The chunk `workflow` holds the editor's graph, whose nodes
have their values in a list without names, and may be muted or bypassed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdlora.messages import Message

_LONGEST_CHAIN = 64  # nodes that only pass a value on
_MOST_PROBLEMS = 50
# Names of the input of a node that only holds a value
_HOLDS = ("value", "Value", "number", "Number", "float", "int", "string", "text", "Text", "seed")
# Names of the editor's widget values, in their order; "" is one that is not sent to a run
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
    "ControlNetLoader": ("control_net_name",),
    "HypernetworkLoader": ("hypernetwork_name", "strength"),
}
_MUTED, _BYPASSED = 2, 4  # LiteGraph's modes of a node


@dataclass(frozen=True, eq=False)
class Node:
    """A node: its class and its inputs by name."""

    kind: str
    inputs: Mapping[str, Any]


class Graph:
    """Nodes by id. `resolved` are those whose values have been read; `problems` are messages about
    values that could not be read."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.resolved: set[Node] = set()
        self.problems: list[Message] = []

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Graph:
        """Read a graph of either format; without nodes when the JSON is not a graph."""
        return cls(_ran(record) or _drawn(record))

    def source(self, value: Any) -> Node | None:
        """Return the node that a value comes from; None for a plain value."""
        linked = isinstance(value, list) and len(value) == 2
        return self.nodes.get(str(value[0])) if linked and not isinstance(value[0], list) else None

    def sources(self, node: Node) -> Iterator[Node]:
        """Yield the nodes linked to a node's inputs, in the order of the inputs."""
        for value in node.inputs.values():
            if source := self.source(value):
                yield source

    def upstream(self, *starts: Node) -> list[Node]:
        """Yield `starts` and all nodes upstream of them, breadth first, each once."""
        reached = dict.fromkeys(starts)
        waiting = list(reached)
        for node in waiting:
            new = [source for source in self.sources(node) if source not in reached]
            reached |= dict.fromkeys(new)
            waiting += dict.fromkeys(new)
        return waiting

    def downstream(self, *starts: Node) -> list[Node]:
        """Yield the nodes downstream of some nodes, directly or through others."""
        users: dict[Node, list[Node]] = {}
        for node in self.nodes.values():
            for source in self.sources(node):
                users.setdefault(source, []).append(node)
        reached: dict[Node, None] = {}
        waiting = list(starts)
        for node in waiting:
            new = [user for user in users.get(node, ()) if user not in reached]
            reached |= dict.fromkeys(new)
            waiting += dict.fromkeys(new)
        return list(reached)

    def plain(self, value: Any, name: str) -> str | int | float | None:
        """Return the plain value of an input, through nodes that only hold one or pass it on."""
        passed: list[Node] = []
        for _ in range(_LONGEST_CHAIN):
            if isinstance(value, str | int | float):
                self.resolved.update(passed)
                return value
            node = self.source(value)
            if node is None:
                return None
            passed.append(node)
            value = _held(node, name)
        return None

    def value(self, start: Node, *names: str) -> str:
        """Return the nearest plain value upstream of an input with one of the names."""
        for node in self.upstream(start):
            for name in names:
                if node.inputs.get(name) is None:
                    continue
                value = self.plain(node.inputs[name], name)
                if value is None:
                    self.unresolved(node, name)
                return "" if value is None else str(value)
        return ""

    def unresolved(self, node: Node, name: str, instead: str = "") -> None:
        """Add a problem: an input's value could not be resolved."""
        source = self.source(node.inputs.get(name))
        text = "{name} of {node} "
        text += "comes from {source}, which is not known here" if source else "is not understood"
        text += "; {instead} is taken" if instead else ""
        shown = {"name": name[:40], "node": node.kind[:80], "instead": instead}
        self._tell(Message(text, **shown, source=source.kind[:80] if source else ""))

    def unreadable(self, node: Node, row: str) -> None:
        """Add a problem: a row of a node could not be read."""
        self._tell(
            Message("{row!r} of {node} is not understood", row=row[:80], node=node.kind[:80])
        )

    def _tell(self, message: Message) -> None:
        if message not in self.problems and len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(message)


def _held(node: Node, name: str) -> Any:
    """Return the value that a node passes on: its input of that name, else the usual name of
    value nodes, else its only input."""
    for key in (name, *_HOLDS):
        if node.inputs.get(key) is not None:
            return node.inputs[key]
    given = [value for value in node.inputs.values() if isinstance(value, str | int | float | list)]
    return given[0] if len(given) == 1 else None


def _ran(record: Mapping[str, Any]) -> dict[str, Node]:
    """Return the nodes of a `prompt` chunk's graph."""
    return {
        str(number): Node(str(node["class_type"]), node["inputs"])
        for number, node in record.items()
        if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
    }


def _drawn(record: Mapping[str, Any]) -> dict[str, Node]:
    """Return the nodes of a `workflow` chunk's graph; values of known nodes get names."""
    listed, links = record.get("nodes"), record.get("links")
    if not isinstance(listed, list) or not isinstance(links, list):
        return {}
    nodes = {str(node.get("id")): node for node in listed if isinstance(node, dict)}
    # a link is [number, from node, from slot, to node, to slot, type]
    origins = {str(link[0]): link[1:] for link in links if isinstance(link, list) and link[2:]}
    titles = _subgraph_names(record)
    return {
        number: Node(_title(node, titles), _inputs(node, nodes, origins))
        for number, node in nodes.items()
        if node.get("mode") not in (_MUTED, _BYPASSED)
    }


def _inputs(
    node: dict[str, Any], nodes: Mapping[str, dict[str, Any]], origins: Mapping[str, list[Any]]
) -> dict[str, Any]:
    values = node.get("widgets_values")
    names = _WIDGETS.get(str(node.get("type")), ("value",))
    inputs: dict[str, Any] = dict(values) if isinstance(values, dict) else {}
    for place, value in enumerate(values if isinstance(values, list) else ()):
        inputs[names[place] if place < len(names) else f"widget_{place}"] = _unlinked(value)
    for slot in _slots(node):
        origin = _origin(str(slot.get("link")), nodes, origins)
        if origin:
            inputs[str(slot.get("name"))] = origin[:2]
    return inputs


def _unlinked(value: Any) -> Any:
    """Wrap a list, since a list of two would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _origin(
    link: str, nodes: Mapping[str, dict[str, Any]], origins: Mapping[str, list[Any]]
) -> list[Any] | None:
    """Return the origin of a link; a bypassed node passes on its input of the same type."""
    for _ in range(_LONGEST_CHAIN):
        origin = origins.get(link)
        node = nodes.get(str(origin[0])) if origin else None
        if not origin or not node or node.get("mode") != _BYPASSED:
            return origin if node is None or node.get("mode") != _MUTED else None
        kind = str(origin[4]) if len(origin) > 4 else ""
        same = [str(s.get("link")) for s in _slots(node) if _type_of(s, origins) == kind]
        if not same:
            return None
        link = same[0]
    return None


def _type_of(slot: Mapping[str, Any], origins: Mapping[str, list[Any]]) -> str:
    origin = origins.get(str(slot.get("link")), [])
    return str(origin[4]) if len(origin) > 4 else str(slot.get("type"))


def _slots(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    slots = node.get("inputs")
    return [slot for slot in slots if isinstance(slot, dict)] if isinstance(slots, list) else []


def _subgraph_names(record: Mapping[str, Any]) -> dict[str, str]:
    definitions = record.get("definitions")
    rows = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    rows = rows if isinstance(rows, list) else []
    return {str(row.get("id")): str(row.get("name")) for row in rows if isinstance(row, dict)}


def _title(node: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    kind = str(node.get("type"))
    return f"subgraph {titles[kind]}" if kind in titles else kind


def counted(kinds: Iterable[str]) -> list[str]:
    """Return the names, each once, with its count where it occurs several times."""
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind[:80]] = counts.get(kind[:80], 0) + 1
    return [kind if count == 1 else f"{count} times {kind}" for kind, count in counts.items()]
