"""The pieces of HTML that the page shows. Whatever is not a constant goes through `esc`."""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdlora.architectures import BASES
from sdlora.errors import SdloraError
from sdlora.events import RunState, SampleReady, Validated, Warned
from sdlora.jobs.heartbeat import IDLE_SHOWN_S, SILENCE_SHOWN_S
from sdlora.jobs.run_folder import unread_lines
from sdlora.lora.library.library import LoraEntry
from sdlora.messages import PAGE, Message, as_message, readable
from webui.app_state import Run
from webui.dataset_upload import Added
from webui.estimates import Cost, cost_of
from webui.lora_details import FITTING, LoraFilter, LoraMatches, prompt_words
from webui.media import Media

MOST_POINTS = 500  # of the loss curve
USUAL_WEIGHT = 0.8  # of a LoRA whose maker names none
SMOOTHING = 0.9  # share of the past in the smoothed loss
ROOMY = 0.9  # a share of the free memory that leaves the rest of the machine some
NEED_LESS = (
    "Choose gradient checkpointing, a smaller batch size or a smaller resolution under Advanced, "
    "or close what else uses the memory."
)
STATUS_WORDS = {
    "queued": "Waiting",
    "loading": "Getting ready",
    "running": "Running",
    "done": "Done",
    "stopped": "Stopped",
    "paused": "Paused",
    "failed": "Failed",
}


def esc(text: object) -> str:
    """Text as HTML shows it, in an element or in a quoted attribute."""
    return html.escape(readable(str(text)), quote=True)


def about(seconds: float) -> str:
    """A time to wait in words: '45 s', '3 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def problem(error: SdloraError | str) -> str:
    """A mistake of the user's, one sentence a line."""
    message = error.message if isinstance(error, SdloraError) else as_message(error)
    lines = "".join(f"<p>{esc(line)}</p>" for line in message.sentences(PAGE))
    return f'<div class="notice bad" role="alert">{lines}</div>' if lines else ""


def success(message: str, card: str = "") -> str:
    """What has been done; `card` is the element to look at."""
    show = f'<button type="button" class="show" data-show="{esc(card)}">Show it</button>'
    link = f" {show}" if card else ""
    return f'<div class="notice good" role="status"><p>{esc(sentence(message))}{link}</p></div>'


def queued(run: Run, wish: str = "", card: str = "") -> str:
    """That a run waits now, and as what; `wish` is the name that it was to have."""
    renamed = wish and run.name != wish
    template = "Queued as {name}" if wish else "Queued"
    template += ", because {wish} exists" if renamed else ""
    first = Message(template, name=run.name, wish=wish) if wish else template
    others = [status_line(run.state)] if run.state.ahead else []
    return success(Message.of_lines([first, *others]), card)


def notices(warnings: Iterable[Warned]) -> str:
    """What is not used as the user meant, and what to do about it."""
    said = {(sentence(w.message), sentence(w.advice)): None for w in warnings}
    items = "".join(
        f"<li>{esc(message)}{f' <em>{esc(advice)}</em>' if advice else ''}</li>"
        for message, advice in said
    )
    if not items:
        return ""
    return f'<div class="notice" role="status"><p>Worth knowing</p><ul>{items}</ul></div>'


def sentence(message: str) -> str:
    """A message in the page's words: whole sentences, one after the other."""
    return " ".join(as_message(message).sentences(PAGE))


def status_line(state: RunState) -> str:
    """Where a run stands, in one line of plain text."""
    if state.status == "queued":
        jobs = "1 job comes" if state.ahead == 1 else f"{state.ahead} jobs come"
        return f"{jobs} first" if state.ahead else "Starts in a moment"
    if state.status == "done":
        return f"Finished in {about(state.seconds)}" if state.seconds else "Finished"
    if state.status in ("stopped", "paused", "failed"):
        return f"At step {state.step} of {state.total}" if state.step else ""
    if state.silent_s >= SILENCE_SHOWN_S:
        return f"Does not answer for {about(state.silent_s)}; it is ended if that goes on"
    parts = [f"Step {state.step} of {state.total}"] if state.total and state.step else []
    if state.phase:
        counted = f" {state.phase_done} of {state.phase_total}" if state.phase_total else " …"
        parts.append(state.phase + counted)
    if state.idle_s >= IDLE_SHOWN_S:
        parts.append(f"no progress for {about(state.idle_s)}")
    elif state.seconds_left is not None and parts:
        parts.append(f"about {about(state.seconds_left)} left")
    line = " · ".join(parts) or f"Step {state.step} of {state.total}"
    return line[:1].upper() + line[1:]


