"""Reader of a ComfyUI picture's node graph.

Nodes have any class. The reader finds the first sampler, walks upstream from it, and takes the
nearest value of each input's name. Every node that affects the picture and is not understood is
named in a problem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.comfyui_graph import Graph, Node, counted
from sdlora.image_metadata.comfyui_loras import Lora, is_loader, loras_of, reads_tags
from sdlora.image_metadata.other_programs import file_stem
from sdlora.messages import Message
from sdlora.prompt.scanner import number
from sdlora.prompt.tags import format_tag, parse_prompt

_FIELDS = {
    "Steps": ("steps",),
    "Sampler": ("sampler_name",),
    "Schedule type": ("scheduler",),
    "CFG scale": ("cfg",),
    "Seed": ("seed", "noise_seed"),
    "Model": ("ckpt_name", "unet_name"),
    "VAE": ("vae_name",),
}
_TEXTS = (
    *("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string"),
    *("populated_text", "string_a", "string_b", "text_a", "text_b", "text_c", "text_d"),
)
_SILENCED = "ConditioningZeroOut"  # what comes into it does not count
_JOINTS = {"ConditioningConcat": " BREAK ", "ConditioningCombine": " AND "}
_PLAIN_ENCODERS = (
    *("CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPTextEncodeFlux", "CLIPTextEncodeSD3"),
    "CLIPTextEncodeHunyuanDiT",
)
# What is read here, and what changes nothing that a picture shows.
_UNDERSTOOD = {
    *_PLAIN_ENCODERS, *_JOINTS, _SILENCED,
    *("KSampler", "KSamplerAdvanced", "KSampler (Efficient)", "SamplerCustom"),
    *("SamplerCustomAdvanced", "KSamplerSelect", "BasicScheduler", "BasicGuider", "CFGGuider"),
    *("RandomNoise", "CheckpointLoaderSimple", "CheckpointLoader", "UNETLoader", "VAELoader"),
    *("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "CLIPSetLastLayer", "Efficient Loader"),
    *("EmptyLatentImage", "EmptySD3LatentImage", "VAEDecode", "VAEDecodeTiled", "SaveImage"),
    *("PreviewImage", "Reroute", "Note", "MarkdownNote", "StringConcatenate", "PrimitiveNode"),
    *("LoadImage", "SaveImageWebsocket", "ShowText|pysssss"),
}  # fmt: skip
# What a node's class says of what it does, in the words of the field; the first that fits.
_FEATURES = (
    (r"refiner", "a refiner"),
    (r"inpaint|setlatentnoisemask|differentialdiffusion", "inpainting"),
    (r"control-?_?net|controllora|t2i-?adapter", "ControlNet"),
    (r"ip-?adapter", "IP-Adapter"),
    (r"gligen", "GLIGEN"),
    (r"hypernetwork", "a hypernetwork"),
    (r"unclip|stylemodel|redux|clipvision", "an image prompt"),
    (r"pulid|instantid|photomaker|reactor|faceid", "a face reference"),
    (r"detailer", "a detailer"),
    (r"upscale|imagescale", "upscaling"),
    (r"vaeencode", "a picture that it began from"),
    (r"setarea|setmask|regional|attentioncouple", "regions of the prompt"),
    (r"timesteprange|conditioningaverage|settimestep", "a prompt that changes over the steps"),
    (r"merge", "a merge of models"),
    (r"lora|lycoris", "a LoRA loader of another kind"),
)
_MODEL_FILE = re.compile(r"\.(?:safetensors|sft|ckpt|pth?|bin|gguf)\Z", re.IGNORECASE)
_SHORTENED, _MOST_NAMED = 80, 30  # letters, things in one sentence


def read_comfyui(record: Mapping[str, Any]) -> ImageMetadata | None:
    """Read a graph of either format; None when the JSON is no graph or has no sampler."""
    graph = Graph.from_json(record)
    samplers = [node for node in graph.nodes.values() if _is_sampler(node)]
    if not samplers:
        text = "ComfyUI's graph has no sampler that is known here; its nodes are {nodes}"
        kinds = counted(node.kind for node in graph.nodes.values())[:_MOST_NAMED]
        problem = Message(text, nodes=kinds)
        return ImageMetadata(program="ComfyUI", problems=(problem,)) if graph.nodes else None
    first = _first_sampler(samplers, graph)
    fields = _sampler_fields(graph, first)
    guide = graph.source(first.inputs.get("guider")) or first
    loras = [*_applied(graph, guide)]
    sides = (("positive", "conditioning"), ("negative",))
    texts: list[str] = []
    problems: list[Message] = []
    for side in sides:
        start = next(filter(None, (graph.source(guide.inputs.get(name)) for name in side)), None)
        text, encoders = _encoder_text(graph, start, side[0]) if start else ("", [])
        texts.append(_as_encoded(text, encoders, problems))
    tags = [format_tag(*lora) for lora in loras]
    problems += _part_of_steps(graph, first)
    problems += [*_repeated(loras), *graph.problems, *_unused(graph, first, guide)]
    return ImageMetadata(
        " ".join(filter(None, (texts[0], *tags))), texts[1], fields, "ComfyUI",
        problems=tuple(problems),
    )  # fmt: skip


def _applied(graph: Graph, guide: Node) -> Iterator[Lora]:
    """Yield the LoRAs upstream of a sampler in the order of the graph. One upstream of the model
    only gets the text encoder weight 0, one upstream of the texts only the UNet weight 0."""
    model, *texts = (
        graph.source(guide.inputs.get(name))
        for name in ("model", "positive", "negative", "conditioning")
    )
    of_model = set(graph.upstream(*filter(None, (model,))))
    of_texts = set(graph.upstream(*filter(None, texts)))
    for node in graph.upstream(guide)[::-1]:
        for name, unet, text_encoder in loras_of(node, graph):
            on_model = not model or node in of_model
            on_texts = not any(texts) or node in of_texts
            if on_model or on_texts:
                yield name, unet if on_model else 0.0, text_encoder if on_texts else 0.0


def _is_sampler(node: Node) -> bool:
    names = node.inputs.keys()
    return {"positive", "negative", "latent_image"} <= names or {"guider", "sampler"} <= names


def _first_sampler(samplers: list[Node], graph: Graph) -> Node:
    """Return the sampler without another one upstream; of several that with the most denoise."""
    later = set(graph.downstream(*samplers))
    firsts = [sampler for sampler in samplers if sampler not in later]
    return max(firsts or samplers, key=lambda node: _number_or_one(node.inputs.get("denoise")))


def _sampler_fields(graph: Graph, first: Node) -> dict[str, str]:
    fields = {name: graph.value(first, *places) for name, places in _FIELDS.items()}
    fields["Model"] = file_stem(fields["Model"]) if fields["Model"] else ""
    fields["Size"] = _image_size(graph, first)
    denoise = graph.value(first, "denoise")
    fields["Denoising strength"] = denoise if _number_or_one(denoise) < 1 else ""
    last_layer = graph.value(first, "stop_at_clip_layer", "clip_skip")
    fields["Clip skip"] = last_layer.removeprefix("-") if last_layer.startswith("-") else ""
    return {name: value for name, value in fields.items() if value not in ("", "Baked VAE")}


def _image_size(graph: Graph, start: Node) -> str:
    for node in graph.upstream(start):
        for sides in (("width", "height"), ("empty_latent_width", "empty_latent_height")):
            of_latents = "Latent" in node.kind or sides[0] != "width"
            if of_latents and node.inputs.keys() >= set(sides):
                return "x".join(graph.value(node, side) for side in sides)
    return ""


def _number_or_one(value: Any) -> float:
    weight = number(str(value))
    return 1.0 if weight is None else weight


def _encoder_text(graph: Graph, start: Node, side: str) -> tuple[str, list[Node]]:
    """Return (text, encoder nodes) of a conditioning. At a node with positive and negative inputs
    only `side` is followed."""
    texts: dict[str, None] = {}
    joint, encoders = ", ", list[Node]()
    reached, waiting = {start}, [start]
    for node in waiting:
        if node.kind == _SILENCED:
            continue
        joint = _JOINTS.get(node.kind, joint)
        encoders += [node] if "clip" in node.inputs else []
        inputs = {side: node.inputs[side]} if side in node.inputs else node.inputs
        speaks = "gligen" not in node.kind.lower()  # whose text is that of a box
        for name, value in inputs.items():
            if speaks and isinstance(value, str) and name in (*_TEXTS, side) and value.strip():
                texts[value] = None
            source = graph.source(value)
            if source and name not in ("clip", "model", "vae") and source not in reached:
                reached.add(source)
                waiting.append(source)
    return joint.join(texts), encoders


def _as_encoded(text: str, encoders: list[Node], problems: list[Message]) -> str:
    """Return a text as ComfyUI's encoders read it: without tags, which have no effect there or were
    applied by a node, and with brackets escaped where they are plain text."""
    tags = list(dict.fromkeys(tag.name for tag in parse_prompt(text).loras))
    reader = next((node for node in encoders if reads_tags(node)), None)
    if not tags and not encoders:
        return text
    if tags and reader is None:
        kind = encoders[0].kind if encoders else "the text's node"
        why = "the LoRAs are those of the loaders"
        message = "the LoRA tags in the text ({tags}) are left out: {node} does not read tags, "
        shown = [tag[:_SHORTENED] for tag in tags[:20]]
        problems.append(Message(message + why, tags=shown, node=kind[:_SHORTENED]))
    text = parse_prompt(text).text.strip() if tags else text
    plain = all(node.kind in _PLAIN_ENCODERS for node in encoders)
    return re.sub(r"(?<!\\)([\[\]#])", r"\\\1", text) if plain and encoders else text


def _repeated(loras: Iterable[Lora]) -> Iterator[Message]:
    for name, count in Counter(name for name, _, _ in loras).items():
        if count > 1:
            text = "the LoRA {name!r} is applied {count} times; the weights are added, as there"
            yield Message(text, count=count, name=name[:_SHORTENED])


def _unused(graph: Graph, first: Node, guide: Node) -> Iterator[Message]:
    """Yield a message for each part of the graph that affects the picture and is not read."""
    before = graph.upstream(first)
    after = graph.downstream(first)
    drawn_from = {source for node in graph.nodes.values() for source in graph.sources(node)}
    bearing = graph.upstream(*before, *(n for n in after if n in drawn_from or _is_sampler(n)))
    for node in bearing:
        if node is not first and _is_sampler(node):
            yield _other_pass(graph, node)
    here = set(graph.upstream(first, guide))
    later = [lora for node in bearing if node not in here for lora in loras_of(node, graph)]
    if later:
        text = "LoRAs of what comes after the first pass are not taken over: {tags}"
        yield Message(text, tags=[format_tag(*lora)[:_SHORTENED] for lora in later[:_MOST_NAMED]])
    in_bearing = set(bearing)
    apart = [n for n in graph.nodes.values() if _is_sampler(n) and n not in in_bearing]
    if apart:
        text = "the graph makes {count} more pictures apart from this one; they are not read"
        yield Message(text, count=len(apart))
    unknown: list[str] = []
    features: dict[str, list[str]] = {}
    for node in bearing:
        if _is_understood(node, graph) or _is_sampler(node):
            continue
        feature = next((name for sign, name in _FEATURES if re.search(sign, _node_class(node))), "")
        (features.setdefault(feature, []) if feature else unknown).append(_shown_text(node))
    for feature, nodes in features.items():
        text = "{feature} is not taken over ({nodes})"
        yield Message(text, feature=feature, nodes=counted(nodes))
    if unknown:
        text = "not known here, so that what they do to the picture is left out: {nodes}"
        yield Message(text, nodes=counted(unknown))


def _other_pass(graph: Graph, node: Node) -> Message:
    text = "a second pass is not taken over: {node}, {steps} steps, {how}"
    names = ("steps", "denoise", "start_at_step")
    steps, denoise, start = (graph.plain(node.inputs.get(name), name) for name in names)
    how = f"denoise {1 if denoise is None else denoise}" if start is None else f"from step {start}"
    return Message(text, node=node.kind[:_SHORTENED], steps=steps or "unknown", how=how)


def _part_of_steps(graph: Graph, node: Node) -> Iterator[Message]:
    """Yield a message if a sampler runs only a part of its steps."""
    names = ("steps", "start_at_step", "end_at_step")
    steps, start, end = (number(str(graph.plain(node.inputs.get(name), name))) for name in names)
    if steps and (start or (end is not None and end < steps)):
        text = "only steps {start:g} to {end:g} of {steps:g} were taken there; here it is all"
        yield Message(text, start=start or 0.0, end=min(end or steps, steps), steps=steps)


def _is_understood(node: Node, graph: Graph) -> bool:
    if "refiner" in str(node.inputs.get("ckpt_name", "")).lower():
        return False
    known = node.kind in _UNDERSTOOD or node in graph.resolved
    return known or node.kind.startswith("Primitive") or is_loader(node, graph)


def _node_class(node: Node) -> str:
    folded = re.sub(r"[\s_]", "", node.kind).lower()
    is_refiner = "refiner" in str(node.inputs.get("ckpt_name", "")).lower()
    return "refiner" if is_refiner else folded


def _shown_text(node: Node) -> str:
    """Return a node's class with the model files that it names."""
    files = [v for v in node.inputs.values() if isinstance(v, str) and _MODEL_FILE.search(v)]
    return f"{node.kind[:_SHORTENED]}: {', '.join(files)[:_SHORTENED]}" if files else node.kind
