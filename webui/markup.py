"""HTML fragments of the page. Every text that is not a constant passes through `esc`."""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdlora.architectures import FAMILIES
from sdlora.errors import SdloraError
from sdlora.events import RunState, SampleReady, Validated, Warned
from sdlora.jobs.heartbeat import IDLE_SHOWN_S, SILENCE_SHOWN_S
from sdlora.jobs.run_folder import unread_lines
from sdlora.lora.library.library import LoraEntry
from sdlora.messages import PAGE, Message, as_message, readable
from webui.app_state import Run
from webui.dataset_upload import UploadResult
from webui.estimates import Cost, measured_cost
from webui.lora_details import FITTING, LoraFilter, LoraMatches, prompt_trigger_words
from webui.media import Media

MAX_POINTS = 500  # of the loss curve
DEFAULT_WEIGHT = 0.8  # of a LoRA without a preferred weight
SMOOTHING = 0.9  # share of the past in the smoothed loss
TIGHT = 0.9  # share of the free memory above which the page warns
NEED_LESS = (
    "Choose gradient checkpointing, a smaller batch size or a smaller resolution under Advanced, "
    "or close what else uses the memory."
)
STATUS_LABELS = {
    "queued": "Waiting",
    "loading": "Getting ready",
    "running": "Running",
    "done": "Done",
    "stopped": "Stopped",
    "paused": "Paused",
    "failed": "Failed",
}


def esc(text: object) -> str:
    """Text escaped for HTML, in an element or in a quoted attribute."""
    return html.escape(readable(str(text)), quote=True)


def duration(seconds: float) -> str:
    """Duration as text: '45 s', '3 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def problem(error: SdloraError | str) -> str:
    """Notice of an error, one sentence a line."""
    message = error.message if isinstance(error, SdloraError) else as_message(error)
    lines = "".join(f"<p>{esc(line)}</p>" for line in message.sentences(PAGE))
    return f'<div class="notice bad" role="alert">{lines}</div>' if lines else ""


def success(message: str, card: str = "", queued_run: str = "") -> str:
    """Notice of a completed action; `card` is the id of the element to show, `queued_run` the name
    of a run at whose end the page's script closes the notice."""
    show = f'<button type="button" class="show" data-show="{esc(card)}">Show it</button>'
    link = f" {show}" if card else ""
    until = f' data-queued="{esc(queued_run)}"' if queued_run else ""
    return (
        f'<div class="notice good" role="status"{until}><p>{esc(sentence(message))}{link}</p></div>'
    )


def queued(run: Run, requested_name: str = "", card: str = "") -> str:
    """Notice of a queued run and its name; `requested_name` is the name that was asked for."""
    renamed = requested_name and run.name != requested_name
    template = "Queued as {name}" if requested_name else "Queued"
    template += ", because {requested} exists" if renamed else ""
    first = (
        Message(template, name=run.name, requested=requested_name) if requested_name else template
    )
    others = [status_line(run.state)] if run.state.ahead else []
    return success(Message.of_lines([first, *others]), card, run.name)


def notices(warnings: Iterable[Warned]) -> str:
    """Notice of warnings, each with its advice."""
    lines = {(sentence(w.message), sentence(w.advice)): None for w in warnings}
    items = "".join(
        f"<li>{esc(message)}{f' <em>{esc(advice)}</em>' if advice else ''}</li>"
        for message, advice in lines
    )
    if not items:
        return ""
    return f'<div class="notice" role="status"><p>Please note</p><ul>{items}</ul></div>'


def sentence(message: str) -> str:
    """A message as whole sentences in the page's wording."""
    return " ".join(as_message(message).sentences(PAGE))


