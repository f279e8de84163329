"""Encoding once, and batches that depend on (seed, step) alone."""

from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdlora.data.folder import scan_folder
from sdlora.errors import DataError
from sdlora.events import Event, Progress
from sdlora.models.base import ModelFamily
from sdlora.models.registry import open_family
from sdlora.settings.train import TrainSettings
from sdlora.training.latent_dataset import LatentBatch, LatentDataset, encode_dataset
from tiny import open_tiny, tiny


@pytest.fixture(scope="module")
def family() -> ModelFamily:
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
    return TrainSettings.from_values({"data": "d", "name": "n", "caption_dropout": 0.0, **values})


def finish(job: Generator[Event, None, LatentDataset]) -> tuple[list[Event], LatentDataset]:
    """Every event of an encoding, and what it returns."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as end:
            return events, end.value


def encoded(family: ModelFamily, folder: Path, **values: Any) -> LatentDataset:
    return finish(encode_dataset(family, scan_folder(folder)[0], settings(**values)))[1]


def test_a_batch_is_what_the_family_says_of_its_pictures(
    family: ModelFamily, pictures: Path
) -> None:
    events, dataset = finish(encode_dataset(family, scan_folder(pictures)[0], settings()))
    told = [e for e in events if isinstance(e, Progress)]
    assert told[6] == Progress("encoding pictures", 7, 7, at=told[6].at)
    assert told[-1] == Progress("encoding captions", 8, 8, at=told[-1].at)  # and the empty one
    by_name = {item.example.image.name: item for item in dataset.items}
    for step in range(1, 6):
        batch = dataset.batch(step)
        assert torch.equal(
            batch.conditioning.tensors["context"],
            family.encode_prompts(batch.captions).tensors["context"],
        )
        assert len({item.views.shape for name in batch.names for item in [by_name[name]]}) == 1
        for row, name in enumerate(batch.names):
            width, height = by_name[name].example.size
            assert batch.captions[row] == by_name[name].example.caption
            assert torch.equal(batch.latents[row], by_name[name].views[0])
            assert batch.sizes[row].tolist()[:2] == [height, width]


def test_every_round_shows_every_picture_as_often_as_it_repeats(
    family: ModelFamily, pictures: Path
) -> None:
    dataset = encoded(family, pictures, batch_size=2)
    rounds = [[dataset.batch(step) for step in range(first, first + 5)] for first in (1, 6)]
    expected = Counter({"0.png": 3, **{f"{n}.png": 1 for n in range(1, 7)}})
    for batches in rounds:
        assert Counter(name for batch in batches for name in batch.names) == expected
        assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2, 2]  # the odd one is kept
    assert [b.names for b in rounds[0]] != [b.names for b in rounds[1]]


def test_a_step_depends_on_the_seed_and_its_number_only(
    family: ModelFamily, pictures: Path
) -> None:
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
    family: ModelFamily, pictures: Path
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


def test_a_dropped_caption_is_the_empty_prompt(family: ModelFamily, pictures: Path) -> None:
    batch = encoded(family, pictures, caption_dropout=1.0).batch(1)
    assert set(batch.captions) == {""}
    assert torch.equal(
        batch.conditioning.tensors["context"][:1], family.encode_prompts([""]).tensors["context"]
    )
    dataset = encoded(family, pictures, caption_dropout=0.3)
    said = [caption for step in range(1, 100) for caption in dataset.batch(step).captions]
    assert 0.2 < said.count("") / len(said) < 0.4


def test_captions_stay_words_while_the_text_encoder_learns(
    family: ModelFamily, pictures: Path
) -> None:
    batch = encoded(family, pictures, train_text_encoder=True).batch(1)
    assert batch.conditioning is None
    assert all(caption.startswith("zibo, picture") for caption in batch.captions)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("learns", [False, True])
def test_a_long_caption_is_read_whole_beside_short_ones(
    kind: str, learns: bool, tmp_path: Path
) -> None:
    family, long = open_tiny(kind), "(a" * 40 + " BREAK"
    for name, caption in (("0", long), ("1", "short")):
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    dataset = encoded(family, tmp_path, train_text_encoder=learns)
    batch = dataset.batch(1)
    cond = batch.conditioning or family.encode_captions(batch.captions)
    place = batch.names.index("0.png")
    tokens = family.pipeline.tokenizer(long).input_ids[1:-1]
    assert len(tokens) == 85
    expected = family.encoders()[0].literal(long)
    assert [unit.numbers[0] for chunk in expected for unit, _ in chunk] == tokens
    context = cond.tensors["context"]
    assert context.shape[:2] == (2, 77 * len(expected)) and len(expected) == 2
    short, nothing = (family.encode_prompts([text]).tensors["context"] for text in ("short", ""))
    together = torch.cat([short, nothing], 1)[0]
    assert torch.allclose(context[1 - place], together, atol=1e-5)
    # each chunk is what any pipeline reads of its words; the signs among them mean nothing
    for chunk, text in enumerate((long, "a(a(a BREAK")):
        alone = family.encode_prompts([text]).tensors["context"][0]
        assert torch.allclose(context[place, 77 * chunk : 77 * (chunk + 1)], alone, atol=1e-5)
    answer = family.predict(
        batch.latents,
        torch.tensor([500.0, 500.0]),
        family.condition_on_size(cond, batch.sizes),
    )
    assert answer.shape == batch.latents.shape and answer.isfinite().all()


def test_a_picture_that_vanished_or_overflows_is_named(
    family: ModelFamily, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, _ = scan_folder(pictures)
    examples[1].image.unlink()
    with pytest.raises(DataError, match=r"1\.png changed"):
        finish(encode_dataset(family, examples, settings()))
    monkeypatch.setattr(family, "encode_images", lambda pixels: torch.full((1, 4, 8, 8), torch.inf))
    with pytest.raises(DataError, match=r"0\.png cannot be encoded.*precision fp32"):
        finish(encode_dataset(family, examples, settings()))


def test_a_slice_and_a_move_keep_the_rows_together(family: ModelFamily, pictures: Path) -> None:
    dataset = encoded(family, pictures, batch_size=4)
    batch = max((dataset.batch(step) for step in range(1, 4)), key=len)
    part = batch[1:3].to(torch.device("cpu"))
    assert len(part) == 2
    assert torch.equal(part.latents, batch.latents[1:3])
    assert torch.equal(
        part.conditioning.tensors["context"], batch.conditioning.tensors["context"][1:3]
    )
    assert (part.names, part.captions) == (batch.names[1:3], batch.captions[1:3])


def test_weights_and_masks_go_where_their_rows_go() -> None:
    rows = torch.arange(3.0)
    mask = rows[:, None, None, None].expand(3, 1, 2, 2)
    batch = LatentBatch(torch.zeros(3, 4, 2, 2), None, torch.zeros(3, 6), weights=rows, mask=mask)
    part = batch[1:].to(torch.device("cpu"))
    assert part.weights is not None and part.mask is not None
    assert part.weights.tolist() == part.mask[:, 0, 0, 0].tolist() == [1, 2]


def counted(family: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the family encodes what, from now on."""
    counts: Counter[str] = Counter()

    def counting(name: str, real: Any) -> Any:
        def encode(*given: Any) -> Any:
            counts[name] += 1
            return real(*given)

        return encode

    for name in ("encode_images", "encode_prompts"):
        monkeypatch.setattr(family, name, counting(name, getattr(family, name)))
    return counts


