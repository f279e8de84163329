"""What the prompts become, told while they are typed: tokens, steps, tags and their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.architectures import BASES
from sdlora.errors import LoraFileError, ModelError
from sdlora.lora.library.library import LoraEntry
from sdlora.messages import Message
from sdlora.prompt import LoraTag
from sdlora.prompt.chunks import Tokenize, Unit
from sdlora.prompt.preview import ChunkView, PreviewStage, PromptPreview, preview_prompt
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tokenizer import open_tokenizer
from sdlora.settings.base import MAX_TEXT
from webui.app_state import AppState
from webui.markup import beside, esc, sentence
from webui.prompt_tags import meaning, own_tags

MAX_READ = 20_000  # letters of a prompt that are read anew with every key


@dataclass(frozen=True)
class PreviewRequest:
    """What the page holds at the moment."""

    prompt: str
    negative_prompt: str
    model: str
    steps: int
    seed: int
    styles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """A tag, and the file it means; or why it means none that can be used."""

    tag: LoraTag
    entry: LoraEntry | None = None
    problem: str = ""


@dataclass(frozen=True)
class PromptReading:
    """Both prompts, read; `counted` is False where the model's words are not at hand."""

    positive: PromptPreview
    negative: PromptPreview | None
    uses: tuple[Use, ...]
    problems: tuple[str, ...]
    steps: int
    counted: bool = True
    chosen: tuple[str, ...] = ()  # full names of the files that the prompt's own tags use


def read(studio: AppState, asked: PreviewRequest) -> PromptReading:
    """Read what is asked for, as a picture of it would. Never raises."""
    steps = max(1, asked.steps)
    letters = max(len(asked.prompt), len(asked.negative_prompt))
    if letters > MAX_READ:
        return PromptReading(
            preview_prompt("", steps, _whole), None, (), (_too_long(letters),), steps, False
        )
    tokenize = _tokenizer(Path(studio.workspace.model_source(asked.model)))
    seed = max(0, asked.seed)  # one that is drawn later draws other wildcards
    texts = PromptResources.for_workspace(studio.workspace).expand(
        asked.prompt, asked.negative_prompt, seed, asked.styles
    )
    positive, negative = (preview_prompt(text.text, steps, tokenize or _whole) for text in texts)
    base = studio.model_base(asked.model)
    uses = tuple(_use(studio, tag, base) for tag in (*positive.loras, *negative.loras))
    first = uses[: len(positive.loras)]
    used = {use.entry.full_name for use in first if use.entry and not use.problem}
    own = dict.fromkeys(meaning(studio.library, token) for token in own_tags(asked.prompt))
    said = (*texts[0].problems, *texts[1].problems, *positive.problems, *negative.problems)
    missing = [use.problem or (use.entry.note if use.entry else "") for use in uses]
    return PromptReading(
        positive,
        negative if texts[1].text.strip() else None,
        uses,
        tuple(dict.fromkeys(filter(None, (*said, *missing)))),
        steps,
        tokenize is not None,
        tuple(name for name in own if name in used),
    )


def _too_long(letters: int) -> Message:
    if letters > MAX_TEXT:
        words = "the prompt has {letters:,} letters; {most:,} at most are taken: shorten it"
        return Message(words, letters=letters, most=MAX_TEXT)
    return Message(
        "the prompt has {letters:,} letters; beyond {most:,} it is read only when the picture is "
        "made, not while it is typed",
        letters=letters,
        most=MAX_READ,
    )


def _is_used(use: Use) -> bool:
    return use.entry is not None and not use.problem


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenize | None:
    try:
        return open_tokenizer(folder)
    except ModelError:
        return None


def _whole(text: str) -> Sequence[Unit]:
    """A text in one piece, where nobody can count."""
    return [Unit((0,), text)] if text.strip() else []


def _use(studio: AppState, tag: LoraTag, base: str) -> Use:
    try:
        entry = studio.library.find(tag.name)
    except LoraFileError as error:
        return Use(tag, problem=error.message)
    said = entry.facts.problem
    if not said and base and entry.family not in ("", base):
        said = Message(
            "{name} is for {base}, not for this model",
            name=entry.name, base=BASES[entry.family].title,
        )  # fmt: skip
    return Use(tag, entry, said)