def status_line(state: RunState) -> str:
    """Status of a run in one line of plain text."""
    if state.status == "queued":
        jobs = "1 job comes" if state.ahead == 1 else f"{state.ahead} jobs come"
        return f"{jobs} first" if state.ahead else "Starts in a moment"
    if state.status == "done":
        return f"Finished in {duration(state.seconds)}" if state.seconds else "Finished"
    if state.status in ("stopped", "paused", "failed"):
        return f"At step {state.step} of {state.total}" if state.step else ""
    if state.silent_s >= SILENCE_SHOWN_S:
        return f"No answer for {duration(state.silent_s)}; the run is ended if that continues"
    parts = [f"Step {state.step} of {state.total}"] if state.total and state.step else []
    if state.phase:
        counted = f" {state.phase_done} of {state.phase_total}" if state.phase_total else " …"
        parts.append(state.phase + ("" if state.phase_in_bytes else counted))
    if state.idle_s >= IDLE_SHOWN_S:
        parts.append(f"no progress for {duration(state.idle_s)}")
    elif state.seconds_left is not None and parts:
        parts.append(f"about {duration(state.seconds_left)} left")
    line = " · ".join(parts) or f"Step {state.step} of {state.total}"
    return line[:1].upper() + line[1:]


def _bar(state: RunState) -> str:
    if state.ended or state.status == "queued":
        return ""
    done, total = state.step, state.total
    if state.phase and not (done and total):  # a phase between steps does not reset the bar
        done, total = state.phase_done, state.phase_total
    known = f' max="{total}" value="{done}"' if total else ""
    return f'<progress aria-label="Progress"{known}></progress>'


