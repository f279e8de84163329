"""LoRA tags of a prompt for the cards: which are there, one put in, one taken out.

Read by the prompt's own scanner and the library's own `find`, so that a card and the picture agree
on what a tag means, and where a comment hides one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sdlora.errors import LoraFileError
from sdlora.lora.library.library import Library, LoraEntry
from sdlora.prompt.expansion import strip_comments
from sdlora.prompt.scanner import Token, tokens, without_escapes
from sdlora.prompt.tags import format_tag, parse_prompt
from webui.lora_details import prompt_words

_HASH_LETTERS = 12
_BEFORE = re.compile(r"[ \t]*,?\s*\Z")


def own_tags(text: str) -> Iterator[Token]:
    """Every tag of the text that no # comment hides, where it stands."""
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


def name_in(token: Token) -> str:
    """The name that a tag says, whether or not the rest of it can be understood."""
    return token.text.strip("<>").split(":")[1].strip()


def meaning(library: Library, token: Token) -> str:
    """The full name of the file that a tag means; '' for none."""
    try:
        return library.find(name_in(token)).full_name
    except LoraFileError:
        return ""


def with_tag(prompt: str, name: str, words: Sequence[str], weight: float) -> str:
    """The prompt with a LoRA's tag and the words that call it, each unless it is there already; on
    a line of their own where a comment would hide them."""
    spoken = strip_comments(prompt)
    said = without_escapes(spoken).lower()
    missing = [word for word in words if without_escapes(word).lower() not in said]
    if name.lower() not in {lora.name.lower() for lora in parse_prompt(spoken).loras}:
        missing.append(format_tag(name, weight))
    if not missing:
        return prompt
    joined = ", ".join(filter(None, [prompt.strip().rstrip(","), *missing]))
    if strip_comments(joined).endswith(missing[-1]):
        return joined
    return f"{prompt.rstrip()}\n{', '.join(missing)}"


def toggled(library: Library, prompt: str, entry: LoraEntry, weight: float) -> str:
    """The prompt with this file's tag and words, or, where it is used already, without them. A tag
    of it that cannot be understood is put right. LoraFileError: no tag can mean the file."""
    own = [token for token in own_tags(prompt) if meaning(library, token) == entry.full_name]
    if any(parse_prompt(token.text).loras for token in own):
        for token in reversed(own):
            prompt = _without(prompt, token, prompt_words(entry))
        return prompt
    name = callable_name(library, entry)
    if own:
        return prompt[: own[0].start] + format_tag(name, weight) + prompt[own[0].end :]
    return with_tag(prompt, name, prompt_words(entry), weight)


def callable_name(library: Library, entry: LoraEntry) -> str:
    """A name that, written in a tag, means this file: its own, the one it was trained under, else
    its hash. LoraFileError: there is none."""
    for name in (entry.full_name, entry.name, entry.alias):
        for lora in parse_prompt(format_tag(name, 1)).loras:
            if _is(library, lora.name, entry):
                return lora.name
    start = library.hashes(entry).sha256[:_HASH_LETTERS]
    if start and _is(library, start, entry):
        return start
    raise LoraFileError("no tag can mean {name!r}; give the file another name", name=entry.name)


def _is(library: Library, name: str, entry: LoraEntry) -> bool:
    try:
        return library.find(name).path == entry.path
    except LoraFileError:
        return False


def _without(prompt: str, token: Token, words: Sequence[str]) -> str:
    """The prompt without a tag, and without the words right before it that call its LoRA."""
    before = _BEFORE.sub("", prompt[: token.start])
    while word := next((word for word in words if _ends_with(before, word)), ""):
        before = _BEFORE.sub("", before[: -len(word)])
    after = prompt[token.end :]
    return before + after if before else after.lstrip(" ,\t\n")


def _ends_with(text: str, word: str) -> bool:
    """Whether the last of what stands between commas is `word`."""
    start = len(text) - len(word)
    whole = start <= 0 or text[:start].rstrip(" \t")[-1:] in ("", ",", "\n")
    return bool(word) and start >= 0 and whole and text[start:].lower() == word.lower()
