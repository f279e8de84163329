"""What `dataset check` shows is what a training starts from: the same pictures, the same cuts."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from picture_files import BAD, GOOD, make_folder, scene
from sdlora.cli.main import main
from sdlora.data.folder import to_warnings
from sdlora.data.report import Preflight, check_dataset
from sdlora.errors import DataError
from sdlora.events import Done, Event, Started, Warned
from sdlora.models.registry import open_family
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentDataset, encode_dataset
from sdlora.training.train import prepare, read_pictures, train
from sdlora.workspace import Workspace
from tiny import tiny
from webui.dataset_report import report
from webui.media import Media


def settings(data: Path, **values: Any) -> TrainSettings:
    return TrainSettings.from_values(
        {"data": str(data), "name": "n", "model": str(tiny("sd1")), **values}
    )


def checked(workspace: Path, data: Path, **values: Any) -> Preflight:
    return check_dataset(settings(data, **values), Workspace.open(workspace))


def words(found: Preflight) -> dict[str, str]:
    """File name -> all that is said of it."""
    said = {row.example.image.name: [p.message for p in row.problems] for row in found.rows}
    for problem in found.others:
        said.setdefault(problem.path.name, []).append(problem.message)
    return {name: "; ".join(whats) for name, whats in said.items() if whats}


EXPECTED = {
    "moves.webp": "first frame", "tall.png": "the middle", "tiny.png": "scaled up",
    "one.png": "scaled up", "twin.png": "the same file as 1.rgb.png",
    "near.jpg": "looks the same as UPPER.PNG", "bare.png": "has no caption",
    "empty caption.png": "is empty", "latin caption.png": "read as Windows-1252",
    "cut off.jpg": "cannot be read", "nothing.png": "an empty file", "page.jpg": "a web page",
    "film.gif": "a GIF picture", "scan.tif": "a TIFF picture", "huge.bmp": "million pixels",
    "noise.webp": "no picture that we can read", "lonely.txt": "no picture of the same name",
    "gone.png": "a link to a file that is not there", "notes.md": "neither a picture nor a caption",
}  # fmt: skip


def finished(job: Generator[Event, None, Any]) -> tuple[list[Event], Any]:
    events = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return events, end.value


def test_a_folder_of_awkward_files_is_told_file_by_file_and_the_rest_is_learnt(
    tmp_path: Path, workspace: Path
) -> None:
    folder = make_folder(tmp_path / "pictures")
    found = checked(workspace, folder, steps=2)
    names = {row.example.image.relative_to(folder).as_posix() for row in found.rows}
    assert names == GOOD.keys()
    said = words(found)
    assert said.keys() == EXPECTED.keys()
    assert not {name: said[name] for name, part in EXPECTED.items() if part not in said[name]}
    assert BAD.keys() <= {p.path.name for p in found.others}
    assert found.trigger == "zibo" and found.general == ()

    chosen, space = settings(folder, steps=2, sample_every=0), Workspace.open(workspace)
    events, gathered = finished(read_pictures(chosen, space))
    warned = {e.message for e in events if isinstance(e, Warned)}
    resized = [
        p for row in found.rows for p in row.problems if "pixel" in p.message or " x " in p.message
    ]
    told = {e.message for e in to_warnings(p for row in found.rows for p in row.problems)}
    assert told - {e.message for e in to_warnings(resized)} <= warned

    family = open_family(chosen.model, torch.float32, torch.device("cpu"))
    dataset: LatentDataset = finished(encode_dataset(family, gathered.examples, chosen))[1]
    learnt = {
        item.example.image: (item.sizes[0][5], item.sizes[0][4], dataset.wording.plain(c))
        for item in dataset.items
        if (c := item.example.caption) is not None
    }
    assert learnt == {row.example.image: (*row.bucket, row.caption) for row in found.rows}
    assert dataset.steps_per_round == found.steps_per_round

    started, *_, done = (
        e for e in train(chosen, space, tmp_path / "run") if isinstance(e, Started | Done)
    )
    assert isinstance(done, Done) and Path(done.path).is_file()
    assert isinstance(started, Started)
    assert started.details["pictures"].startswith(f"{len(GOOD)} of ")


def test_captions_are_shown_as_they_are_read(tmp_path: Path, workspace: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("sea, night, moon")
    scene(2).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("x" * 80)
    found = checked(
        workspace, tmp_path, trigger_word="zibo", shuffle_tags=True, caption_variants=3,
        caption_prefix="photo of", batch_size=1, steps=5,
    )  # fmt: skip
    first, second = found.rows
    assert first.caption == "photo of zibo, sea, night, moon"
    assert len(first.drawn) >= 2 and all(len(d) == len(first.caption) for d in first.drawn)
    assert first.tokens == len("photoofzibo,sea,night,moon")  # the tiny model spells
    assert "does not say 'zibo'" in words(found)["a.png"]
    assert (second.tokens, second.chunks) == (80 + len("photoofzibo,"), 2)
    assert second.length == "92 tokens in 2 chunks" and first.chunks == 1
    assert found.tags["moon"] == 1
    assert (found.steps_per_round, found.rounds) == (2, 2.5)


@pytest.mark.parametrize(
    ("captions", "trigger", "problem"),
    [
        (("robot, sea", "robot, snow"), "robot", "knows well already"),
        (("a sea", "the snow"), "", "no trigger word"),
        (("zibo, sea", "zibo, snow"), "zibo", ""),
        (("neon lighting, sea", "neon lighting, snow"), "neon lighting", ""),
    ],
)
def test_a_trigger_that_is_missing_or_common_is_told(
    tmp_path: Path, workspace: Path, captions: tuple[str, ...], trigger: str, problem: str
) -> None:
    for number, caption in enumerate(captions):
        scene(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    found = checked(workspace, tmp_path, model="starter")
    assert found.trigger == trigger
    assert found.resolution == 128
    assert [problem in p.message for p in found.general] == ([True] if problem else [])


def test_a_model_that_is_not_here_is_told(tmp_path: Path, workspace: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    found = checked(workspace, tmp_path, model="some/where", trigger_word="zibo")
    assert "not on this computer" in found.general[0].message
    assert found.rows[0].tokens is None and found.resolution == 512


def test_the_command_shows_every_picture_and_the_whole(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene(1, (300, 100)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("zibo, sea")
    (tmp_path / "b.png").write_bytes(b"")
    Image.new("L", (300, 100), 255).save(tmp_path / "a-masklabel.png")
    flags = ["--workspace", str(workspace), "--batch-size", "3", "--steps", "7"]
    assert main(["dataset", "check", str(tmp_path), *flags]) == 0
    said = capsys.readouterr().out
    assert "a.png: 300 x 100, cut to" in said and "masked" in said and "'zibo, sea'" in said
    assert "not used as meant: b.png is an empty file" in said
    assert "trigger word: zibo" in said and "steps: 7, in rounds of 1" in said
    assert main(["dataset", "check", str(tmp_path), *flags, "--json"]) == 0
    row, whole = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["caption"] == "zibo, sea" and row["size"] == [300, 100]
    assert whole["pictures"] == 1 and whole["left_out"][0]["file"].endswith("b.png")
    assert main(["dataset", "check", str(tmp_path / "x"), *flags]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_every_mark_of_a_picture_is_shown_by_the_command_and_on_the_page(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mark is on the picture that it is true of, and on no other."""
    own, reg = tmp_path / "3_zibo", tmp_path / "reg"
    for number, (folder, name) in enumerate([(own, "a"), (own, "b"), (reg, "c")]):
        folder.mkdir(exist_ok=True)
        scene(number, (96, 96)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"zibo, {name}" if folder == own else "a robot")
    Image.new("L", (96, 96), 255).save(own / "b-masklabel.png")
    marks = {"a": {"3 times"}, "b": {"3 times", "masked"}, "c": {"regularisation"}}
    line = ["dataset", "check", str(tmp_path), "--workspace", str(workspace)]
    assert main(line) == 0
    shown = [row for row in capsys.readouterr().out.splitlines() if ".png: 96 x 96" in row]
    page = report(checked(workspace, tmp_path), Media((tmp_path,)), None)
    cards = {
        name: page.partition(f"<b>{name}.png</b>")[2].partition("</figure>")[0] for name in marks
    }
    assert [row[0] for row in shown] == [*marks]
    for row in shown:
        for mark in ("3 times", "masked", "regularisation"):
            assert (mark in row) == (mark in cards[row[0]]) == (mark in marks[row[0]]), (row, mark)