def run_card(run: Run, title: str, below: str = "") -> str:
    """Card of a run: status, progress, warnings, and the error with its advice if it failed.
    `below`: HTML at its end."""
    state = run.state
    word = STATUS_LABELS[state.status]
    failed = problem(Message.of_lines(filter(None, (state.error, state.advice))))
    warnings = [*state.warnings, *map(Warned, filter(None, [unread_lines(state)]))]
    pill = f'<span class="pill {esc(state.status)}">{word}</span>'
    return (
        f'<section class="run" data-run="{esc(run.name)}" data-live="{str(run.live).lower()}">'
        f"<header><h2>{esc(title)}</h2>{pill}</header>"
        f'{_bar(state)}<p class="line">{esc(status_line(state))}</p>'
        f"{failed}{notices(warnings)}{_details(state)}{below}</section>"
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
    """Grid of images; each opens large, and the link is the file on disk. `reuse`: the files hold
    their generation settings."""
    figures = []
    for picture in pictures:
        link = media.link(picture.path)
        under = f"step {picture.step}" if by_step else f"seed {picture.seed}"
        name = Path(picture.path).name
        buttons = _image_buttons(link, name) if reuse and not small else ""
        if link:
            figures.append(
                f'<figure><a href="{link}" target="_blank" class="picture" '
                f'data-caption="{esc(picture.prompt)}" data-note="{esc(under)}" '
                f'data-name="{esc(name)}"{" data-reuse" if reuse else ""}>'
                f'<img src="{link}{"/small" if small else ""}" alt="{esc(picture.prompt)}">'
                f"</a><figcaption>{esc(under)}{buttons}</figcaption></figure>"
            )
    kind = "pictures strip" if small else "pictures"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def _image_buttons(link: str, name: str) -> str:
    """Buttons of an image."""
    token = link.rpartition("/")[2]
    return (
        f'<span><button type="button" class="act" data-use="{token}">Use these settings</button>'
        f'<a class="act" href="{link}" download="{esc(name)}">Save</a></span>'
    )


def import_notice(name: str, problems: Sequence[str]) -> str:
    """Notice of settings imported from `name`, and of those that could not be."""
    done = success(Message("the settings of {name} are set", name=name))
    return done + notices(Warned(problem) for problem in problems)


def thumbnails(paths: Sequence[Path], media: Media, captions: Sequence[str], label: str) -> str:
    """Row of thumbnails, each with its caption as the title."""
    images = "".join(
        f'<img src="{link}/small" alt="{esc(caption)}" title="{esc(caption)}">'
        for path, caption in zip(paths, captions, strict=True)
        if (link := media.link(path))
    )
    return f'<div class="thumbs" role="group" aria-label="{esc(label)}">{images}</div>'


def lora_card(entry: LoraEntry, picture: str, with_base: bool = True) -> str:
    """Card of a LoRA: a button that puts its tag into the prompt, or takes it out again."""
    facts, weight = entry.facts, default_weight(entry)
    name, trigger_words = esc(entry.full_name), esc(", ".join(entry.trigger_words))
    put_in = esc(", ".join(prompt_trigger_words(entry)))
    hue = zlib.crc32(entry.name.encode("utf-8", "surrogatepass")) % 360
    image = f'<img src="{picture}/small" alt="" loading="lazy">' if picture else ""
    ranked = f"rank {entry.rank}" if entry.rank else ""
    own = f"weight {weight:g}" if facts.preferred_weight else ""
    base = base_title(entry.family) if with_base else ""
    kind = " · ".join(filter(None, (*facts.kinds[:1], ranked, own, base, entry.folder)))
    same = [
        Message("{other} has the same name; this file is used", other=name_with_folder(path))
        for path in entry.also
    ]
    notes = "".join(f"<em>{esc(sentence(note))}</em>" for note in (*facts.notes, *same))
    return (
        f'<button type="button" class="chip" data-tag="{name}" data-words="{put_in}" '
        f'data-weight="{weight:g}" aria-pressed="false" style="--hue:{hue}" '
        f'title="Put &lt;lora:{name}:{weight:g}&gt; into the prompt">'
        f"<i>{esc(entry.name[:1].upper())}{image}</i><span><b>{esc(entry.name)}</b>"
        f"<small>{trigger_words}</small><small>{esc(kind)}</small>{notes}</span>"
        "</button>"
    )


def name_with_folder(path: Path) -> str:
    """File name with its folder, to tell it from another file of the same name."""
    return f"{path.parent.name}/{path.name}"


def base_title(family: str) -> str:
    """Title of the base model that a file is for; '' when it is unknown."""
    return FAMILIES[family].title if family in FAMILIES else ""


def default_weight(entry: LoraEntry) -> float:
    """Weight with which a LoRA is put into the prompt."""
    return entry.facts.preferred_weight or DEFAULT_WEIGHT


def lora_cards(matches: LoraMatches, cards: Sequence[str], lora_filter: LoraFilter) -> str:
    """Cards of the LoRA browser, and a line about those that are not shown."""
    if matches.reading:
        return '<p class="hint" role="status">Reading the LoRA files …</p>'
    lines = [sentence(problem) for problem in matches.problems]
    if not matches.total:
        lines.append("No LoRAs yet. Train one, or put a .safetensors file into loras/.")
    elif not matches.usable:
        lines.append(
            "No LoRA matches." if lora_filter.search else "No LoRA is for this base model."
        )
    elif len(cards) < len(matches.usable):
        lines.append(f"{len(cards)} of {len(matches.usable):,} shown.")
    if matches.other_base and lora_filter.base == FITTING:
        more = "1 more is" if matches.other_base == 1 else f"{matches.other_base:,} more are"
        lines.append(f"{more} for other base models.")
    hint = f'<p class="hint" role="status">{esc(" ".join(lines))}</p>' if lines else ""
    group = f'<div class="chips" role="group" aria-label="LoRAs">{"".join(cards)}</div>'
    return (group if cards else "") + hint + _unusable(matches.broken)


def offers(typed: str, entries: Sequence[LoraEntry]) -> str:
    """Listbox of the LoRAs that complete the `typed` text."""
    options = "".join(
        f'<li role="option" id="offer-{place}" aria-selected="false" '
        f'data-name="{(name := esc(entry.full_name))}" data-weight="{default_weight(entry):g}">'
        f"<b>{name}</b> <small>{esc(', '.join(entry.trigger_words))}</small></li>"
        for place, entry in enumerate(entries)
    )
    return (
        f'<ul role="listbox" id="lora-names" aria-label="LoRAs" data-typed="{esc(typed)}">'
        f"{options}</ul>"
    )


def edited(number: int, text: str) -> str:
    """Element with the new prompt for the page's script, in answer to the click of that number."""
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
    """Loss over the steps: raw values faint, their running average clear; the validation loss with
    them, where there is one."""
    if len(losses) < 2:
        return ""
    smooth, past, weight = [], 0.0, 0.0
    for step, loss in losses:  # `weight` corrects the bias of the zero start, as in Adam
        past = SMOOTHING * past + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((step, past / weight))
    every = -(-len(losses) // MAX_POINTS)
    raw, smooth = list(losses[::every]), smooth[::every]
    held = [(result.step, result.loss) for result in validations if result.loss is not None][
        -MAX_POINTS:
    ]
    top = sorted(loss for _, loss in raw)[int(0.98 * (len(raw) - 1))] or 1.0
    top = max(top, *(loss for _, loss in held)) if held else top
    first, last = min(raw[0][0], *(s for s, _ in held), raw[-1][0]), raw[-1][0]
    now = f"{smooth[-1][1]:.3f}"
    label = f"Loss, from {smooth[0][1]:.3f} at step {first} to {now} at step {last}"
    lines = [
        _line(points, kind, (first, last), top)
        for points, kind in ((raw, "raw"), (smooth, "smooth"), (held, "held-out"))
    ]
    aside = ""
    if held:
        label += f"; validation loss {held[-1][1]:.3f}"
        aside = f'<span class="held-out">validation <b>{held[-1][1]:.3f}</b></span>'
    return (
        f'<figure class="curve"><figcaption><span>Loss</span>{aside}<b>{now}</b></figcaption>'
        f'<svg viewBox="0 0 600 150" preserveAspectRatio="none" role="img" aria-label="{label}">'
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
    """List of the checkpoints, and the advice about which LoRA to use."""
    held = {result.step: result for result in state.validations}
    rows = []
    for step in reversed(steps):
        result = held.get(step)
        loss = f", validation loss {result.loss:.4f}" if result and result.loss is not None else ""
        best = " <b>best</b>" if result and result.best and state.best == result else ""
        rows.append(f"<li>Step {step}{loss}{best}</li>")
    which = Message("suggested checkpoint: {advice}", advice=advice)
    hint = f'<p class="hint">{esc(sentence(which))}</p>' if advice else ""
    if not rows:
        return hint
    many = f"{len(rows)} checkpoint{'s' * (len(rows) != 1)}"
    listed = (
        f"<details class='unusable'><summary>{many}</summary><ul>{''.join(rows)}</ul></details>"
    )
    return hint + listed


def run_label(run: Run) -> str:
    """Entry of a training in a list: name and status."""
    return f"{run.name} · {STATUS_LABELS[run.state.status].lower()}"


def cost_text(cost: Cost, steps: int) -> str:
    """Sentence with the time and memory that a training takes on this machine."""
    text = f"About {duration(cost.step_s * steps)} for {steps} step{'s' * (steps != 1)}"
    if cost.memory is None:
        return f"{text}."
    peak, free = cost.memory
    return f"{text}; peak memory {peak:.1f} GiB of {free:.1f} GiB free."


def measurement_notice(run: Run) -> str:
    """Notice of a measurement's result, with advice where the memory is nearly full."""
    measurement = run.state.measured
    if measurement is None:
        killed = "signal 9" in run.state.error
        reason = "Systems end a process like that when the memory is full."
        return notices([Warned(reason, NEED_LESS)]) if killed else ""
    cost = cost_text(measured_cost(measurement), measurement.steps)
    notice = success(f"{cost} The start and the samples take additional time.")
    if measurement.peak_gib < TIGHT * measurement.free_gib:
        return notice
    template = "that is nearly all of the memory that was free on {device}"
    return notice + notices([Warned(Message(template, device=measurement.device), NEED_LESS)])


def upload_notice(result: UploadResult) -> str:
    """Notice of an upload's result."""
    bare, counts = result.pictures - result.captions, f"{result.pictures} pictures added, "
    counts += f"{result.captions} captions."
    hint = "Pictures without a caption are trained with the trigger word alone." if bare > 0 else ""
    return notices([Warned(counts, hint), *(Warned(problem) for problem in result.problems)])