def test_what_is_on_disk_is_not_encoded_again_and_only_what_changed_is(
    family: ModelFamily, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def run(**values: Any) -> tuple[LatentDataset, Counter[str]]:
        with monkeypatch.context() as patch:
            counts = counted(family, patch)
            job = encode_dataset(family, scan_folder(pictures)[0], settings(**values), cache)
            return finish(job)[1], counts

    first, counts = run()
    assert counts == {"encode_images": 7, "encode_prompts": 8}
    again, counts = run()
    assert counts == {}
    for step in range(1, 6):
        old, new = first.batch(step), again.batch(step)
        assert torch.equal(old.latents, new.latents) and old.captions == new.captions
        assert torch.equal(old.conditioning.tensors["context"], new.conditioning.tensors["context"])
    assert run(flip=True)[1] == {"encode_images": 7}  # the mirror images alone
    assert run(resolution=72)[1] == {"encode_images": 2}  # the wide ones get another bucket
    assert run(train_text_encoder=True, rank=4)[1] == {}
    (pictures / "plain" / "1.txt").write_text("zibo, another", encoding="utf-8")
    assert run()[1] == {"encode_prompts": 1}
    Image.new("RGB", (64, 64), "teal").save(pictures / "plain" / "2.png")
    assert run()[1] == {"encode_images": 1}
    with monkeypatch.context() as patch:
        weight = family.vae.quant_conv.weight
        patch.setattr(weight, "data", weight.data + 1e-3)
        assert run()[1] == {"encode_images": 7}
    assert run(cache_gib=0.0)[1] == {"encode_images": 7, "encode_prompts": 8}


@pytest.mark.parametrize("variants", [0, 6])
def test_captions_are_shuffled_and_dropped_from_a_cache_and_without(
    family: ModelFamily, pictures: Path, tmp_path: Path, variants: int
) -> None:
    for text in pictures.rglob("*.txt"):
        text.write_text(f"zibo, sea, night, moon, {text.stem}", encoding="utf-8")
    values = {"shuffle_tags": True, "caption_dropout": 0.25, "caption_variants": variants}
    job = encode_dataset(family, scan_folder(pictures)[0], settings(**values), tmp_path / "cache")
    dataset = finish(job)[1]
    batches = [dataset.batch(step) for step in range(1, 121)]
    said = Counter(caption for batch in batches for caption in batch.captions)
    assert 0.15 < said[""] / said.total() < 0.35
    orders = {caption for caption in said if caption.endswith(", 3") or ", 3," in caption}
    assert len(orders) > 6 if variants == 0 else 3 <= len(orders) <= 6
    assert all(caption.startswith("zibo, ") for caption in said if caption)
    for batch in batches[:5]:
        if variants:
            expected = family.encode_prompts(batch.captions).tensors["context"]
            assert torch.allclose(batch.conditioning.tensors["context"], expected, atol=1e-6)
        else:
            assert batch.conditioning is None
    assert batches[7].captions == dataset.batch(8).captions


def test_views_are_drawn_with_what_is_told_of_their_cut(
    family: ModelFamily, tmp_path: Path
) -> None:
    slope = Image.linear_gradient("L").rotate(90).resize((400, 64))
    slope.convert("RGB").save(tmp_path / "a.png")
    dataset = encoded(family, tmp_path, crop_jitter=1.0, flip=True, picture_variants=3)
    (item,) = dataset.items
    assert len(item.views) == len(item.sizes) == 6
    seen = Counter(tuple(dataset.batch(step).sizes[0].tolist()) for step in range(1, 200))
    assert set(seen) == set(item.sizes) and len(seen) >= 5  # the middle is its own mirror image
    for view, sizes in zip(item.views[::2], item.sizes[::2], strict=True):
        with Image.open(tmp_path / "a.png") as image:
            width, height = dataset.items[0].sizes[0][5], dataset.items[0].sizes[0][4]
            scaled = image.resize((round(400 * height / 64), height), Image.Resampling.LANCZOS)
            part = scaled.crop((sizes[3], 0, sizes[3] + width, height))
        pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.allclose(view, family.encode_images(pixels[None])[0], atol=0.05)


def test_masks_and_class_pictures_reach_the_batch(family: ModelFamily, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("a", "b", "r"):
        noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))  # the left half counts
    mask.save(tmp_path / "a-masklabel.png")
    examples = scan_folder(tmp_path)[0]
    examples = [replace(e, regularisation=e.image.name == "r.png") for e in examples]
    chosen = settings(batch_size=3, flip=True, unmasked_weight=0.25, regularisation_weight=0.5)
    dataset = finish(encode_dataset(family, examples, chosen))[1]
    left, right = set(), set()
    for step in range(1, 20):
        batch = dataset.batch(step)
        assert batch.weights is not None and batch.mask is not None
        assert batch.mask.shape == (3, 1, *batch.latents.shape[2:])
        for row, name in enumerate(batch.names):
            assert batch.weights[row] == (0.5 if name == "r.png" else 1)
            if name == "a.png":
                left.add(float(batch.mask[row, 0, :, 0].mean()))
                right.add(float(batch.mask[row, 0, :, -1].mean()))
                assert float(batch.mask[row].mean()) == pytest.approx(0.625)
            else:
                assert (batch.mask[row] == 1).all()
    assert left == right == {0.25, 1.0}  # the mask is mirrored with its picture
    assert dataset.captions == ["", ""]


