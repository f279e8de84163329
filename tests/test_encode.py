"""Encoding once, and batches that depend on (seed, step) alone."""

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.data.folder import Example, scan_folder
from sdlora.encode import Batch, Dataset, encode_dataset
from sdlora.errors import DataError
from sdlora.events import Event, Progress, Warned
from sdlora.families import open_family
from sdlora.families.base import Family
from sdlora.settings import TrainSettings
from tiny import tiny


@pytest.fixture(scope="module")
def family() -> Family:
    return open_family(str(tiny("sd1")), torch.float32, torch.device("cpu"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures of two shapes, one of them three times as often as the others."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64)] * 5 + [(96, 64)] * 2
    for number, (width, height) in enumerate(sizes):
        folder = tmp_path / ("3_zibo" if number == 0 else "plain")
        folder.mkdir(exist_ok=True)
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zibo, picture {number}", encoding="utf-8")
    return tmp_path


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.of({"data": "d", "name": "n", "caption_dropout": 0.0, **values})


def finish(job: Generator[Event, None, Dataset]) -> tuple[list[Event], Dataset]:
    """Every event of an encoding, and what it returns."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return events, end.value


def encoded(family: Family, folder: Path, **values: Any) -> Dataset:
    return finish(encode_dataset(family, scan_folder(folder)[0], settings(**values)))[1]


def test_a_batch_is_what_the_family_says_of_its_pictures(family: Family, pictures: Path) -> None:
    events, dataset = finish(encode_dataset(family, scan_folder(pictures)[0], settings()))
    told = [e for e in events if isinstance(e, Progress)]
    assert told[6] == Progress("encoding pictures", 7, 7, at=told[6].at)
    assert told[-1] == Progress("encoding captions", 8, 8, at=told[-1].at)  # and the empty one
    by_name = {item.example.image.name: item for item in dataset.items}
    for step in range(1, 6):
        batch = dataset.batch(step)
        assert torch.equal(batch.cond["context"], family.encode_prompts(batch.captions)["context"])
        assert len({item.views.shape for name in batch.names for item in [by_name[name]]}) == 1
        for row, name in enumerate(batch.names):
            width, height = by_name[name].example.size
            assert batch.captions[row] == by_name[name].example.caption
            assert torch.equal(batch.latents[row], by_name[name].views[0])
            assert batch.sizes[row].tolist()[:2] == [height, width]


def test_every_round_shows_every_picture_as_often_as_it_repeats(
    family: Family, pictures: Path
) -> None:
    dataset = encoded(family, pictures, batch_size=2)
    rounds = [[dataset.batch(step) for step in range(first, first + 5)] for first in (1, 6)]
    expected = Counter({"0.png": 3, **{f"{n}.png": 1 for n in range(1, 7)}})
    for batches in rounds:
        assert Counter(name for batch in batches for name in batch.names) == expected
        assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2, 2]  # the odd one is kept
    assert [b.names for b in rounds[0]] != [b.names for b in rounds[1]]


def test_a_step_depends_on_the_seed_and_its_number_only(family: Family, pictures: Path) -> None:
    first, again, other = (
        encoded(family, pictures, flip=True, caption_dropout=0.5, seed=seed) for seed in (1, 1, 2)
    )
    straight = [first.batch(step) for step in range(1, 21)]
    torch.manual_seed(7)  # nobody listens
    for step in (20, 3, 11):  # any order, as after resuming
        batch, twin = again.batch(step), straight[step - 1]
        assert (batch.names, batch.captions) == (twin.names, twin.captions)
        assert torch.equal(batch.latents, twin.latents)
    assert [other.batch(step).names for step in range(1, 21)] != [b.names for b in straight]


def test_flip_shows_the_encoded_mirror_image_half_of_the_time(
    family: Family, pictures: Path
) -> None:
    dataset = encoded(family, pictures, flip=True)
    for item in dataset.items[:5]:  # the square ones, which are not scaled
        with Image.open(item.example.image) as image:
            mirror = np.array(image)[:, ::-1].copy()
        pixels = torch.from_numpy(mirror).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.allclose(item.views[1], family.encode_images(pixels[None])[0], atol=1e-5)
    views = {item.example.image.name: item.views for item in dataset.items}
    batches = [dataset.batch(step) for step in range(1, 100)]
    mirrored = [
        torch.equal(batch.latents[row], views[name][1])
        for batch in batches
        for row, name in enumerate(batch.names)
    ]
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_a_dropped_caption_is_the_empty_prompt(family: Family, pictures: Path) -> None:
    batch = encoded(family, pictures, caption_dropout=1.0).batch(1)
    assert set(batch.captions) == {""}
    assert torch.equal(batch.cond["context"][:1], family.encode_prompts([""])["context"])
    dataset = encoded(family, pictures, caption_dropout=0.3)
    said = [caption for step in range(1, 100) for caption in dataset.batch(step).captions]
    assert 0.2 < said.count("") / len(said) < 0.4


def test_captions_stay_words_while_the_text_encoder_learns(family: Family, pictures: Path) -> None:
    batch = encoded(family, pictures, train_text_encoder=True).batch(1)
    assert batch.cond == {}
    assert all(caption.startswith("zibo, picture") for caption in batch.captions)


def test_what_is_not_read_of_a_long_caption_is_said(family: Family, pictures: Path) -> None:
    long = Example(pictures / "plain" / "1.png", "a" * 80, (64, 64))
    events, _ = finish(encode_dataset(family, [long], settings()))
    (warned,) = [event for event in events if isinstance(event, Warned)]
    assert "1.png" in warned.message and "'aaaaa' at its end is not read" in warned.message


def test_a_picture_that_vanished_or_overflows_is_named(
    family: Family, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, _ = scan_folder(pictures)
    examples[1].image.unlink()
    with pytest.raises(DataError, match=r"1\.png changed"):
        finish(encode_dataset(family, examples, settings()))
    monkeypatch.setattr(family, "encode_images", lambda pixels: torch.full((1, 4, 8, 8), torch.inf))
    with pytest.raises(DataError, match=r"0\.png cannot be encoded.*precision fp32"):
        finish(encode_dataset(family, examples, settings()))


def test_a_slice_and_a_move_keep_the_rows_together(family: Family, pictures: Path) -> None:
    dataset = encoded(family, pictures, batch_size=4)
    batch = max((dataset.batch(step) for step in range(1, 4)), key=len)
    part = batch[1:3].to(torch.device("cpu"))
    assert len(part) == 2
    assert torch.equal(part.latents, batch.latents[1:3])
    assert torch.equal(part.cond["context"], batch.cond["context"][1:3])
    assert (part.names, part.captions) == (batch.names[1:3], batch.captions[1:3])


def test_weights_and_masks_go_where_their_rows_go() -> None:
    rows = torch.arange(3.0)
    mask = rows[:, None, None, None].expand(3, 1, 2, 2)
    batch = Batch(torch.zeros(3, 4, 2, 2), {}, torch.zeros(3, 6), weights=rows, mask=mask)
    part = batch[1:].to(torch.device("cpu"))
    assert part.weights is not None and part.mask is not None
    assert part.weights.tolist() == part.mask[:, 0, 0, 0].tolist() == [1, 2]
