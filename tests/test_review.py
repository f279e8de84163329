"""After a run: its curves, the LoRA to take, every checkpoint at every strength."""

from pathlib import Path

import pytest
from PIL import Image

from sdlora.errors import RunError, SettingsError
from sdlora.events import Done, RunState, Saved, Started, Step, Validated, fold
from sdlora.grid import SIDE, draw_grid
from sdlora.review import HELD_OUT, SMOOTH, GridSettings, averaged, draw_curves, suggestion
from sdlora.settings import TrainSettings
from sdlora.train import train
from sdlora.workspace import Workspace
from test_resume import Interrupted


def ended(*figures: Validated, result: str = "zibo.safetensors") -> RunState:
    steps = [Step(n, 10, loss=1.0 / n) for n in range(1, 11)]
    return fold([Started("t", 10), *steps, *figures, Saved(result, 10), Done(result)])


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "state" / f"step-{step:06}" / f"zibo-step-{step:06}.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_suggestion_is_the_best_validation_with_its_reason(tmp_path: Path) -> None:
    best = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8)
    state = ended(Validated(4, 0.2, best=True), Validated(8, 0.3))
    found = suggestion(tmp_path, state)
    assert found and found.path == best
    assert "after step 4" in found.reason and "0.2000" in found.reason and "0.3000" in found.reason
    for figures, reason in (
        ((), "no pictures were held out"),
        ((Validated(10, 0.1, True),), "best"),
    ):
        last = suggestion(tmp_path, ended(*figures))
        assert last and last.path == Path("zibo.safetensors") and reason in last.reason
    killed = fold([Started("t", 10), Step(9, 10)])
    found = suggestion(tmp_path, killed)
    assert found and "step-000008" in found.path.name
    assert suggestion(tmp_path / "none", killed) is None


def test_the_curves_are_where_the_figures_are() -> None:
    held = [Validated(step, 0.8) for step in (0, 5, 10)]
    image = draw_curves(ended(*held), "zibo")
    width, height = image.size
    found = {
        colour: [y for y in range(height) if image.getpixel((width // 2, y)) == rgb(colour)]
        for colour in (HELD_OUT, SMOOTH)
    }
    assert found[HELD_OUT] and found[SMOOTH]
    assert max(found[HELD_OUT]) < min(found[SMOOTH]), "0.8 lies above 0.3"
    with_drift = draw_curves(ended(*held, Validated(10, 0.8, drift=0.1)), "zibo")
    assert with_drift.size[1] > height
    draw_curves(fold([Step(1, 2, loss=0.0)]), "one point at zero")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_an_average_follows_slowly() -> None:
    assert averaged([(1, 1.0), (2, 0.0)], 0.25) == [(1, 1.0), (2, 0.75)]


def test_the_grid_shows_every_checkpoint_at_every_strength(tmp_path: Path) -> None:
    runs = Interrupted(tmp_path)
    folder = runs.folder()
    settings: TrainSettings = runs.settings(learning_rate=0.1, steps=4)
    space: Workspace = runs.space
    state = fold(train(settings, space, folder))
    (folder / "settings.json").write_text(settings.to_json(), encoding="utf-8")
    asked = GridSettings(run="zibo", prompts=("a house",), strengths=(0.5, 1.0), steps=2)
    *_, done = draw_grid(folder, state, space, asked)
    assert isinstance(done, Done) and done.path == str(folder / "grid.png")
    sheet = Image.open(done.path)
    rows, columns = (sheet.height - 46) // SIDE, (sheet.width - 150) // SIDE
    assert (rows, columns) == (2, 3)
    tiles = {sheet.crop(box(row, column)).tobytes() for row in range(2) for column in range(3)}
    assert len(tiles) == 5, "the base is the same in both rows, all others differ"
    with pytest.raises(SettingsError, match="--prompts"):
        list(draw_grid(folder, state, space, GridSettings(run="zibo")))
    with pytest.raises(RunError, match="has no LoRA yet"):
        list(draw_grid(tmp_path, RunState(), space, asked))


def box(row: int, column: int) -> tuple[int, int, int, int]:
    left, top = 150 + column * (SIDE + 8), 46 + row * (SIDE + 8)
    return left, top, left + SIDE, top + SIDE
