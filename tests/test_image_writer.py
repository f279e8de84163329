"""Pictures that remember: what they say to A1111 and to us, in every format, and made again."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdlora import __version__, disk_room
from sdlora.cli.main import main
from sdlora.errors import RunError
from sdlora.events import Progress, SampleReady, Warned
from sdlora.image_metadata.reader import parse_infotext, read_parameters
from sdlora.image_metadata.to_request import request_of
from sdlora.inference import image_writer
from sdlora.inference.engine import Engine
from sdlora.inference.image_pipeline import ImageDone, ImagePipeline
from sdlora.inference.image_writer import parameters, save_image
from sdlora.lora.format.file import write_lora
from sdlora.lora.library.library import Library
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace
from tiny import open_tiny, tiny, tiny_lora

WHOLE: dict[str, Any] = {
    "prompt": 'a {cat|dog} "x" <lora:neon:0.5>\nSteps: 1, b: 2, c: 3\nNegative prompt: x <lora:No>',
    "negative_prompt": "dull zibo\nSteps: 3, [a|b]: 1", "model": "tiny", "steps": 2, "seed": 7,
    "count": 2, "clip_skip": 2, "hires_scale": 1.5, "hires_steps": 1, "hires_strength": 0.5,
    "emphasis": "no_norm", "sampler": "dpm++_2m_karras", "styles": ["oil"],
}  # fmt: skip


@pytest.fixture
def space(workspace: Path) -> Workspace:
    space = Workspace.open(workspace)
    (space.models / "tiny").symlink_to(tiny("sd1"))
    write_lora(tiny_lora(open_tiny("sd1")), space.loras / "neon.safetensors")
    space.embeddings.mkdir()
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": rows}, space.embeddings / "zibo.safetensors")
    space.styles.write_text("name,prompt,negative_prompt\noil,{prompt} in oil,\n")
    return space


def made(engine: Engine, **asked: Any) -> list[SampleReady]:
    events = engine.generate(ImageRequest.from_values(asked))
    return [event for event in events if isinstance(event, SampleReady)]


def apart(one: Path, other: Path) -> int:
    """How far two pictures are from each other, of 255."""
    with Image.open(one) as a, Image.open(other) as b:
        return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_a_picture_says_all_that_a1111_reads(engine: Engine) -> None:
    first = made(engine, **{**WHOLE, "prompt": "a (cat:1.1) <lora:neon:0.5>"})[0]
    with Image.open(first.path) as image:
        text = image.text["parameters"]  # type: ignore[attr-defined]
        assert image.size == (96, 96)
    found = parse_infotext(text)
    assert found.prompt == "a (cat:1.1) <lora:neon:0.5> in oil"
    assert found.negative == WHOLE["negative_prompt"]
    hashes = found.fields["TI hashes"].removeprefix("zibo: ")
    assert len(hashes) == 12
    assert list(found.fields.items()) == [
        ("Steps", "2"), ("Sampler", "DPM++ 2M"), ("Schedule type", "Karras"), ("CFG scale", "5"),
        ("Seed", "7"), ("Size", "64x64"), ("Model", "tiny"), ("Denoising strength", "0.5"),
        ("Clip skip", "2"), ("RNG", "CPU"), ("Hires upscale", "1.5"), ("Hires steps", "1"),
        ("Hires upscaler", "Latent"),
        ("Lora hashes", f"neon: {first.report['loras'][0]['hash']}"),
        ("TI hashes", f"zibo: {hashes}"), ("Emphasis", "No norm"),
        ("Version", f"sdlora {__version__}"),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), [("sd1", None), ("sd2", "Zero Terminal SNR")])
def test_a_picture_says_that_it_began_from_noise_alone_where_it_did(
    kind: str, said: str | None
) -> None:
    request = ImageRequest.from_values({"prompt": "a cat", "seed": 7, "zero_terminal_snr": True})
    sheet = ImagePipeline(open_tiny(kind), Library(())).plan(request)
    fields = parse_infotext(parameters(sheet, 0, (64, 64))).fields
    assert fields.get("Noise Schedule") == said
    assert any("zero_terminal_snr is not used" in p.message for p in sheet.problems) is not bool(
        said
    )


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_picture_is_made_again_from_what_it_says(
    engine: Engine, space: Workspace, image_format: str
) -> None:
    for index, event in enumerate(made(engine, **WHOLE, image_format=image_format)):
        path = Path(event.path)
        with Image.open(path) as image:
            assert image.format == image_format.upper()
        recalled = read_parameters(path)
        assert recalled.details["request"] == ImageRequest.from_values(
            {**WHOLE, "image_format": image_format}
        ).model_dump(mode="json")
        assert recalled.details["image"]["loras"][0]["name"] == "neon"
        values, problems = request_of(recalled, Library.for_workspace(space), space)
        assert [problem.split("'")[1] for problem in problems] == ["No"]
        assert values["seed"] == 7 + index and values["prompt"] == WHOLE["prompt"]
        [again] = made(engine, **values)
        one, other = Path(again.path), path
        if image_format == "png":
            assert apart(one, other) <= 2  # it was in a batch of two
        assert again.report == event.report


def test_the_same_request_gives_the_same_bytes(engine: Engine) -> None:
    first, second = (made(engine, **WHOLE) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes()


def test_a_text_too_long_for_exif_makes_a_png(engine: Engine) -> None:
    asked = {**WHOLE, "prompt": "word, " * 6000, "steps": 1, "count": 1, "image_format": "jpeg"}
    events = list(engine.generate(ImageRequest.from_values(asked)))
    [ready] = [event for event in events if isinstance(event, SampleReady)]
    assert ready.path.endswith(".png")
    told = [event.message for event in events if isinstance(event, Warned)]
    assert "a PNG can, whatever the text is" in told[-1]


def test_generate_like_a_picture(
    engine: Engine, space: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = made(engine, **{**WHOLE, "prompt": "a {cat|dog} <lora:neon:0.5>"})[1]
    line = ["generate", "--like", first.path, "--workspace", str(space.root), "--json"]
    assert main([*line, "--output", str(tmp_path / "again")]) == 0
    assert apart(Path(first.path), tmp_path / "again.png") <= 2
    assert main([*line, "a cow <lora:none>", "--output", str(tmp_path / "cow.webp")]) == 1
    said = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    cow = next(row for row in reversed(said) if row["event"] == "SampleReady")
    assert cow["report"]["prompt"] == "a cow <lora:none> in oil" and cow["seed"] == 8
    with Image.open(tmp_path / "cow.webp") as image:
        assert image.format == "WEBP"
    assert main(["generate", "--workspace", str(space.root)]) == 1
    assert "--like PICTURE" in capsys.readouterr().err


def test_a_seed_of_64_bits_is_used_written_and_read(engine: Engine, space: Workspace) -> None:
    seed = 156680208700286
    [event] = made(engine, prompt="a cat", model="tiny", steps=1, seed=seed)
    assert event.seed == seed and f"-{seed}" in Path(event.path).name
    assert parse_infotext(text_of(event)).fields["Seed"] == str(seed)
    values, problems = request_of(
        read_parameters(Path(event.path)), Library.for_workspace(space), space
    )
    assert values["seed"] == seed and not problems
    largest = made(engine, prompt="a cat", model="tiny", steps=1, seed=2**64 - 1)
    assert parse_infotext(text_of(largest[0])).fields["Seed"] == str(2**64 - 1)


def text_of(event: SampleReady) -> str:
    with Image.open(event.path) as image:
        return str(image.text["parameters"])  # type: ignore[attr-defined]


def test_a_request_over_midnight_lies_in_the_folder_of_its_beginning(tmp_path: Path) -> None:
    request = ImageRequest.from_values({"prompt": "a cat", "seed": 7, "count": 2})
    sheet = ImagePipeline(open_tiny("sd1"), Library(())).plan(request)
    yesterday = time.time() - 86_400
    sheet = replace(sheet, created_at=yesterday)
    image = Image.new("RGB", (8, 8))
    paths = [save_image(ImageDone(n, image), sheet, tmp_path).path for n in (0, 1)]
    day = time.strftime("%Y-%m-%d", time.localtime(yesterday))
    assert {path.parent.name for path in paths} == {day}


def test_pictures_of_one_second_and_seed_are_as_many_files(tmp_path: Path) -> None:
    request = ImageRequest.from_values({"prompt": "a cat", "seed": 7})
    sheet = ImagePipeline(open_tiny("sd1"), Library(())).plan(request)
    image = Image.new("RGB", (8, 8))
    with ThreadPoolExecutor(8) as pool:
        saved = [pool.submit(save_image, ImageDone(0, image), sheet, tmp_path) for _ in range(8)]
    paths = {future.result().path for future in saved}
    assert len(paths) == 8 == len(list(tmp_path.rglob("*.png")))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_picture_that_the_disk_does_not_take_leaves_nothing(
    tmp_path: Path, image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ImageRequest.from_values({"prompt": "a cat", "seed": 7, "image_format": image_format})
    sheet = ImagePipeline(open_tiny("sd1"), Library(())).plan(request)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_image(ImageDone(0, Image.new("RGB", (8, 8))), sheet, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_a_full_disk_is_waited_for_with_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "LOOK_EVERY_S", 0.0)
    outcomes: list[Path | OSError] = [OSError(28, "No space left"), OSError(28, "No space left")]

    def write() -> Path:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    outcomes.append(tmp_path / "1.png")
    warned, waits, *more = image_writer.saved_when_room(write, tmp_path, 7, lambda: False)
    assert isinstance(warned, Warned) and str(tmp_path) in warned.message and not more
    assert isinstance(waits, Progress) and not outcomes
    for error, stops in ((OSError(28, "No space left"), True), (OSError(5, "I/O error"), False)):
        outcomes.append(error)
        with pytest.raises(
            RunError, match=f"of seed 7 could not be saved in {tmp_path}: {error.strerror}"
        ):
            list(image_writer.saved_when_room(write, tmp_path, 7, lambda stops=stops: stops))
