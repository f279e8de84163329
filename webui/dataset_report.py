"""The dataset report on the page: every picture of a set as the training will see it."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.data.folder import Problem, to_warnings
from sdlora.data.report import CaptionRow, Preflight
from sdlora.settings.train import TrainSettings
from webui.estimates import Cost
from webui.markup import cost_text, esc, notices, sentence
from webui.media import Media

MAX_CARDS = 60


def report(preflight: Preflight, media: Media, cost: Cost | None) -> str:
    """HTML of a dataset report: problems first, then the pictures, those with problems before the
    others."""
    rows = sorted(preflight.rows, key=lambda row: not row.problems)
    left = len(rows) - MAX_CARDS
    more = f'<p class="hint">And {left} more like the last ones.</p>' if left > 0 else ""
    cards = "".join(_picture_card(row, media) for row in rows[:MAX_CARDS])
    return (
        f'<section class="preflight">{_summary(preflight, cost)}'
        f"{notices(to_warnings([*preflight.general, *_by_fault(preflight.others)]))}"
        f'<div class="checked" tabindex="0" role="group" aria-label="Every picture">{cards}</div>'
        f"{more}{_tags(preflight)}</section>"
    )


def plan(settings: TrainSettings, pictures: int, cost: Cost | None) -> str:
    """One line with the number of pictures, the steps and the time that they take."""
    if not pictures:
        return '<p class="hint">Choose a set of pictures.</p>'
    if settings.epochs:
        return f'<p class="hint">{pictures} pictures, {settings.epochs} epochs.</p>'
    took = cost_text(cost, settings.steps) if cost else "The time left is shown once it runs."
    return f'<p class="hint">{pictures} pictures, {settings.steps} steps. {esc(took)}</p>'


def _by_fault(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.message, problem.path))


def _summary(preflight: Preflight, cost: Cost | None) -> str:
    wrong = sum(bool(row.problems) for row in preflight.rows)
    sizes = ", ".join(
        f"{count} at {b.width} × {b.height}" for b, count in preflight.buckets.items()
    )
    steps = preflight.settings.steps
    parts = [
        f"{len(preflight.rows)} pictures: {sizes}.",
        f"{wrong} with problems." if wrong else "No problems found.",
        f"{steps} steps, {preflight.steps_per_round} per epoch: each picture is seen "
        f"{preflight.rounds:.0f} times.",
        cost_text(cost, steps) if cost else "",
    ]
    return f'<p class="hint">{esc(" ".join(filter(None, parts)))}</p>'


def _picture_card(row: CaptionRow, media: Media) -> str:
    name, problems = row.example.image.name, row.problems
    facts = [f"{row.bucket.width} × {row.bucket.height}", f"scaled by {row.cut.scale:.2f}"]
    facts += [row.length] if row.length else []
    facts += [f"{row.example.repeats} times"] if row.example.repeats > 1 else []
    facts += ["regularisation"] if row.example.regularisation else []
    facts += ["validation"] if row.held_out else []
    facts += ["masked"] if row.example.mask else []
    wrong = "".join(
        f"<em>{esc(sentence(problem.message_beside(row.example.image)))}</em>"
        for problem in problems
    )
    return (
        f'<figure class="{"worth" if problems else ""}">{_framed_picture(row, media)}<figcaption>'
        f"<b>{esc(name)}</b><small>{esc(' · '.join(facts))}</small>"
        f"<p>{esc(row.caption) or 'no caption'}</p>{wrong}</figcaption></figure>"
    )


def _framed_picture(row: CaptionRow, media: Media) -> str:
    """The picture with a frame around the part that the training sees."""
    (width, height), cut = row.example.size, row.cut
    link = media.link(row.example.image)
    if not link:
        return '<span class="shot"></span>'
    frame = (
        f"left:{cut.left / width:.2%};top:{cut.top / height:.2%};"
        f"width:{cut.width / width:.2%};height:{cut.height / height:.2%}"
    )
    image = f'<img src="{link}/small" alt="{esc(row.caption)}" loading="lazy">'
    return f'<span class="shot"><span>{image}<i style="{frame}"></i></span></span>'


def _tags(preflight: Preflight) -> str:
    tags = "".join(f"<li>{esc(tag)} <b>{count}</b></li>" for tag, count in preflight.tags.items())
    summary = f"<summary>{len(preflight.tags)} tags in the captions</summary>"
    return f'<details class="tags">{summary}<ul>{tags}</ul></details>' if tags else ""
