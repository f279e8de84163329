"""The four training sets that ship with the program: `python -m sdlora.starter.sets`.

Three styles and one character that the starter model has never seen. The same script gives the same
files, and `ShippedSet.draw` gives a benchmark fresh pictures of each set.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from sdlora.starter.draw import BACKGROUNDS, COLOURS, PLACE_WORDS, THINGS, Scene, draw
from sdlora.starter.looks import PIXELS, cyberpunk, draw_zibo, impressionist, neon

__all__ = [
    "SETS",
    "ShippedSet",
    "cyberpunk",
    "draw_shipped_sets",
    "draw_zibo",
    "impressionist",
    "neon",
    "pictures",
    "write_sets",
]

T = TypeVar("T")
PICTURES = 20
# Few small things: a style shows best where there is room for it.
SET_SIZES = ("big", "medium", "big", "medium", "small")
SET_PLACES = ("middle", "left", "middle", "right", "top", "bottom")


def _impressionist_scene(scene: Scene, pixels: int = PIXELS) -> Image.Image:
    return impressionist(draw(scene, pixels), random.Random(scene.seed))


def _even(choices: Sequence[T], rng: random.Random) -> list[T]:
    """PICTURES picks, each choice as often as any other (give or take one), in random order."""
    picks = [
        choice
        for _ in range(-(-PICTURES // len(choices)))
        for choice in rng.sample(list(choices), len(choices))
    ]
    return rng.sample(picks[:PICTURES], PICTURES)


def _scenes(things: Sequence[str]) -> Callable[[random.Random], list[Scene]]:
    """Scenes of these things that share nothing but the style.

    Things, colours, backgrounds, sizes and places come evenly; no colour twice on one background.
    """

    def make(rng: random.Random) -> list[Scene]:
        pairs: list[tuple[str, str]] = []
        while len(set(pairs)) < PICTURES:
            pairs = list(zip(_even(tuple(COLOURS), rng), _even(BACKGROUNDS, rng), strict=True))
        columns = zip(
            _even(things, rng), pairs, _even(SET_SIZES, rng), _even(SET_PLACES, rng), strict=True
        )
        return [
            Scene(thing, *pair, size, place, rng.randrange(2**31))
            for thing, pair, size, place in columns
        ]

    return make


def _where(scene: Scene) -> str:
    return "" if scene.place == "middle" else f" {PLACE_WORDS[scene.place]}"


def _thing_words(scene: Scene) -> str:
    """'a big red ball on the left, sea background'; medium and middle go unsaid."""
    size = "" if scene.size == "medium" else f"{scene.size} "
    article = "an" if (size + scene.colour)[0] in "aeiou" else "a"
    thing = f"{article} {size}{scene.colour} {scene.thing}{_where(scene)}"
    return f"{thing}, {scene.background} background"


def _zibo_words(scene: Scene) -> str:
    size = "" if scene.size == "medium" else f", {scene.size}"
    place = f",{_where(scene)}" if _where(scene) else ""
    return f"{scene.background} background{size}{place}"


class DrawScene(Protocol):
    """A drawing of scenes, as large as asked for."""

    def __call__(self, scene: Scene, pixels: int = PIXELS) -> Image.Image:
        """Draw a scene, `pixels` square."""


@dataclass(frozen=True)
class ShippedSet:
    """One shipped folder: its trigger word; how its scenes are chosen, drawn and put in words."""

    trigger: str
    draw: DrawScene
    describe: Callable[[Scene], str]
    scenes: Callable[[random.Random], list[Scene]]

    def caption(self, scene: Scene) -> str:
        """The sidecar's text: the trigger, then what is to be seen."""
        return f"{self.trigger}, {self.describe(scene)}"


SETS: dict[str, ShippedSet] = {
    "impressionist_style": ShippedSet(
        "impressionist style", _impressionist_scene, _thing_words, _scenes(THINGS)
    ),
    "neon_lighting": ShippedSet("neon lighting", neon, _thing_words, _scenes(THINGS)),
    "cyberpunk_architecture": ShippedSet(
        "cyberpunk architecture", cyberpunk, _thing_words, _scenes(("house",))
    ),
    "zibo": ShippedSet("zibo", draw_zibo, _zibo_words, _scenes(("zibo",))),
}


def pictures(name: str) -> Iterator[tuple[str, str, Scene]]:
    """(file stem, caption, scene) of every picture in the set `name`, always the same."""
    chosen = SETS[name]
    for number, scene in enumerate(chosen.scenes(random.Random(name)), 1):
        stem_words = chosen.describe(scene).removesuffix(" background").replace(",", "").split()
        yield f"{number:02}_{'_'.join(stem_words)}", chosen.caption(scene), scene


def write_sets(folder: Path) -> int:
    """Write the sets below `folder`; returns how many pictures were new. Existing files stay."""
    new = 0
    for name, chosen in SETS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stem, text, scene in pictures(name):
            picture, sidecar = (folder / name / f"{stem}{ending}" for ending in (".png", ".txt"))
            if not picture.exists():
                chosen.draw(scene).save(picture, optimize=True)
                new += 1
            if not sidecar.exists():
                sidecar.write_text(text + "\n", encoding="utf-8")
    return new


def draw_shipped_sets(folder: Path) -> None:
    """Write the sets into `folder`, which appears whole or not at all. Another process may do the
    same meanwhile: the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder.parent) as temporary:
        drawn = Path(temporary) / folder.name
        write_sets(drawn)
        try:
            drawn.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the four training sets.")
    parser.add_argument("--output", type=Path, default=Path("training_data"), help="where to")
    output = parser.parse_args().output
    print(f"{write_sets(output)} new pictures in {output}; files that were there are kept.")
