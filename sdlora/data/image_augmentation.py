"""The views of a picture: how it is cut, mirrored and coloured before it is encoded.

A picture's views are few and fixed, so that each is encoded once: which of them a step sees is
drawn then. The first is always the middle as it is.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdlora.settings.train import TrainSettings


class ImageView(NamedTuple):
    """`centre`: where the cut lies between the left and upper (0) and the right and lower edge (1).
    `colours`: factors of brightness, contrast and saturation. `paper` is behind see-through parts.
    """

    centre: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)
    paper: str = "white"

    @property
    def key(self) -> Mapping[str, Any]:
        """All that changes what is encoded."""
        return self._asdict()


def seeded_random(seed: int, *stream: int | str) -> random.Random:
    """Randomness of one stream, such as (seed, step, picture): a pure function of the arguments.
    `device.generator_for` for those who do without torch."""
    digest = hashlib.sha256(json.dumps([seed, *stream]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def image_views(settings: TrainSettings, picture: str) -> tuple[ImageView, ...]:
    """The views of a picture, `picture` being what tells it from others; its mirror images, if
    asked for, each after the view that they mirror."""
    paper = "black" if settings.transparency == "black" else "white"
    moves, colours = settings.crop_jitter, settings.colour_jitter
    views: list[ImageView] = []
    for variant in range(settings.picture_variants if moves or colours else 1):
        rng = seeded_random(settings.seed, "view", variant, picture) if variant else None
        view = ImageView(_centre(rng, moves), False, _factors(rng, colours), paper)
        views += [view, view._replace(mirrored=True)] if settings.flip else [view]
    return tuple(views)


def _centre(rng: random.Random | None, jitter: float) -> tuple[float, float]:
    if rng is None or not jitter:
        return 0.5, 0.5
    across, down = (0.5 + jitter * (rng.random() - 0.5) for _ in range(2))
    return across, down


def _factors(rng: random.Random | None, jitter: float) -> tuple[float, float, float]:
    """Each between 1 / (1 + jitter) and 1 + jitter, up and down alike."""
    if rng is None or not jitter:
        return 1.0, 1.0, 1.0
    bright, contrast, colour = ((1 + jitter) ** (2 * rng.random() - 1) for _ in range(3))
    return bright, contrast, colour
