"""The preflight on the page: every picture of a set as the training would see it."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.data.folder import Problem, to_warnings
from sdlora.data.report import CaptionRow, Preflight
from sdlora.settings.train import TrainSettings
from webui.estimates import Cost
from webui.markup import esc, notices, sentence, taken
from webui.media import Media

MOST_CARDS = 60


def report(found: Preflight, media: Media, cost: Cost | None) -> str:
    """What is wrong first, then the pictures: those to look at before the others."""
    rows = sorted(found.rows, key=lambda row: not row.problems)
    left = len(rows) - MOST_CARDS
    more = f'<p class="hint">And {left} more like the last ones.</p>' if left > 0 else ""
    cards = "".join(_card(row, media) for row in rows[:MOST_CARDS])
    return (
        f'<section class="preflight">{_line(found, cost)}'
        f"{notices(to_warnings([*found.general, *_by_place(found.others)]))}"
        f'<div class="checked" tabindex="0" role="group" aria-label="Every picture">{cards}</div>'
        f"{more}{_tags(found)}</section>"
    )


def plan(settings: TrainSettings, pictures: int, cost: Cost | None) -> str:
    """What a training will do, in one line."""
    if not pictures:
        return '<p class="hint">Choose a set of pictures.</p>'
    if settings.epochs:
        return f'<p class="hint">{pictures} pictures, {settings.epochs} epochs.</p>'
    took = taken(cost, settings.steps) if cost else "The time left is shown once it runs."
    return f'<p class="hint">{pictures} pictures, {settings.steps} steps. {esc(took)}</p>'


def _by_place(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.message, problem.path))


def _line(found: Preflight, cost: Cost | None) -> str:
    wrong = sum(bool(row.problems) for row in found.rows)
    sizes = ", ".join(f"{count} at {b.width} × {b.height}" for b, count in found.buckets.items())
    steps = found.settings.steps
    said = [
        f"{len(found.rows)} pictures: {sizes}.",
        f"{wrong} to look at." if wrong else "Nothing to mend.",
        f"{steps} steps in rounds of {found.steps_per_round}: each is seen "
        f"{found.rounds:.0f} times.",
        taken(cost, steps) if cost else "",
    ]
    return f'<p class="hint">{esc(" ".join(filter(None, said)))}</p>'


def _card(row: CaptionRow, media: Media) -> str:
    name, problems = row.example.image.name, row.problems
    facts = [f"{row.bucket.width} × {row.bucket.height}", f"scaled by {row.cut.scale:.2f}"]
    facts += [row.length] if row.length else []
    facts += [f"{row.example.repeats} times"] if row.example.repeats > 1 else []
    facts += ["regularisation"] if row.example.regularisation else []
    facts += ["held out"] if row.held_out else []
    facts += ["masked"] if row.example.mask else []
    wrong = "".join(
        f"<em>{esc(sentence(problem.message_beside(row.example.image)))}</em>"
        for problem in problems
    )
    return (
        f'<figure class="{"worth" if problems else ""}">{_shot(row, media)}<figcaption>'
        f"<b>{esc(name)}</b><small>{esc(' · '.join(facts))}</small>"
        f"<p>{esc(row.caption) or 'no caption'}</p>{wrong}</figcaption></figure>"
    )


def _shot(row: CaptionRow, media: Media) -> str:
    """The picture, and a frame around what of it is learnt."""
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


def _tags(found: Preflight) -> str:
    tags = "".join(f"<li>{esc(tag)} <b>{count}</b></li>" for tag, count in found.tags.items())
    said = f"<summary>{len(found.tags)} tags in the captions</summary>"
    return f'<details class="tags">{said}<ul>{tags}</ul></details>' if tags else ""
