"""Base models as HTML: cards to choose from, and a line about the chosen one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from sdlora.assets.checkpoints import PREDICTIONS, TOLD_BY, CheckpointEntry
from sdlora.messages import PAGE, Message
from webui.markup import esc, sentence
from webui.media import Media

MAX_UNUSABLE = 50  # listed; a search shows the others


def model_facts_text(entry: CheckpointEntry) -> str:
    """Return a usable model's facts in one line."""
    info = entry.info
    snr = " with zero terminal SNR" if info.zero_terminal_snr else ""
    told_by = TOLD_BY[info.told_by]
    lacks_vae = "VAE" in entry.missing_parts()
    signs = [
        entry.family_title,
        f"predicts {PREDICTIONS[info.prediction]}{snr} ({told_by})",
        _size(entry),
        info.dtype,
        "no VAE inside" if lacks_vae else "VAE inside",
        "no text encoder inside" if "text encoder" in entry.missing_parts() else "",
        "inpainting" if info.inpainting else "",
        "for few steps" if info.few_steps else "",
    ]
    return " · ".join(filter(None, signs))


def model_advice(entry: CheckpointEntry) -> list[str]:
    """Return sentences about what a user must do to use a model."""
    advice = [
        f"It has no {part}: name a file or a model that has one in the settings."
        for part in entry.missing_parts()
    ]
    if entry.info.few_steps:
        advice.append("It is made for few steps: 4 to 8, with a guidance of 1 to 2.")
    return [*advice, *(sentence(note) for note in entry.info.notes)]


def about_model(entry: CheckpointEntry, media: Media) -> str:
    """Picture and facts of the chosen model; its problem where it cannot be used."""
    if entry.problem:
        return model_problem(entry.problem)
    claims = entry.info.claims
    claimed = " ".join(filter(None, (claims.title, claims.version)))
    rows = [model_facts_text(entry)]
    rows += [f"{claims.by or 'A file beside it'} calls it {claimed}"] if claimed else []
    rows += [f"hash {entry.autov2}"] if entry.autov2 else []
    hints = "".join(f"<em>{esc(text)}</em>" for text in model_advice(entry))
    small = "".join(f"<small>{esc(row)}</small>" for row in rows)
    return (
        f'<div class="model-about">{_letter(entry, media)}'
        f"<span><b>{esc(entry.name)}</b>{small}{hints}</span></div>"
    )


def model_problem(message: str) -> str:
    """Reason why a model cannot be used."""
    text = message.on(PAGE) if isinstance(message, Message) else message
    return f'<p class="hint model-problem" role="alert">{esc(sentence(text))}</p>'


def model_cards(entries: Sequence[CheckpointEntry], chosen: str, media: Media, limit: int) -> str:
    """Cards of the usable models, at most `limit`, and the others with their reasons."""
    usable = [entry for entry in entries if not entry.problem]
    cards = "".join(_card(entry, entry.name == chosen, media) for entry in usable[:limit])
    hint = "" if usable else "No model matches."
    if len(usable) > limit:
        hint = f"{limit} of {len(usable):,} shown; search for the others."
    group = f'<div class="chips" role="group" aria-label="Models">{cards}</div>' if cards else ""
    line = f'<p class="hint" role="status">{esc(hint)}</p>' if hint else ""
    return group + line + _unusable([entry for entry in entries if entry.problem])


def _card(entry: CheckpointEntry, is_chosen: bool, media: Media) -> str:
    name = esc(entry.name)
    return (
        f'<button type="button" class="chip" data-model="{name}" '
        f'aria-pressed="{str(is_chosen).lower()}" title="Use {name}">{_letter(entry, media)}'
        f"<span><b>{name}</b><small>{esc(entry.family_title)} · {_size(entry)}</small>"
        f"<small>{esc(_signs(entry))}</small></span></button>"
    )


def _size(entry: CheckpointEntry) -> str:
    gib = entry.size_gib
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib * 1024:.0f} MiB"


def _signs(entry: CheckpointEntry) -> str:
    """Return the facts that set a model apart from others of its family."""
    info = entry.info
    signs = [
        "predicts v" if info.prediction == "v_prediction" else "",
        "inpainting" if info.inpainting else "",
        "for few steps" if info.few_steps else "",
        *(f"no {part}" for part in entry.missing_parts()),
        "/".join(entry.name.split("/")[:-1]),
    ]
    return " · ".join(filter(None, signs))


def _letter(entry: CheckpointEntry, media: Media) -> str:
    """The preview picture, over the first letter of the name on a colour of its own."""
    hue = zlib.crc32(entry.name.encode("utf-8", "surrogatepass")) % 360
    link = media.link(entry.preview) if entry.preview else ""
    image = f'<img src="{link}/small" alt="" loading="lazy">' if link else ""
    return f'<i style="--hue:{hue}">{esc(entry.name[:1].upper())}{image}</i>'


def _unusable(entries: Sequence[CheckpointEntry]) -> str:
    if not entries:
        return ""
    rows = "".join(
        f"<dt>{esc(e.name)}</dt><dd>{esc(sentence(e.problem.on(PAGE)))}</dd>"
        for e in entries[:MAX_UNUSABLE]
    )
    left = len(entries) - MAX_UNUSABLE
    more = f"<p>and {left:,} more</p>" if left > 0 else ""
    count = "1 model" if len(entries) == 1 else f"{len(entries):,} models"
    return (
        f'<details class="unusable"><summary>{count} cannot be used</summary>'
        f"<dl>{rows}</dl>{more}</details>"
    )
