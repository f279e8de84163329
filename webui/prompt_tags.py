"""LoRA tags of a prompt for the LoRA cards: found, inserted, removed.

Read by the prompt's own scanner and the library's own `find`, so that cards and generation agree on
the file of a tag and on tags inside comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sdlora.errors import LoraFileError
from sdlora.lora.library.library import Library, LoraEntry
from sdlora.prompt.expansion import strip_comments
from sdlora.prompt.scanner import Token, tokens, without_escapes
from sdlora.prompt.tags import format_tag, parse_prompt
from webui.lora_details import prompt_trigger_words

_HASH_LETTERS = 12
_BEFORE = re.compile(r"[ \t]*,?\s*\Z")


def visible_tags(text: str) -> Iterator[Token]:
    """Every tag of the text outside # comments, with its position."""
    place = 0
    while place < len(text):
        for token in tokens(text, place):
            if token.kind in ("tag", "bare"):
                yield token
            if token.sign == "#":
                end = text.find("\n", token.start)
                place = end if end >= 0 else len(text)
                break
        else:
            return


def tag_name(token: Token) -> str:
    """Name in a tag, even when the rest of the tag cannot be parsed."""
    return token.text.strip("<>").split(":")[1].strip()


def file_of_tag(library: Library, token: Token) -> str:
    """Full name of the file of a tag; '' for none."""
    try:
        return library.find(tag_name(token)).full_name
    except LoraFileError:
        return ""


def with_tag(prompt: str, name: str, trigger_words: Sequence[str], weight: float) -> str:
    """The prompt with a LoRA's tag and trigger words, each unless it is there already; on a new
    line where a comment would hide them."""
    spoken = strip_comments(prompt)
    plain = without_escapes(spoken).lower()
    missing = [word for word in trigger_words if without_escapes(word).lower() not in plain]
    if name.lower() not in {lora.name.lower() for lora in parse_prompt(spoken).loras}:
        missing.append(format_tag(name, weight))
    if not missing:
        return prompt
    joined = ", ".join(filter(None, [prompt.strip().rstrip(","), *missing]))
    if strip_comments(joined).endswith(missing[-1]):
        return joined
    return f"{prompt.rstrip()}\n{', '.join(missing)}"


def toggle_tag(library: Library, prompt: str, entry: LoraEntry, weight: float) -> str:
    """The prompt with this file's tag and trigger words, or without them where it is used already.
    A tag of the file that cannot be parsed is replaced. LoraFileError: no tag can name the file."""
    own = [
        token for token in visible_tags(prompt) if file_of_tag(library, token) == entry.full_name
    ]
    if any(parse_prompt(token.text).loras for token in own):
        for token in reversed(own):
            prompt = _remove_tag(prompt, token, prompt_trigger_words(entry))
        return prompt
    name = usable_name(library, entry)
    if own:
        return prompt[: own[0].start] + format_tag(name, weight) + prompt[own[0].end :]
    return with_tag(prompt, name, prompt_trigger_words(entry), weight)


def usable_name(library: Library, entry: LoraEntry) -> str:
    """Name that finds this file when written in a tag: its own, the one it was trained under, else
    its hash. LoraFileError: there is none."""
    for name in (entry.full_name, entry.name, entry.alias):
        for lora in parse_prompt(format_tag(name, 1)).loras:
            if _finds(library, lora.name, entry):
                return lora.name
    start = library.hashes(entry).sha256[:_HASH_LETTERS]
    if start and _finds(library, start, entry):
        return start
    raise LoraFileError("no tag can mean {name!r}; give the file another name", name=entry.name)


def _finds(library: Library, name: str, entry: LoraEntry) -> bool:
    try:
        return library.find(name).path == entry.path
    except LoraFileError:
        return False


def _remove_tag(prompt: str, token: Token, trigger_words: Sequence[str]) -> str:
    """The prompt without a tag and without its LoRA's trigger words right before it."""
    before = _BEFORE.sub("", prompt[: token.start])
    while word := next((word for word in trigger_words if _ends_with(before, word)), ""):
        before = _BEFORE.sub("", before[: -len(word)])
    after = prompt[token.end :]
    return before + after if before else after.lstrip(" ,\t\n")


def _ends_with(text: str, word: str) -> bool:
    """True if the last of the comma-separated parts is `word`."""
    start = len(text) - len(word)
    whole = start <= 0 or text[:start].rstrip(" \t")[-1:] in ("", ",", "\n")
    return bool(word) and start >= 0 and whole and text[start:].lower() == word.lower()
