"""Preview of the prompts while they are typed: token counts, prompt schedule, LoRA tags and their
files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.architectures import FAMILIES
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
from webui.markup import esc, name_with_folder, sentence
from webui.prompt_tags import file_of_tag, visible_tags

MAX_READ = 20_000  # characters of a prompt that are parsed anew after every key press


@dataclass(frozen=True)
class PreviewRequest:
    """Fields of the form that the preview depends on."""

    prompt: str
    negative_prompt: str
    model: str
    steps: int
    seed: int
    styles: tuple[str, ...] = ()


@dataclass(frozen=True)
class TagUse:
    """A LoRA tag and its file, or the problem that keeps it from being used."""

    tag: LoraTag
    entry: LoraEntry | None = None
    problem: str = ""


@dataclass(frozen=True)
class ParsedPrompts:
    """Preview of both prompts; `counted` is False where the model's tokenizer is not on this
    machine."""

    positive: PromptPreview
    negative: PromptPreview | None
    uses: tuple[TagUse, ...]
    problems: tuple[str, ...]
    steps: int
    counted: bool = True
    chosen: tuple[str, ...] = ()  # full names of the files of the tags written in the prompt itself


def parse_prompts(app_state: AppState, request: PreviewRequest) -> ParsedPrompts:
    """Parse the prompts of a request as a generation would. Never raises."""
    steps = max(1, request.steps)
    letters = max(len(request.prompt), len(request.negative_prompt))
    if letters > MAX_READ:
        return ParsedPrompts(
            preview_prompt("", steps, _one_unit), None, (), (_too_long(letters),), steps, False
        )
    tokenize = _tokenizer(Path(app_state.workspace.model_source(request.model)))
    seed = max(0, request.seed)  # a random seed will draw other wildcards
    texts = PromptResources.for_workspace(app_state.workspace).expand(
        request.prompt, request.negative_prompt, seed, request.styles
    )
    positive, negative = (preview_prompt(text.text, steps, tokenize or _one_unit) for text in texts)
    base = app_state.model_base(request.model)
    uses = tuple(_find_file(app_state, tag, base) for tag in (*positive.loras, *negative.loras))
    first = uses[: len(positive.loras)]
    used = {use.entry.full_name for use in first if use.entry and not use.problem}
    own = dict.fromkeys(
        file_of_tag(app_state.library, token) for token in visible_tags(request.prompt)
    )
    problems = (*texts[0].problems, *texts[1].problems, *positive.problems, *negative.problems)
    missing = [use.problem or (use.entry.note if use.entry else "") for use in uses]
    return ParsedPrompts(
        positive,
        negative if texts[1].text.strip() else None,
        uses,
        tuple(dict.fromkeys(filter(None, (*problems, *missing)))),
        steps,
        tokenize is not None,
        tuple(name for name in own if name in used),
    )


def _too_long(letters: int) -> Message:
    if letters > MAX_TEXT:
        template = "the prompt has {letters:,} letters; {limit:,} at most are taken: shorten it"
        return Message(template, letters=letters, limit=MAX_TEXT)
    return Message(
        "the prompt has {letters:,} letters; beyond {limit:,} it is read only when the picture is "
        "made, not while it is typed",
        letters=letters,
        limit=MAX_READ,
    )


def _is_used(use: TagUse) -> bool:
    return use.entry is not None and not use.problem


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenize | None:
    try:
        return open_tokenizer(folder)
    except ModelError:
        return None


def _one_unit(text: str) -> Sequence[Unit]:
    """A text as one unit, where there is no tokenizer."""
    return [Unit((0,), text)] if text.strip() else []


def _find_file(app_state: AppState, tag: LoraTag, base: str) -> TagUse:
    try:
        entry = app_state.library.find(tag.name)
    except LoraFileError as error:
        return TagUse(tag, problem=error.message)
    problem = entry.facts.problem
    if not problem and base and entry.family not in ("", base):
        problem = Message(
            "{name} is for {base}, not for this model",
            name=entry.name, base=FAMILIES[entry.family].title,
        )  # fmt: skip
    return TagUse(tag, entry, problem)


def counter_line(reading: ParsedPrompts, request: PreviewRequest) -> str:
    """Line under the prompt with its token and LoRA counts."""
    if not request.prompt.strip() and not request.negative_prompt.strip():
        return ""
    parts = [_counts(reading.positive.stages)] if reading.counted else []
    if reading.counted and reading.negative:
        parts.append(f"negative {_counts(reading.negative.stages)}")
    used = [use for use in reading.uses if _is_used(use)]
    parts += [f"{len(used)} LoRA{'s' * (len(used) != 1)}"] if reading.uses else []
    chosen = esc(json.dumps(reading.chosen))
    line = " · ".join(parts)
    return f'<p class="count" role="status" data-chosen="{chosen}">{line}</p>'


def unused_notice(reading: ParsedPrompts) -> str:
    """Notice of the parts of the prompts that will not be used; without an alert while they are
    typed."""
    lines = dict.fromkeys(map(sentence, reading.problems))
    paragraphs = "".join(f"<p>{esc(line)}</p>" for line in lines)
    return f'<div class="notice">{paragraphs}</div>' if paragraphs else ""


def _counts(stages: Iterable[PreviewStage]) -> str:
    """'12/75', or '75/75 + 3/75' of several chunks, of the longest text of the schedule."""
    longest = max(stages, key=lambda stage: stage.tokens)
    chunks = [chunk for part in longest.parts for chunk in part.chunks]
    return " + ".join(f"{chunk.tokens}/{chunk.room}" for chunk in chunks[:8]) + " tokens"


def preview_html(reading: ParsedPrompts, request: PreviewRequest) -> str:
    """HTML of the whole preview: every text with its steps and chunks, every tag with its file."""
    shown = _prompt_section("Prompt", reading.positive, reading)
    if reading.negative:
        shown += _prompt_section("Negative prompt", reading.negative, reading)
    rows = "".join(_tag_row(use, reading.steps) for use in reading.uses)
    tags = f"<h3>LoRAs</h3><dl>{rows}</dl>" if rows else ""
    hints = [] if reading.counted else ["Tokens are counted once the model is on this machine."]
    if request.seed < 0 and ("{" in request.prompt or "__" in request.prompt):
        hints.append("With a random seed, wildcards differ each time; shown here for seed 0.")
    hint = f'<p class="hint">{" ".join(hints)}</p>' if hints else ""
    return f'<div class="parsed">{shown}{tags}{hint}</div>'


def _prompt_section(title: str, seen: PromptPreview, reading: ParsedPrompts) -> str:
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


def _tag_row(use: TagUse, steps: int) -> str:
    if use.problem or use.entry is None:
        return f'<dt>{esc(use.tag.name)}</dt><dd class="bad">{esc(sentence(use.problem))}</dd>'
    text = f"{weights(use.tag, steps)} · {use.entry.full_name}"
    other = [f"; {name_with_folder(path)} has the same name" for path in use.entry.also]
    return f"<dt>{esc(use.tag.name)}</dt><dd>{esc(text + ''.join(other))}</dd>"


def weights(tag: LoraTag, steps: int) -> str:
    """Weights of a tag over the steps, as text."""
    pairs = [tag.at(step, steps) for step in range(steps)]
    unet = [pair[0] for pair in pairs]
    if len(set(unet)) > 1:
        top = max(unet, key=abs)
        extreme = f", {top:g} at most" if top not in (unet[0], unet[-1]) else ""
        return f"weight {unet[0]:g} at first, {unet[-1]:g} at last{extreme}"
    both = pairs[0][0] == pairs[0][1]
    text = "" if both else f", text encoder {pairs[0][1]:g}"
    hires = f", {tag.hires:g} in the hires fix pass" if tag.hires is not None else ""
    return f"weight {unet[0]:g}{text}{hires}"