def _bar(state: RunState) -> str:
    if state.ended or state.status == "queued":
        return ""
    done, total = state.step, state.total
    if state.phase and not (done and total):  # between steps the bar stays that of the steps
        done, total = state.phase_done, state.phase_total
    known = f' max="{total}" value="{done}"' if total else ""
    return f'<progress aria-label="Progress"{known}></progress>'


def run_card(run: Run, title: str) -> str:
    """A run's status, progress, problems and, if it failed, why and what to do."""
    state = run.state
    word = STATUS_WORDS[state.status]
    failed = problem(Message.of_lines(filter(None, (state.error, state.advice))))
    warnings = [*state.warnings, *map(Warned, filter(None, [unread_lines(state)]))]
    pill = f'<span class="pill {esc(state.status)}">{word}</span>'
    return (
        f'<section class="run" data-run="{esc(run.name)}" data-live="{str(run.live).lower()}">'
        f"<header><h2>{esc(title)}</h2>{pill}</header>"
        f'{_bar(state)}<p class="line">{esc(status_line(state))}</p>'
        f"{failed}{notices(warnings)}{_details(state)}</section>"
    )


def _details(state: RunState) -> str:
    rows = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in state.details.items())
    return f"<details><summary>Details</summary><dl>{rows}</dl></details>" if rows else ""


def gallery(
    pictures: Iterable[SampleReady],
    media: Media,
    small: bool = False,
    by_step: bool = False,
    reuse: bool = False,
) -> str:
    """Pictures in a grid; each opens large, and its file is the one on disk. `reuse`: they say how
    they were made."""
    figures = []
    for picture in pictures:
        link = media.link(picture.path)
        under = f"step {picture.step}" if by_step else f"seed {picture.seed}"
        name = Path(picture.path).name
        if link:
            figures.append(
                f'<figure><a href="{link}" target="_blank" class="picture" '
                f'data-caption="{esc(picture.prompt)}" data-note="{esc(under)}" '
                f'data-name="{esc(name)}"{" data-reuse" if reuse else ""}>'
                f'<img src="{link}{"/small" if small else ""}" alt="{esc(picture.prompt)}">'
                f"</a><figcaption>{esc(under)}{_acts(link, name) if reuse and not small else ''}"
                "</figcaption></figure>"
            )
    kind = "pictures strip" if small else "pictures"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def _acts(link: str, name: str) -> str:
    """What can be done with a picture."""
    token = link.rpartition("/")[2]
    return (
        f'<span><button type="button" class="act" data-use="{token}">Use these settings</button>'
        f'<a class="act" href="{link}" download="{esc(name)}">Save</a></span>'
    )


def restored(name: str, problems: Sequence[str]) -> str:
    """What became of a picture's settings."""
    done = success(Message("the settings of {name} are set", name=name))
    return done + notices(Warned(problem) for problem in problems)


def thumbnails(paths: Sequence[Path], media: Media, captions: Sequence[str], label: str) -> str:
    """A row of small pictures, each with what it shows as its title."""
    images = "".join(
        f'<img src="{link}/small" alt="{esc(caption)}" title="{esc(caption)}">'
        for path, caption in zip(paths, captions, strict=True)
        if (link := media.link(path))
    )
    return f'<div class="thumbs" role="group" aria-label="{esc(label)}">{images}</div>'


