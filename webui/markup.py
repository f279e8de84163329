"""The pieces of HTML that the page shows. Whatever is not a constant goes through `esc`."""

from __future__ import annotations

import html
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdlora.events import RunState, SampleReady, Warned
from sdlora.lora.library import LoraEntry
from sdlora.settings import TrainSettings
from webui.datasets import Added
from webui.media import Media
from webui.studio import Run

MOST_POINTS = 500  # of the loss curve
SMOOTHING = 0.9  # share of the past in the smoothed loss
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
    return html.escape(str(text), quote=True)


def about(seconds: float) -> str:
    """A time to wait in words: '45 s', '3 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def problem(message: str) -> str:
    """A mistake of the user's, one sentence a line."""
    lines = "".join(f"<p>{esc(line)}</p>" for line in message.splitlines())
    return f'<div class="notice bad" role="alert">{lines}</div>' if lines else ""


def notices(warnings: Iterable[Warned]) -> str:
    """What is not used as the user meant, and what to do about it."""
    said = {(w.message, w.advice): None for w in warnings}
    items = "".join(
        f"<li>{esc(message)}{f' <em>{esc(advice)}</em>' if advice else ''}</li>"
        for message, advice in said
    )
    if not items:
        return ""
    return f'<div class="notice" role="status"><p>Worth knowing</p><ul>{items}</ul></div>'


def status_line(state: RunState) -> str:
    """Where a run stands, in one line of plain text."""
    if state.status == "queued":
        jobs = "1 job comes" if state.ahead == 1 else f"{state.ahead} jobs come"
        return f"{jobs} first" if state.ahead else "Starts in a moment"
    if state.status == "done":
        return f"Finished in {about(state.seconds)}" if state.seconds else "Finished"
    if state.status in ("stopped", "paused", "failed"):
        return f"At step {state.step} of {state.total}" if state.step else ""
    if state.phase:
        counted = f" {state.phase_done} of {state.phase_total}" if state.phase_total else " …"
        return state.phase[:1].upper() + state.phase[1:] + counted
    left = f" · about {about(state.seconds_left)} left" if state.seconds_left is not None else ""
    return f"Step {state.step} of {state.total}{left}"


def _bar(state: RunState) -> str:
    if state.ended or state.status == "queued":
        return ""
    done, total = state.step, state.total
    if state.phase:
        done, total = state.phase_done, state.phase_total
    known = f' max="{total}" value="{done}"' if total else ""
    return f'<progress aria-label="Progress"{known}></progress>'


def run_card(run: Run, title: str) -> str:
    """A run's status, progress, problems and, if it failed, why and what to do."""
    state = run.state
    word = STATUS_WORDS[state.status]
    failed = problem("\n".join(filter(None, (state.error, state.advice))))
    pill = f'<span class="pill {esc(state.status)}">{word}</span>'
    return (
        f'<section class="run" data-run="{esc(run.name)}" data-live="{str(run.live).lower()}">'
        f"<header><h2>{esc(title)}</h2>{pill}</header>"
        f'{_bar(state)}<p class="line">{esc(status_line(state))}</p>'
        f"{failed}{notices(state.warnings)}{_details(state)}</section>"
    )


def _details(state: RunState) -> str:
    rows = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in state.details.items())
    return f"<details><summary>Details</summary><dl>{rows}</dl></details>" if rows else ""


def gallery(
    pictures: Iterable[SampleReady], media: Media, small: bool = False, by_step: bool = False
) -> str:
    """Pictures in a grid; each opens large, and its file is the one on disk."""
    figures = []
    for picture in pictures:
        link = media.link(picture.path)
        under = f"step {picture.step}" if by_step else f"seed {picture.seed}"
        if link:
            figures.append(
                f'<figure><a href="{link}" target="_blank" class="picture" '
                f'data-caption="{esc(picture.prompt)}" data-note="{esc(under)}">'
                f'<img src="{link}{"/small" if small else ""}" alt="{esc(picture.prompt)}">'
                f"</a><figcaption>{esc(under)}</figcaption></figure>"
            )
    kind = "pictures strip" if small else "pictures"
    return f'<div class="{kind}">{"".join(figures)}</div>' if figures else ""


