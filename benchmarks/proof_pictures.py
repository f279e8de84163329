"""The tables of `benchmarks.proof` as pictures: curves by matplotlib, and what the LoRAs draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.lab import SOMEBODY, STYLE, Lab, tag_of
from sdlora.inference.xy_grid import lay_out
from sdlora.jobs import run_folder
from sdlora.jobs.review import smoothed
from sdlora.starter.sets import SETS

INK, BLUE, ORANGE, VIOLET, GREEN = "#1f2430", "#4c6ef5", "#f08c00", "#7048e8", "#2f9e44"
MEASURES = {
    "style": ("style; 1 is the training set's", BLUE),
    "thing": ("thing told rightly, of all", ORANGE),
    "held out": ("loss held out, of the base's", GREEN),
}
PROMPTS = (
    "a big blue house, night background",
    "a red star, meadow background",
    "a yellow fish, sea background",
    "a green tree, snow background",
)
SHOWN = {
    "without": "", "rank 1": "rank-1", "rank 4": "rank-4", "rank 16": "rank-16",
    "rank 64": "rank-64", "attention\nalone": "style-attention",
    "feed-forward\nalone": "style-feed_forward", "convolutions\nalone": "style-conv",
    "3 pictures,\n400 steps": "by-heart",
}  # fmt: skip


def draw(lab: Lab, table: Mapping[str, Any], folder: Path) -> None:
    """Write the pictures of what was measured into `folder`."""
    curves(lab, table).savefig(folder / "proof.png", dpi=110)
    styles(lab).save(folder / "proof-styles.jpg", quality=88)
    pairs(lab).save(folder / "proof-together.jpg", quality=88)


def curves(lab: Lab, table: Mapping[str, Any]) -> Any:
    """Ranks, weights, the validation curve of a training by heart, and the drift."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"axes.edgecolor": INK, "font.size": 10, "axes.spines.top": False})
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    _ranks(places[0][0], table["ranks"])
    _weights(places[0][1], table["weights"])
    _by_heart(places[1][0], lab)
    _drift(places[1][1], lab)
    for place in places.flat:
        place.spines["right"].set_visible(False)
        place.legend(frameon=False, fontsize=9)
    return figure


def _ranks(place: Any, rows: Mapping[str, Any]) -> None:
    some = {int(name): row for name, row in rows.items() if name.isdigit()}
    for name, (words, colour) in MEASURES.items():
        place.plot(some.keys(), [row[name] for row in some.values()], "o-", c=colour, label=words)
    others = [row["style"] for name, row in rows.items() if "seed" in name]
    place.plot([8] * len(others), others, "x", c=BLUE, label="style, other seeds")
    place.set_xscale("log", base=2)
    place.set_xticks(list(some), [str(rank) for rank in some])
    place.set(xlabel="rank, and alpha", title="Rank, at weight 0.8", ylim=(0, 1.5))


def _weights(place: Any, rows: Mapping[str, Any]) -> None:
    weights = [float(weight) for weight in rows]
    for name in ("style", "thing"):
        words, colour = MEASURES[name]
        place.plot(weights, [row[name] for row in rows.values()], "o-", c=colour, label=words)
    place.set(xlabel="weight", title="Weight, at rank 8")


def _by_heart(place: Any, lab: Lab) -> None:
    state = run_folder.read(lab.workspace.runs / "by-heart")
    enough = run_folder.read(lab.workspace.runs / "rank-16")
    _line(place, smoothed(state.losses), "training, 3 pictures", BLUE)
    _line(place, [(v.step, v.loss) for v in state.validations], "held out, 3 pictures", ORANGE)
    _line(place, [(v.step, v.loss) for v in enough.validations], "held out, 20 pictures", GREEN)
    best, told = state.best, next(w for w in state.warnings if "by heart" in w.message)
    if best:
        place.axvline(best.step, c=ORANGE, ls=":", label=f"best: step {best.step}")
    alarm = max(v.step for v in state.validations if v.at <= told.at)
    place.axvline(alarm, c=INK, ls=":", label=f"alarm: step {alarm}")
    place.set(xlabel="step", title="Learnt by heart: loss", ylim=(0, None))


def _drift(place: Any, lab: Lab) -> None:
    shown = {"rank-1": GREEN, "rank-8": BLUE, "rank-64": VIOLET, "by-heart": ORANGE}
    for name, colour in shown.items():
        state = run_folder.read(lab.workspace.runs / name)
        _line(place, [(v.step, v.drift) for v in state.validations], name, colour)
    place.set(xlabel="step", title="Drift of unrelated pictures", ylim=(0, None))


def _line(place: Any, points: Sequence[tuple[int, float | None]], name: str, colour: str) -> None:
    place.plot(*zip(*points, strict=True), c=colour, label=name)


def styles(lab: Lab) -> Image.Image:
    """What LoRAs of the style draw: a row for each, a column for each prompt."""
    rows = []
    for name, run in SHOWN.items():
        tag = f" <lora:{run}:0.8>" if run else ""
        prompts = [f"{SETS[STYLE].trigger}, {prompt}{tag}" for prompt in PROMPTS]
        rows.append((name, lab.look(prompts).images))
    return lay_out(rows, [prompt.partition(",")[0] for prompt in PROMPTS])


def pair_of(lab: Lab) -> dict[str, str]:
    """Tags of somebody, of the style, and of the two together; both learnt for long."""
    style, somebody = (lab.train(f"{its}-long", its, effort="quality") for its in (STYLE, SOMEBODY))
    tags = tag_of(style, 0.7), tag_of(somebody, 1.0)
    return {"neither": "", "the style": tags[0], "somebody": tags[1], "both": " ".join(tags)}


def called(background: str) -> str:
    """A prompt that calls both."""
    return f"{SETS[STYLE].trigger}, {SOMEBODY}, {background} background"


def pairs(lab: Lab) -> Image.Image:
    """Somebody and a style, alone and together, on four backgrounds."""
    places = ("meadow", "sea", "desert", "snow")
    rows = [
        (name, lab.look(f"{called(place)} {tags}".strip() for place in places).images)
        for name, tags in pair_of(lab).items()
    ]
    return lay_out(rows, list(places))
