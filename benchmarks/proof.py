"""What a LoRA's settings do, measured: `python -m benchmarks.proof [--work DIR] [--output DIR]`.

On the starter model's drawn world, where there are fresh pictures of everything: ranks from 1 to
64, weights, a training that learns its pictures by heart, how far unrelated pictures move, two
LoRAs at once, the text encoder, and which layers carry what at equal parameters. What was trained
stays in `--work`, so that it goes on where it was interrupted. The picture wants matplotlib.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.judge import trained_judge
from benchmarks.lab import SCENES, SOMEBODY, STYLE, Lab, tag_of
from benchmarks.proof_pictures import called, draw, pair_of
from benchmarks.report import show
from benchmarks.strength import stays, words
from sdlora.adapters import attach, detach, trainable_report
from sdlora.events import RunState
from sdlora.models.registry import open_family
from sdlora.settings.train import TrainSettings
from sdlora.starter.measure import scenes_for
from sdlora.workspace import STARTER_MODEL

RANKS = (1, 2, 4, 8, 16, 32, 64)
WEIGHTS = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
GROUPS = ("attention", "feed_forward", "conv")
OF_ATTENTION = 8  # the rank whose parameters the other groups are given too
Row = dict[str, Any]


def of_rank(rank: int) -> Row:
    """An adapter of one rank everywhere, at scale 1."""
    return {"rank": rank, "conv_rank": rank, "alpha": rank}


def style_row(lab: Lab, state: RunState) -> Row:
    """The figures of a run that learnt the style."""
    look, scenes = lab.styled(tag_of(state))
    return {
        "style": look.style,
        "thing": look.share("thing", (scene.thing for scene in scenes)),
        "colour": look.share("colour", (scene.colour for scene in scenes)),
        **figures(state),
    }


def somebody_row(lab: Lab, state: RunState) -> Row:
    """The figures of a run that learnt somebody: seen where called, and where not."""
    tag, scenes = tag_of(state), scenes_for(SOMEBODY, SCENES, seed=11)
    called = lab.look(f"{SOMEBODY}, {scene.background} background {tag}" for scene in scenes)
    others = scenes_for(STYLE, SCENES, seed=11)
    uncalled = lab.look(f"{words(scene)} {tag}" for scene in others)
    return {
        "called": called.share("thing", [SOMEBODY] * SCENES),
        "not called": uncalled.share("thing", [SOMEBODY] * SCENES),
        "background": called.share("background", (scene.background for scene in scenes)),
        **figures(state),
    }


def figures(state: RunState) -> Row:
    """What a run says of itself."""
    first, last, best = state.validations[0], state.validations[-1], state.best
    size = Path(state.result).stat().st_size / 2**20
    return {
        "held out": round((last.loss or 0) / (first.loss or 1), 3),
        "best": round((best.loss or 0) / (first.loss or 1), 3) if best else None,
        "drift": round(last.drift or 0, 3),
        "MiB": round(size, 2),
        "seconds": round(state.seconds),
    }


def ranks(lab: Lab) -> Row:
    """Alpha as high as the rank; one rank with three seeds says how much is chance. Then the lowest
    with the alpha of a higher one, which makes its steps larger, and the other way round."""
    runs = {f"{rank}": lab.train(f"rank-{rank}", **of_rank(rank)) for rank in RANKS}
    for seed in (1, 2):
        runs[f"8, seed {seed}"] = lab.train(f"rank-8-seed-{seed}", **of_rank(8), seed=seed)
    for rank in (1, 64):
        runs[f"{rank}, alpha 8"] = lab.train(f"rank-{rank}-alpha-8", **of_rank(rank) | {"alpha": 8})
    table = {}
    for name, state in runs.items():
        its = style_row(lab, state) if state.result else {"error": state.error}
        table[name] = {"said": [told.message for told in state.warnings], **its}
    return table


def weights(lab: Lab) -> Row:
    """One LoRA at every weight."""
    state = lab.train("rank-8", **of_rank(8))
    table = {}
    for weight in WEIGHTS:
        look, scenes = lab.styled(tag_of(state, weight))
        thing = look.share("thing", (scene.thing for scene in scenes))
        table[f"{weight:g}"] = {"style": look.style, "thing": thing}
    return table


def by_heart(lab: Lab) -> Row:
    """Too few pictures for too long: the curve, what is said of it, and what patience saves."""
    few: Row = {"data": str(lab.few()), "steps": 400, "validate_every": 20, **of_rank(16)}
    table = {}
    for name, changes in (("to the end", {}), ("patience 3", {"patience": 3})):
        state = lab.train(f"by-heart{'-patient' * bool(changes)}", **few, **changes)
        best = state.best
        table[name] = {
            "steps": state.step, "best step": best.step if best else None,
            "said": [one.message for one in state.warnings], **style_row(lab, state),
        }  # fmt: skip
    return table


def together(lab: Lab) -> Row:
    """Somebody in a style: what each LoRA does alone, how much of that is left beside the other,
    and in how many pictures somebody is seen by a judge that knows the style."""
    scenes = scenes_for(SOMEBODY, SCENES, seed=11)
    looks, table = {}, {}
    for name, tags in pair_of(lab).items():
        prompts = (f"{called(scene.background)} {tags}".strip() for scene in scenes)
        look = lab.look(prompts)
        looks[name] = lab.statistics(look.images)
        table[name] = {"style": look.style, "seen": look.share("thing", [SOMEBODY] * SCENES)}
    table["both"]["stays of the style"] = stays(looks, "the style", "somebody")
    table["both"]["stays of somebody"] = stays(looks, "somebody", "the style")
    return table


def text_encoder(lab: Lab) -> Row:
    """With the text encoder's adapter and without."""
    learns = {"train_text_encoder": True, "text_encoder_learning_rate": 5e-4}
    rows = {"off": {}, "on": learns}
    return {
        word: {
            STYLE: style_row(lab, lab.train(f"rank-8{'-text' * bool(its)}", **of_rank(8), **its)),
            SOMEBODY: somebody_row(
                lab, lab.train(f"somebody{'-text' * bool(its)}", SOMEBODY, **its)
            ),
        }
        for word, its in rows.items()
    }


