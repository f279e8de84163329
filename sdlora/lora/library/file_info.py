"""What a LoRA file says of itself, and what other programs have written beside it; no torch.

All of it comes from strangers: texts are cut, made plain and only ever shown; no path is made of
them, and what is damaged is left out by name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from math import nan
from operator import itemgetter
from os.path import basename
from typing import Any, NamedTuple

from sdlora.architectures import base_of
from sdlora.errors import LoraFileError
from sdlora.lora.format.header import Head, read_head, shapes_in
from sdlora.lora.format.identify import identify_layers, unread_keys, unread_note
from sdlora.lora.library.index import Facts
from sdlora.lora.library.scan import ScannedFile
from sdlora.messages import Message

MAX_SIDECAR = 2**20  # bytes
MAX_TEXT, MAX_WORDS, MAX_TAGS = 2_000, 64, 24  # letters; trigger words; tags, as A1111 shows
MAX_TRIGGERS = 3
MAX_WEIGHT = 10.0
# how A1111 ("SD1") and Civitai ("SD 1.5", "Flux.1 D", "Pony") call the bases; letters and digits
_SAID_BASES = {
    "sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux1": "flux",
    "pony": "sdxl", "illustrious": "sdxl", "noobai": "sdxl",
}  # fmt: skip
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)\s*")
_TAG = re.compile(r"<[^<>]*>")
Said = Mapping[str, Any]
Tags = list[tuple[str, int]]


class StoredLayout(NamedTuple):
    """What the names and shapes of a file's tensors tell."""

    base: str = ""
    kinds: tuple[str, ...] = ()
    rank: int = 0
    unread: tuple[str, ...] = ()  # keys that nobody knows


Layouts = dict[tuple[int, int, int], StoredLayout]  # by Head.layout


def facts_of(found: ScannedFile, layouts: Layouts) -> tuple[Facts, bool]:
    """The facts of a file, and whether they hold for as long as it does not change.

    `layouts` are those met before, and grow: thousands of files differ in their numbers only, and
    to judge a header takes many times as long as to read it.
    """
    try:
        head = read_head(found.path)
    except LoraFileError as error:  # perhaps somebody is copying it here right now
        return Facts(problem=error.message), error.code == "pickle"
    layout, problem = StoredLayout(), Message("")
    try:
        layout = _layout(head, layouts)
    except LoraFileError as error:
        problem = error.message
    notes: list[Message] = [unread_note(head.file, layout.unread)] if layout.unread else []
    user, page = (_sidecar(path, notes) if path else {} for path in found.sidecars)
    tags = _tags(head.metadata)
    activation_text = _words(user.get("activation text"))
    words = (
        activation_text
        or _said_words(head.metadata)
        or _words(page.get("trainedWords"))
        or _in_all_captions(tags)
    )
    return Facts(
        alias=plain(head.metadata.get("ss_output_name", "")),
        title=plain(head.metadata.get("modelspec.title") or _title(page)),
        base=layout.base or base_of({}, head.metadata) or _said_base(user, page),
        kinds=layout.kinds,
        rank=layout.rank,
        trigger_words=words,
        is_activation_text=bool(activation_text),
        top_tags={plain(tag): count for tag, count in tags[:MAX_TAGS]},
        negative_text=plain(user.get("negative text") or ""),
        preferred_weight=_weight(user.get("preferred weight"), notes),
        said_hash=plain(head.metadata.get("sshs_model_hash", "")).lower(),
        problem=problem,
        notes=notes,
    ), True


def _layout(head: Head, layouts: Layouts) -> StoredLayout:
    if (key := head.layout) not in layouts:
        shapes = shapes_in(head)
        layers = identify_layers(shapes)
        kinds = Counter(layer.kind for layer in layers.values())
        layouts[key] = StoredLayout(
            base_of({name: layer.shape for name, layer in layers.items()}, {}),
            tuple(kind for kind, _ in kinds.most_common()),
            max(layer.rank for layer in layers.values()),
            unread_keys(shapes, layers),
        )
    return layouts[key]


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call a LoRA: as its maker says, else the tags that all its captions had."""
    return _said_words(metadata) or _in_all_captions(_tags(metadata))


def _said_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    said = metadata.get("modelspec.trigger_phrase") or metadata.get("trained_words", "")
    words = _json(said)
    return _words(words if isinstance(words, list) else said)


def _words(said: object) -> tuple[str, ...]:
    """A list of texts, or one with commas, as words without the LoRA tags among them."""
    texts = said if isinstance(said, list) else said.split(",") if isinstance(said, str) else []
    words = (
        plain(_TAG.sub("", text)).strip(" ,") for text in texts[:MAX_WORDS] if isinstance(text, str)
    )
    return tuple(dict.fromkeys(filter(None, words)))


def _tags(metadata: Mapping[str, str]) -> Tags:
    """(tag, how often it stood), the most frequent first, of kohya's `{folder: {tag: count}}`."""
    counts: Counter[str] = Counter()
    folders = _json(metadata.get("ss_tag_frequency", ""))
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({t: n for t, n in tags.items() if type(n) is int and 0 < n < 2**31})
    return sorted(counts.items(), key=itemgetter(1), reverse=True)


def _in_all_captions(tags: Tags) -> tuple[str, ...]:
    """The tags that stand as often as the most frequent one."""
    most = [tag for tag, count in tags[: MAX_TRIGGERS + 1] if count == tags[0][1]]
    # where many tags stand equally often none of them is special
    return _words(most) if len(most) <= MAX_TRIGGERS else ()


def _title(page: Said) -> str:
    model = page.get("model")
    name = model.get("name") if isinstance(model, dict) else ""
    return name if isinstance(name, str) else ""


def _said_base(user: Said, page: Said) -> str:
    for said in (user.get("sd version"), page.get("baseModel")):
        letters = "".join(filter(str.isalnum, str(said))).lower()
        for start, base in _SAID_BASES.items():
            if letters.startswith(start):
                return base
    return ""


def _weight(said: Any, notes: list[Message]) -> float | None:
    """A weight to begin with; A1111 writes 0 for none."""
    if not said:
        return None
    try:
        weight = nan if isinstance(said, bool) else float(said)  # some programs write it as text
    except (TypeError, ValueError, OverflowError):
        weight = nan
    if abs(weight) <= MAX_WEIGHT:
        return weight or None
    template = "the preferred weight {given!r} is not a number within ±{limit:g}"
    notes.append(Message(template, given=plain(said, 40), limit=MAX_WEIGHT))
    return None


def _sidecar(path: str, notes: list[Message]) -> Said:
    """What stands in a JSON file; nothing when it is damaged or far too large, which is noted."""
    try:
        with open(path, "rb") as file:
            said = json.loads(file.read(MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        return said
    template = "{file} is not used: it is damaged or larger than {most} MiB"
    notes.append(Message(template, file=plain(basename(path)), most=MAX_SIDECAR // 2**20))
    return {}


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def plain(said: object, most: int = MAX_TEXT) -> str:
    """A text as one line that can be shown and stored: nothing in it steers anything."""
    text = str(said)[:most]
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text.strip()
