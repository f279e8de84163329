"""After a run: its curves, the LoRA to take, every checkpoint at every strength."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from sdlora.cli.main import main
from sdlora.errors import LoraFileError, RunError, SettingsError
from sdlora.events import Done, RunState, SampleReady, Saved, Started, Step, Validated, fold
from sdlora.inference.engine import render
from sdlora.inference.xy_grid import SIDE, _shortened, draw_grid
from sdlora.jobs.review import (
    DRIFT,
    HELD_OUT,
    SMOOTH,
    copy_lora,
    draw_curves,
    lora_files,
    smoothed,
    suggest_lora,
)
from sdlora.jobs.run_folder import new_folder, read, record
from sdlora.lora.library.library import Library
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.training.train import train
from sdlora.workspace import Workspace
from test_resume import Interrupted
from tiny import open_tiny, tiny


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
    found = suggest_lora(tmp_path, state)
    assert found and found.path == best
    assert "after step 4" in found.reason and "0.2000" in found.reason and "0.3000" in found.reason
    for figures, reason in (
        ((), "there was no validation split"),
        ((Validated(10, 0.1, True),), "best"),
    ):
        last = suggest_lora(tmp_path, ended(*figures))
        assert last and last.path == Path("zibo.safetensors") and reason in last.reason
    went_back = fold([Saved("zibo.safetensors", 4)], ended(Validated(4, 0.2, best=True)))
    last = suggest_lora(tmp_path, went_back)
    assert last and (last.step, last.path) == (4, Path("zibo.safetensors"))
    killed = fold([Started("t", 10), Step(9, 10)])
    found = suggest_lora(tmp_path, killed)
    assert found and "step-000008" in found.path.name
    assert suggest_lora(tmp_path / "none", killed) is None


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


def test_both_panels_have_the_steps_of_the_longer_one() -> None:
    held = [Validated(step, 0.8, drift=0.5) for step in (0, 5)]  # the losses go on to step 10
    image = draw_curves(ended(*held), "zibo")
    inks = {
        colour: [
            x
            for x in range(image.size[0] * 2 // 3)  # left of the legend
            if any(image.getpixel((x, y)) == rgb(colour) for y in range(0, image.size[1], 1))
        ]
        for colour in (HELD_OUT, DRIFT)
    }
    assert max(inks[DRIFT]) == pytest.approx(image.size[0] / 2, abs=4), "half of the axis"
    assert max(inks[HELD_OUT]) == pytest.approx(max(inks[DRIFT]), abs=4)


def test_prompts_break_between_words() -> None:
    lines = _shortened("a green tree, snow background, at dusk").split("\n")
    assert lines == ["a green tree, snow", "background, at", "dusk"]
    assert _shortened("x" * 20) == f"{'x' * 18}\nxx", "a word that is too long by itself"
    assert _shortened("word " * 40).endswith("…")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_an_average_follows_slowly() -> None:
    assert smoothed([(1, 1.0), (2, 0.0)], 0.25) == [(1, 1.0), (2, 0.75)]


def trained(tmp_path: Path, **values: object) -> tuple[Path, Workspace]:
    """A training that has ended, in its folder; and its workspace."""
    runs = Interrupted(tmp_path)
    settings = runs.settings(learning_rate=0.1, steps=4, **values)
    folder = new_folder(settings, runs.space)
    for _ in record(train(settings, runs.space, folder), folder):
        pass
    return folder, runs.space


def test_the_grid_shows_every_checkpoint_at_every_strength(tmp_path: Path) -> None:
    folder, space = trained(tmp_path)
    values = {"run": "zibo", "prompts": ("a house",), "strengths": (0.5, 1.0), "steps": 2}
    into = tmp_path / "grid"
    events = list(draw_grid(GridSettings.from_values(values), space, into))
    done, drawn = events[-1], [e for e in events if isinstance(e, SampleReady)]
    assert isinstance(done, Done) and done.path == str(into / "grid.png")
    assert [(e.step, e.report["strength"]) for e in drawn] == [
        (0, 0.0), (2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0),
    ]  # fmt: skip
    assert len({Path(e.path).read_bytes() for e in drawn}) == 5, "all of them differ"
    sheet = Image.open(done.path)
    rows, columns = (sheet.height - 46) // SIDE, (sheet.width - 150) // SIDE
    assert (rows, columns) == (2, 3)
    tiles = {sheet.crop(box(row, column)).tobytes() for row in range(2) for column in range(3)}
    assert len(tiles) == 5, "the base is the same in both rows, all others differ"
    fewer = GridSettings.from_values({**values, "checkpoints": (4,), "strengths": (0.0, 1.0, 1.0)})
    again = [e for e in draw_grid(fewer, space, into) if isinstance(e, SampleReady)]
    assert [(e.step, e.report["strength"]) for e in again] == [(0, 0.0), (4, 1.0)], "each once"
    with pytest.raises(SettingsError, match="--prompts"):
        list(draw_grid(GridSettings.from_values({"run": "zibo"}), space, into))
    with pytest.raises(RunError, match="no LoRA of step 3; the run has those of 2, 4"):
        list(draw_grid(GridSettings.from_values({**values, "checkpoints": (3,)}), space, into))
    with pytest.raises(SettingsError, match="there is no run 'zibbo'"):
        list(draw_grid(GridSettings.from_values({**values, "run": "zibbo"}), space, into))
    shutil.rmtree(folder / "state")
    shutil.rmtree(folder / "lora")
    with pytest.raises(RunError, match="has no LoRA yet"):
        list(draw_grid(GridSettings.from_values(values), space, into))


def test_the_grid_begins_from_noise_alone_where_the_training_did(tmp_path: Path) -> None:
    _, space = trained(tmp_path, model=str(tiny("sd2")), zero_terminal_snr=True)
    values = {"run": "zibo", "prompts": ("a house",), "steps": 4, "checkpoints": (4,)}
    base = next(
        event
        for event in draw_grid(GridSettings.from_values(values), space, tmp_path / "grid")
        if isinstance(event, SampleReady)
    )
    for asked in (True, False):
        request = {"prompt": "a house", "seed": base.seed, "steps": 4, "zero_terminal_snr": asked}
        [expected], _ = render(open_tiny("sd2"), ImageRequest.from_values(request))
        with Image.open(base.path) as image:
            assert (ImageChops.difference(image, expected).getbbox() is None) is asked


def test_the_lora_of_a_step_is_kept_once_and_over_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, space = trained(tmp_path, save_every=3)
    line = ["runs", "keep", "zibo", "--workspace", str(space.root)]
    assert main([*line, "--step", "3"]) == 0
    path = space.loras / "zibo-step-000003.safetensors"
    assert f"{path}\n  <lora:zibo-step-000003:1>" in capsys.readouterr().out
    checkpoint = dict(lora_files(folder))[3]
    assert path.read_bytes() == checkpoint.read_bytes()
    assert Library.for_workspace(space).find("zibo-step-000003").problem == ""
    assert main([*line, "--step", "3"]) == 0
    assert len(list(space.loras.iterdir())) == 2, "it was there already, beside the last"
    capsys.readouterr()
    assert main(line) == 0, "without a step the last, for nothing was held out"
    assert capsys.readouterr().out.startswith(str(space.loras / "zibo.safetensors"))
    assert len(list(space.loras.iterdir())) == 2, "which is the run's result"
    path.write_bytes((folder / "lora" / "zibo.safetensors").read_bytes())
    assert main([*line, "--step", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == str(
        path.with_name("zibo-step-000003-2.safetensors")
    )
    assert main([*line, "--step", "7"]) == 1
    assert "no LoRA of step 7; the run has those of 3, 4" in capsys.readouterr().err
    with pytest.raises(RunError, match="of step 3 could not be copied"):
        copy_lora(folder, read(folder), 3, folder / "settings.json")
    checkpoint.write_bytes(b"half of it")
    with pytest.raises(LoraFileError):
        copy_lora(folder, read(folder), 3, space.loras)


def box(row: int, column: int) -> tuple[int, int, int, int]:
    left, top = 150 + column * (SIDE + 8), 46 + row * (SIDE + 8)
    return left, top, left + SIDE, top + SIDE