def test_a_picture_that_was_exchanged_is_not_taken_for_the_one_that_was_found(
    family: ModelFamily, pictures: Path
) -> None:
    examples = scan_folder(pictures)[0]
    Image.new("RGB", (64, 64)).save(examples[0].image)
    with pytest.raises(DataError, match="another picture now"):
        finish(encode_dataset(family, examples, settings()))


def test_idle_parts_rest_beside_the_device_and_come_back_to_draw(
    family: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[str, str]] = []
    parts = {"vae": family.vae, **family.text_encoders}
    for name, part in parts.items():
        monkeypatch.setattr(part, "to", lambda where, name=name: moves.append((name, str(where))))
    family.offload(busy=())  # where main memory is the device
    with family.on_device():
        assert moves == []
    monkeypatch.setattr(family, "device", torch.device("cuda"))
    family.offload(busy=family.text_encoders)
    assert moves == [("vae", "cpu")]
    family.offload(busy=())
    assert moves[1] == ("vae", "cuda")  # what rested before is not forgotten
    del moves[:2]
    with pytest.raises(ZeroDivisionError), family.on_device():
        assert moves[-2:] == [("vae", "cuda"), ("te", "cuda")]
        _ = 1 / 0
    assert moves == [(n, w) for w in ("cpu", "cuda", "cpu") for n in ("vae", "te")]
    family.reload()
    assert moves[-1] == ("te", "cuda") and family._offloaded == []
