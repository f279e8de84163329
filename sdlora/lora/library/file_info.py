"""Facts of LoRA files, read from their headers and from other programs' sidecars; no torch.

All of it is untrusted input: texts are cut to a length, made printable and only ever shown; no path
is made of them, and damaged parts are left out with a note.
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
from sdlora.lora.format.header import RawHeader, checked_shapes, read_raw_header
from sdlora.lora.format.identify import identify_layers, unread_keys, unread_note
from sdlora.lora.library.index import Facts
from sdlora.lora.library.scan import ScannedFile
from sdlora.messages import Message

MAX_SIDECAR = 2**20  # bytes
MAX_TEXT, MAX_WORDS, MAX_TAGS = 2_000, 64, 24  # letters; trigger words; tags, as A1111 shows
MAX_TRIGGERS = 3
MAX_WEIGHT = 10.0
# names of base models in A1111 ("SD1") and Civitai ("SD 1.5", "Flux.1 D", "Pony"): letters, digits
_FOREIGN_BASE_NAMES = {
    "sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux1": "flux",
    "pony": "sdxl", "illustrious": "sdxl", "noobai": "sdxl",
}  # fmt: skip
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)\s*")
_TAG = re.compile(r"<[^<>]*>")
JsonObject = Mapping[str, Any]
Tags = list[tuple[str, int]]


class StoredLayout(NamedTuple):
    """Facts that follow from the names and shapes of a file's tensors."""

    base: str = ""
    kinds: tuple[str, ...] = ()
    rank: int = 0
    unread: tuple[str, ...] = ()  # keys that nobody knows


Layouts = dict[tuple[int, int, int], StoredLayout]  # by RawHeader.layout


def facts_of(scanned: ScannedFile, layouts: Layouts) -> tuple[Facts, bool]:
    """Return (facts of a file, True if they hold for as long as the file does not change).

    `layouts` is a cache that this call adds to: thousands of files share names and shapes, and to
    classify a header takes many times as long as to read it.
    """
    try:
        head = read_raw_header(scanned.path)
    except LoraFileError as error:  # perhaps somebody is copying it here right now
        return Facts(problem=error.message), error.code == "pickle"
    layout, problem = StoredLayout(), Message("")
    try:
        layout = _stored_layout(head, layouts)
    except LoraFileError as error:
        problem = error.message
    notes: list[Message] = [unread_note(head.file, layout.unread)] if layout.unread else []
    user, page = (read_sidecar(path, notes) if path else {} for path in scanned.sidecars)
    tags = _tag_counts(head.metadata)
    activation_text = _word_list(user.get("activation text"))
    words_of_file = (
        activation_text
        or _words_in_metadata(head.metadata)
        or _word_list(page.get("trainedWords"))
        or _tags_in_all_captions(tags)
    )
    return Facts(
        alias=one_line(head.metadata.get("ss_output_name", "")),
        title=one_line(head.metadata.get("modelspec.title") or _civitai_title(page)),
        base=layout.base or base_of({}, head.metadata) or _base_in_sidecars(user, page),
        kinds=layout.kinds,
        rank=layout.rank,
        trigger_words=words_of_file,
        is_activation_text=bool(activation_text),
        top_tags={one_line(tag): count for tag, count in tags[:MAX_TAGS]},
        negative_text=one_line(user.get("negative text") or ""),
        preferred_weight=_preferred_weight(user.get("preferred weight"), notes),
        claimed_hash=one_line(head.metadata.get("sshs_model_hash", "")).lower(),
        problem=problem,
        notes=notes,
    ), True


def _stored_layout(head: RawHeader, layouts: Layouts) -> StoredLayout:
    if (key := head.layout) not in layouts:
        shapes = checked_shapes(head)
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
    """Trigger words of a LoRA: of `modelspec.trigger_phrase`, else the tags in all its captions."""
    return _words_in_metadata(metadata) or _tags_in_all_captions(_tag_counts(metadata))


def _words_in_metadata(metadata: Mapping[str, str]) -> tuple[str, ...]:
    text = metadata.get("modelspec.trigger_phrase") or metadata.get("trained_words", "")
    value = _parse_json(text)
    return _word_list(value if isinstance(value, list) else text)


def _word_list(value: object) -> tuple[str, ...]:
    """Split a list of texts, or a text with commas, into words; LoRA tags in them are removed."""
    texts = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else []
    cleaned = (
        one_line(_TAG.sub("", text)).strip(" ,")
        for text in texts[:MAX_WORDS]
        if isinstance(text, str)
    )
    return tuple(dict.fromkeys(filter(None, cleaned)))


def _tag_counts(metadata: Mapping[str, str]) -> Tags:
    """(tag, count), the most frequent first, from kohya's `{folder: {tag: count}}`."""
    counts: Counter[str] = Counter()
    folders = _parse_json(metadata.get("ss_tag_frequency", ""))
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({t: n for t, n in tags.items() if type(n) is int and 0 < n < 2**31})
    return sorted(counts.items(), key=itemgetter(1), reverse=True)


def _tags_in_all_captions(tags: Tags) -> tuple[str, ...]:
    """Tags as frequent as the most frequent one, if they are at most MAX_TRIGGERS."""
    tags_in_all = [tag for tag, count in tags[: MAX_TRIGGERS + 1] if count == tags[0][1]]
    # where many tags are equally frequent none of them is a trigger word
    return _word_list(tags_in_all) if len(tags_in_all) <= MAX_TRIGGERS else ()


def _civitai_title(page: JsonObject) -> str:
    model = page.get("model")
    name = model.get("name") if isinstance(model, dict) else ""
    return name if isinstance(name, str) else ""


def _base_in_sidecars(user: JsonObject, page: JsonObject) -> str:
    for value in (user.get("sd version"), page.get("baseModel")):
        letters = "".join(filter(str.isalnum, str(value))).lower()
        for start, base in _FOREIGN_BASE_NAMES.items():
            if letters.startswith(start):
                return base
    return ""


def _preferred_weight(value: Any, notes: list[Message]) -> float | None:
    """The LoRA weight that the sidecar suggests; None for 0, which A1111 writes for no weight."""
    if not value:
        return None
    try:
        weight = nan if isinstance(value, bool) else float(value)  # some programs write it as text
    except (TypeError, ValueError, OverflowError):
        weight = nan
    if abs(weight) <= MAX_WEIGHT:
        return weight or None
    template = "the preferred weight {given!r} is not a number within ±{limit:g}"
    notes.append(Message(template, given=one_line(value, 40), limit=MAX_WEIGHT))
    return None


def read_sidecar(path: str, notes: list[Message]) -> JsonObject:
    """Read a JSON object from a file; empty, with a note, when it is damaged or too large."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    template = "{file} is not used: it is damaged or larger than {limit} MiB"
    notes.append(Message(template, file=one_line(basename(path)), limit=MAX_SIDECAR // 2**20))
    return {}


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def one_line(value: object, max_letters: int = MAX_TEXT) -> str:
    """`value` as one line of text, cut, with every unprintable letter replaced by a space."""
    text = str(value)[:max_letters]
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text.strip()