def counter(reading: PromptReading, asked: PreviewRequest) -> str:
    """One line under the prompt."""
    if not asked.prompt.strip() and not asked.negative_prompt.strip():
        return ""
    parts = [_counts(reading.positive.stages)] if reading.counted else []
    if reading.counted and reading.negative:
        parts.append(f"negative {_counts(reading.negative.stages)}")
    found = [use for use in reading.uses if _is_used(use)]
    parts += [f"{len(found)} LoRA{'s' * (len(found) != 1)}"] if reading.uses else []
    chosen = esc(json.dumps(reading.chosen))
    line = " · ".join(parts)
    return f'<p class="count" role="status" data-chosen="{chosen}">{line}</p>'


def unused(reading: PromptReading) -> str:
    """What will not be used as it was meant; no alert while it is typed."""
    lines = dict.fromkeys(map(sentence, reading.problems))
    said = "".join(f"<p>{esc(line)}</p>" for line in lines)
    return f'<div class="notice">{said}</div>' if said else ""


def _counts(stages: Iterable[PreviewStage]) -> str:
    """'12/75', or '75/75 + 3/75' of several chunks: of the text that has the most."""
    most = max(stages, key=lambda stage: stage.tokens)
    chunks = [chunk for part in most.parts for chunk in part.chunks]
    return " + ".join(f"{chunk.tokens}/{chunk.room}" for chunk in chunks[:8]) + " tokens"


def parsed(reading: PromptReading, asked: PreviewRequest) -> str:
    """The whole of it: every text with its steps and chunks, every tag with its file."""
    shown = _view("Prompt", reading.positive, reading)
    if reading.negative:
        shown += _view("Negative prompt", reading.negative, reading)
    rows = "".join(_row(use, reading.steps) for use in reading.uses)
    tags = f"<h3>LoRAs</h3><dl>{rows}</dl>" if rows else ""
    hints = [] if reading.counted else ["Tokens are counted once the model is on this machine."]
    if asked.seed < 0 and ("{" in asked.prompt or "__" in asked.prompt):
        hints.append("With a random seed wildcards are drawn anew; these are those of seed 0.")
    hint = f'<p class="hint">{" ".join(hints)}</p>' if hints else ""
    return f'<div class="parsed">{shown}{tags}{hint}</div>'


def _view(title: str, seen: PromptPreview, reading: PromptReading) -> str:
    stages = "".join(_stage(stage, len(seen.stages) > 1, reading.counted) for stage in seen.stages)
    return f"<h3>{title}</h3>{stages}"


def _stage(stage: PreviewStage, several: bool, counted: bool) -> str:
    spans = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in stage.spans[:12])
    left = f" and {len(stage.spans) - 12} more" if len(stage.spans) > 12 else ""
    when = f'<p class="when">Steps {spans}{left}</p>' if several else ""
    parts = [
        (f'<p class="when">AND, weight {part.weight:g}</p>' if len(stage.parts) > 1 else "")
        + "".join(_chunk(chunk, counted) for chunk in part.chunks)
        for part in stage.parts
    ]
    return f"<section>{when}{''.join(parts)}</section>"


def _chunk(chunk: ChunkView, counted: bool) -> str:
    pieces = "".join(
        esc(text) if weight == 1 else f"<mark>{esc(text)}<sub>{weight:.3g}</sub></mark>"
        for text, weight in chunk.pieces
    )
    count = f"<span>{chunk.tokens}/{chunk.room}</span>" if counted else ""
    return f'<p class="chunk">{pieces or "<i>nothing</i>"}{count}</p>'


def _row(use: Use, steps: int) -> str:
    if use.problem or use.entry is None:
        return f'<dt>{esc(use.tag.name)}</dt><dd class="bad">{esc(sentence(use.problem))}</dd>'
    said = f"{weights(use.tag, steps)} · {use.entry.full_name}"
    other = [f"; {beside(path)} has the same name" for path in use.entry.also]
    return f"<dt>{esc(use.tag.name)}</dt><dd>{esc(said + ''.join(other))}</dd>"


def weights(tag: LoraTag, steps: int) -> str:
    """How strongly a tag acts, in words."""
    pairs = [tag.at(step, steps) for step in range(steps)]
    unet = [pair[0] for pair in pairs]
    if len(set(unet)) > 1:
        top = max(unet, key=abs)
        most = f", {top:g} at most" if top not in (unet[0], unet[-1]) else ""
        return f"weight {unet[0]:g} at first, {unet[-1]:g} at last{most}"
    both = pairs[0][0] == pairs[0][1]
    text = "" if both else f", text encoder {pairs[0][1]:g}"
    hires = f", {tag.hires:g} in the second pass" if tag.hires is not None else ""
    return f"weight {unet[0]:g}{text}{hires}"