def thumbnails(paths: Sequence[Path], media: Media, captions: Sequence[str], label: str) -> str:
    """A row of small pictures, each with what it shows as its title."""
    images = "".join(
        f'<img src="{link}/small" alt="{esc(caption)}" title="{esc(caption)}">'
        for path, caption in zip(paths, captions, strict=True)
        if (link := media.link(path))
    )
    return f'<div class="thumbs" role="group" aria-label="{esc(label)}">{images}</div>'


def chip(entry: LoraEntry, picture: str) -> str:
    """A LoRA as a button that puts its tag into the prompt, or takes it out again."""
    name, words = esc(entry.full_name), esc(", ".join(entry.trigger_words))
    hue = zlib.crc32(entry.name.encode()) % 360
    face = f"<i>{esc(entry.name[:1].upper())}</i>"
    if picture:
        face = f'<img src="{picture}/small" alt="">'
    under = words or (f"rank {entry.rank}" if entry.rank else "")
    hint = esc(entry.problem) or f"Put &lt;lora:{name}:0.8&gt; into the prompt"
    disabled = " disabled" if entry.problem else ""
    return (
        f'<button type="button" class="chip" data-tag="{name}" data-words="{words}"{disabled} '
        f'aria-pressed="false" title="{hint}" style="--hue:{hue}">'
        f"{face}<span><b>{name}</b><small>{under}</small></span></button>"
    )


def chips(buttons: Sequence[str]) -> str:
    """The LoRAs on offer."""
    if not buttons:
        return '<p class="hint">None yet. Train one, or put a .safetensors file into loras/.</p>'
    return f'<div class="chips" role="group" aria-label="LoRAs">{"".join(buttons)}</div>'


def loss_curve(losses: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps: every value faint, its running average clear."""
    if len(losses) < 2:
        return ""
    smooth, past, weight = [], 0.0, 0.0
    for step, loss in losses:  # the weight makes up for the zero that the past begins with
        past = SMOOTHING * past + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((step, past / weight))
    every = -(-len(losses) // MOST_POINTS)
    raw, smooth = list(losses[::every]), smooth[::every]
    top = sorted(loss for _, loss in raw)[int(0.98 * (len(raw) - 1))] or 1.0
    first, last = raw[0][0], raw[-1][0]

    def line(points: Sequence[tuple[int, float]], kind: str) -> str:
        across = 600 / max(1, last - first)
        places = [((s - first) * across, 150 - 145 * min(v / top, 1)) for s, v in points]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        return f'<polyline class="{kind}" points="{drawn}"/>'

    now = f"{smooth[-1][1]:.3f}"
    said = f"Loss, from {smooth[0][1]:.3f} at step {first} to {now} at step {last}"
    return (
        f'<figure class="curve"><figcaption><span>Loss</span><b>{now}</b></figcaption>'
        f'<svg viewBox="0 0 600 150" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f"{line(raw, 'raw')}{line(smooth, 'smooth')}</svg>"
        f"<p><span>step {first}</span><span>step {last}</span></p></figure>"
    )


def run_label(run: Run) -> str:
    """A training in a list: its name and where it stands."""
    return f"{run.name} · {STATUS_WORDS[run.state.status].lower()}"


def plan(settings: TrainSettings, pictures: int, seconds_per_step: float | None) -> str:
    """What a training will do, in one line."""
    if not pictures:
        return '<p class="hint">Choose a set of pictures.</p>'
    seen = settings.steps * settings.batch_size * settings.gradient_accumulation / pictures
    times = max(1, round(seen))
    took = "The time left is shown once it runs."
    if seconds_per_step:
        took = f"About {about(seconds_per_step * settings.steps)} on this machine."
    said = f"{pictures} pictures, {settings.steps} steps: each is seen about {times} times."
    return f'<p class="hint">{esc(said)} {esc(took)}</p>'


def added(result: Added) -> str:
    """What became of dropped files."""
    without = result.pictures - result.captions
    said = f"{result.pictures} pictures added, {result.captions} captions."
    hint = "Pictures without one are learnt by the trigger word alone." if without > 0 else ""
    return notices([Warned(said, hint), *(Warned(problem) for problem in result.problems)])