def lora_card(entry: LoraEntry, picture: str, with_base: bool = True) -> str:
    """A LoRA as a button that puts its tag into the prompt, or takes it out again."""
    facts, weight = entry.facts, usual_weight(entry)
    name, words = esc(entry.full_name), esc(", ".join(entry.trigger_words))
    put_in = esc(", ".join(prompt_words(entry)))
    hue = zlib.crc32(entry.name.encode("utf-8", "surrogatepass")) % 360
    image = f'<img src="{picture}/small" alt="" loading="lazy">' if picture else ""
    ranked = f"rank {entry.rank}" if entry.rank else ""
    own = f"weight {weight:g}" if facts.preferred_weight else ""
    base = base_title(entry.family) if with_base else ""
    kind = " · ".join(filter(None, (*facts.kinds[:1], ranked, own, base, entry.folder)))
    same = [
        Message("{other} has the same name; this file is used", other=beside(path))
        for path in entry.also
    ]
    notes = "".join(f"<em>{esc(sentence(note))}</em>" for note in (*facts.notes, *same))
    return (
        f'<button type="button" class="chip" data-tag="{name}" data-words="{put_in}" '
        f'data-weight="{weight:g}" aria-pressed="false" style="--hue:{hue}" '
        f'title="Put &lt;lora:{name}:{weight:g}&gt; into the prompt">'
        f"<i>{esc(entry.name[:1].upper())}{image}</i><span><b>{esc(entry.name)}</b>"
        f"<small>{words}</small><small>{esc(kind)}</small>{notes}</span>"
        "</button>"
    )


def beside(path: Path) -> str:
    """A file as it is told from another of its name: with the folder that it lies in."""
    return f"{path.parent.name}/{path.name}"


def base_title(family: str) -> str:
    """The base model a file is for; nothing when that is not known."""
    return BASES[family].title if family in BASES else ""


def usual_weight(entry: LoraEntry) -> float:
    """The weight a LoRA is put into the prompt with."""
    return entry.facts.preferred_weight or USUAL_WEIGHT


def lora_cards(found: LoraMatches, cards: Sequence[str], wish: LoraFilter) -> str:
    """The LoRAs on offer, and what there is to say about those that are not."""
    if found.reading:
        return '<p class="hint" role="status">Reading the LoRA files …</p>'
    lines = [sentence(problem) for problem in found.problems]
    if not found.total:
        lines.append("None yet. Train one, or put a .safetensors file into loras/.")
    elif not found.usable:
        lines.append("None fits." if wish.words else "None is for this base model.")
    elif len(cards) < len(found.usable):
        lines.append(f"{len(cards)} of {len(found.usable):,} shown.")
    if found.other_base and wish.base == FITTING:
        more = "1 more is" if found.other_base == 1 else f"{found.other_base:,} more are"
        lines.append(f"{more} for other base models.")
    hint = f'<p class="hint" role="status">{esc(" ".join(lines))}</p>' if lines else ""
    group = f'<div class="chips" role="group" aria-label="LoRAs">{"".join(cards)}</div>'
    return (group if cards else "") + hint + _unusable(found.broken)


def offers(typed: str, entries: Sequence[LoraEntry]) -> str:
    """The LoRAs that what is `typed` may become, as the options of a list."""
    options = "".join(
        f'<li role="option" id="offer-{place}" aria-selected="false" '
        f'data-name="{(name := esc(entry.full_name))}" data-weight="{usual_weight(entry):g}">'
        f"<b>{name}</b> <small>{esc(', '.join(entry.trigger_words))}</small></li>"
        for place, entry in enumerate(entries)
    )
    return (
        f'<ul role="listbox" id="lora-names" aria-label="LoRAs" data-typed="{esc(typed)}">'
        f"{options}</ul>"
    )


def edited(number: int, text: str) -> str:
    """A prompt for the page's script to put into its box, in answer to the click of that number."""
    return f'<i data-number="{int(number)}" data-text="{esc(text)}"></i>'


def _unusable(entries: Sequence[LoraEntry]) -> str:
    if not entries:
        return ""
    rows = "".join(
        f"<dt>{esc(e.full_name)}</dt><dd>{esc(sentence(e.problem))}</dd>" for e in entries[:50]
    )
    left = f"<p>and {len(entries) - 50:,} more</p>" if len(entries) > 50 else ""
    files = "1 file" if len(entries) == 1 else f"{len(entries):,} files"
    return (
        f'<details class="unusable"><summary>{files} cannot be used</summary>'
        f"<dl>{rows}</dl>{left}</details>"
    )