def equal_ranks() -> dict[str, tuple[int, int]]:
    """Group -> (rank, parameters): as many parameters as attention has at OF_ATTENTION."""
    family = open_family(str(STARTER_MODEL), torch.float32, torch.device("cpu"))

    def count(group: str, rank: int) -> int:
        said = {"data": "any", "name": "any", "targets": (group,), "rank": rank, "conv_rank": rank}
        attach(family, TrainSettings.from_values(said))
        trained = trainable_report(family).trained
        detach(family)
        return trained

    goal = count("attention", OF_ATTENTION)
    chosen = {group: round(goal / count(group, 1)) for group in GROUPS}
    return {group: (rank, count(group, rank)) for group, rank in chosen.items()}


def layers(lab: Lab) -> Row:
    """Groups of layers at equal parameters and one scale."""
    table: dict[str, Row] = {STYLE: {}, SOMEBODY: {}}
    for group, (rank, parameters) in equal_ranks().items():
        its = {"targets": (group,), **of_rank(rank)}
        known = {"rank": rank, "parameters": parameters}
        style = style_row(lab, lab.train(f"style-{group}", **its))
        somebody = somebody_row(lab, lab.train(f"somebody-{group}", SOMEBODY, **its))
        table[STYLE][group], table[SOMEBODY][group] = known | style, known | somebody
    return table


PARTS = {
    "ranks": ranks, "weights": weights, "by heart": by_heart, "together": together,
    "text encoder": text_encoder, "layers": layers,
}  # fmt: skip


def main() -> None:
    """Train and measure what is not there yet; then the tables as JSON, and the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kept = Path(tempfile.gettempdir())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, default=kept / "sdlora-proof")
    parser.add_argument("--judge", type=Path, default=kept / "sdlora-judge")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    options = parser.parse_args()
    lab = Lab(options.work, trained_judge(options.judge))
    measured = options.work / "proof.json"
    table: Row = json.loads(measured.read_text("utf-8")) if measured.exists() else {}
    for part in options.parts:
        table[part] = PARTS[part](lab)
        measured.write_text(json.dumps(table, indent=1), encoding="utf-8")
    if PARTS.keys() <= table.keys():  # the pictures show all of it
        draw(lab, table, options.output)
    show(table)


if __name__ == "__main__":
    main()