def test_lists_of_words_are_drawn_from_and_missing_ones_are_named(
    tmp_path: Path, workspace: Path
) -> None:
    folder, space = tmp_path / "pictures", Workspace.open(workspace)
    folder.mkdir()
    space.wildcards.mkdir(parents=True, exist_ok=True)
    (space.wildcards / "pet.txt").write_text("# mine\ncat\ndog\n")
    for number, said in enumerate(("a __pet__", "a __bird__, {red|blue}", "a fish")):
        scene(number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zibo, {said}")
    wanted = checked(workspace, folder, caption_wildcards=True)
    first, second, third = wanted.rows
    assert {"zibo, a cat", "zibo, a dog"} == {*first.drawn}
    assert first.caption in first.drawn and third.drawn == ("zibo, a fish",)
    assert {"zibo, a __bird__, red", "zibo, a __bird__, blue"} == {*second.drawn}
    assert words(wanted).keys() == {"1.png"}
    assert "names __bird__ in its caption, and there is no such list" in words(wanted)["1.png"]
    asked_not = checked(workspace, folder)
    assert asked_not.rows[0].drawn == ("zibo, a __pet__",)
    assert words(asked_not).keys() == {"0.png", "1.png"}
    assert all("learnt as they stand" in said for said in words(asked_not).values())


def test_what_is_held_out_is_marked_and_is_what_the_training_holds_out(
    tmp_path: Path, pictures: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, asked = Workspace.open(workspace), {"validation_share": 0.4, "steps": 1, "batch_size": 1}
    found = checked(workspace, pictures, **asked)
    assert [row.held_out for row in found.rows].count(True) == 2 and len(found.learnt) == 4
    assert found.steps_per_round == sum(found.buckets.values()) == 4
    assert "holds out 2 of 6 pictures" in found.general[-1].message
    held = {row.example.image.name for row in found.rows if row.held_out}
    seen: set[str] = set()
    chosen = settings(pictures, **asked, sample_every=0, measure_drift=False)
    job = prepare(chosen, space, tmp_path / "run")
    training = finished(job)[1]
    seen.update(item.example.image.name for item in training.validation.held_out.items)
    assert seen == held
    line = ["dataset", "check", str(pictures), "--validation-share", "0.4"]
    assert main([*line, "--model", str(tiny("sd1")), "--workspace", str(workspace)]) == 0
    said = capsys.readouterr().out
    assert said.count(", validation") == 2 and "! pictures holds out 2 of 6 pictures" in said


def test_what_a_training_refuses_the_check_refuses(tmp_path: Path, workspace: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="no caption, such as a.png"):
        checked(workspace, tmp_path, missing_captions="refuse")


def test_what_is_wrong_with_another_file_of_a_picture_names_that_file(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate("abc"):
        scene(number).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text(" ")
    (tmp_path / "b.png.txt").write_bytes("zibo, b".encode("utf-16-le"))
    (tmp_path / "c.txt").write_text("zibo, <lora:x:1>")
    Image.new("L", (8, 900)).save(tmp_path / "c-masklabel.png")
    line = ["dataset", "check", str(tmp_path), "--workspace", str(workspace)]
    assert main(line) == 0
    shown = capsys.readouterr().out
    for words in (
        "! a.txt is empty", "! b.png.txt is not UTF-8 text and is read as UTF-16",
        "! c-masklabel.png has another shape than c.png", "! has prompt language in its caption",
    ):  # fmt: skip
        assert words in shown
    assert main([*line, "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()[:-1]]
    assert {Path(p["file"]).name for row in rows for p in row["problems"]} == {
        "a.txt", "b.png.txt", "c.png", "c-masklabel.png",
    }  # fmt: skip
    page = report(checked(workspace, tmp_path), Media((tmp_path,)), None)
    assert "<em>a.txt is empty" in page and "<em>c-masklabel.png has another shape" in page