def loss_curve(losses: Sequence[tuple[int, float]], validations: Sequence[Validated] = ()) -> str:
    """The loss over the steps: every value faint, its running average clear; and beside it that on
    pictures held out, where there are any."""
    if len(losses) < 2:
        return ""
    smooth, past, weight = [], 0.0, 0.0
    for step, loss in losses:  # the weight makes up for the zero that the past begins with
        past = SMOOTHING * past + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((step, past / weight))
    every = -(-len(losses) // MOST_POINTS)
    raw, smooth = list(losses[::every]), smooth[::every]
    held = [(one.step, one.loss) for one in validations if one.loss is not None][-MOST_POINTS:]
    top = sorted(loss for _, loss in raw)[int(0.98 * (len(raw) - 1))] or 1.0
    top = max(top, *(loss for _, loss in held)) if held else top
    first, last = min(raw[0][0], *(s for s, _ in held), raw[-1][0]), raw[-1][0]
    now = f"{smooth[-1][1]:.3f}"
    said = f"Loss, from {smooth[0][1]:.3f} at step {first} to {now} at step {last}"
    lines = [
        _line(points, kind, (first, last), top)
        for points, kind in ((raw, "raw"), (smooth, "smooth"), (held, "held-out"))
    ]
    aside = ""
    if held:
        said += f"; on pictures held out {held[-1][1]:.3f}"
        aside = f'<span class="held-out">on pictures held out <b>{held[-1][1]:.3f}</b></span>'
    return (
        f'<figure class="curve"><figcaption><span>Loss</span>{aside}<b>{now}</b></figcaption>'
        f'<svg viewBox="0 0 600 150" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f"{''.join(lines)}</svg>"
        f"<p><span>step {first}</span><span>step {last}</span></p></figure>"
    )


def _line(
    points: Sequence[tuple[int, float]], kind: str, steps: tuple[int, int], top: float
) -> str:
    across = 600 / max(1, steps[1] - steps[0])
    places = [((s - steps[0]) * across, 150 - 145 * min(v / top, 1)) for s, v in points]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{kind}" points="{drawn}"/>' if places else ""


def checkpoints(steps: Sequence[int], state: RunState, advice: str) -> str:
    """The states that a training can go on from, or be taken back to, and which LoRA to take."""
    held = {one.step: one for one in state.validations}
    rows = []
    for step in reversed(steps):
        one = held.get(step)
        loss = f", loss on pictures held out {one.loss:.4f}" if one and one.loss is not None else ""
        best = " <b>best</b>" if one and one.best and state.best == one else ""
        rows.append(f"<li>Step {step}{loss}{best}</li>")
    which = Message("which one to take: {advice}", advice=advice)
    hint = f'<p class="hint">{esc(sentence(which))}</p>' if advice else ""
    if not rows:
        return hint
    many = f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}"
    listed = (
        f"<details class='unusable'><summary>{many}</summary><ul>{''.join(rows)}</ul></details>"
    )
    return hint + listed


def run_label(run: Run) -> str:
    """A training in a list: its name and where it stands."""
    return f"{run.name} · {STATUS_WORDS[run.state.status].lower()}"


def taken(cost: Cost, steps: int) -> str:
    """What a training takes on this machine, in words."""
    said = f"About {about(cost.step_s * steps)} for {steps} steps"
    if cost.memory is None:
        return f"{said}."
    peak, free = cost.memory
    return f"{said}; {peak:.1f} GiB of {free:.1f} GiB free."


def measured(run: Run) -> str:
    """What a measurement has come to; how to need less where it is tight."""
    told = run.state.measured
    if told is None:
        killed = "signal 9" in run.state.error
        said = "Systems end a process like that when the memory is full."
        return notices([Warned(said, NEED_LESS)]) if killed else ""
    words = f"{taken(cost_of(told), told.steps)} Samples and the start come on top."
    said = success(words)
    if told.peak_gib < ROOMY * told.free_gib:
        return said
    template = "that is nearly all of the memory that was free on {device}"
    return said + notices([Warned(Message(template, device=told.device), NEED_LESS)])


def added(result: Added) -> str:
    """What became of dropped files."""
    bare, said = result.pictures - result.captions, f"{result.pictures} pictures added, "
    said += f"{result.captions} captions."
    hint = "Pictures without one are learnt by the trigger word alone." if bare > 0 else ""
    return notices([Warned(said, hint), *(Warned(problem) for problem in result.problems)])
