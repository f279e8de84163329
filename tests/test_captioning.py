"""Captions by models that look: tiny ones of every kind, all real, on real pictures."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny_captioners
from onnx_file import write_tagger
from picture_files import scene
from sdlora.cli.main import main
from sdlora.data.caption_editing import undo
from sdlora.data.captioning import (
    CAPTION_MODEL_TYPES,
    CaptionModelType,
    _no_larger,
    _TransformersCaptioner,
    caption_images,
)
from sdlora.errors import ModelError
from sdlora.settings.captioning import DescribeSettings

MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "blip": ("blip", tiny_captioners.blip),
    "florence2": ("florence2", tiny_captioners.florence2),
    "qwen2_vl": ("qwen_vl", tiny_captioners.qwen("Qwen2VL")),
    "qwen2_5_vl": ("qwen_vl", tiny_captioners.qwen("Qwen2_5_VL")),
    "qwen3_vl": ("qwen_vl", tiny_captioners.qwen("Qwen3VL")),
}
LENGTH = 12
SIZES = (96, 64), (200, 90), (60, 130), (300, 40)
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models, each made when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            (root / name).mkdir()
            MAKERS[name][1](root / name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def blip(models: Callable[[str], Path]) -> Path:
    return models("blip")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        scene(number).save(folder / f"{number}.png")
    (folder / "1.txt").write_text("zibo, by hand")
    (folder / "2.txt").write_text("  \n")
    (folder / "3.png").write_bytes(b"broken")
    return folder


def by_hand(folder: Path, picture: Path, length: int = LENGTH) -> str:
    """What transformers' own model says of one picture alone."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    with Image.open(picture) as image:
        given = WORDED[MAKERS[kind][0]](folder, tokenizer, image)
    written = model.generate(**given, max_new_tokens=length, do_sample=False)[0]
    if MAKERS[kind][0] == "qwen_vl":
        written = written[given["input_ids"].shape[1] :]
    if kind == "florence2":
        task = "<MORE_DETAILED_CAPTION>"
        processor: Any = transformers.Florence2Processor.from_pretrained(folder)
        answer = processor.post_process_generation(
            tokenizer.decode(written), task=task, image_size=(1, 1)
        )
        return " ".join(str(answer[task]).split())
    return " ".join(str(tokenizer.decode(written, skip_special_tokens=True)).split())


def _as_blip(folder: Path, tokenizer: Any, image: Image.Image) -> Any:
    return transformers.BlipProcessor.from_pretrained(folder)(images=[image], return_tensors="pt")


def _as_florence(folder: Path, tokenizer: Any, image: Image.Image) -> Any:
    processor = transformers.Florence2Processor.from_pretrained(folder)
    return processor(images=image, text="<MORE_DETAILED_CAPTION>", return_tensors="pt")


def _as_qwen(folder: Path, tokenizer: Any, image: Image.Image) -> Any:
    """As Qwen's processor does it, by hand: the mark of a picture as often as it has patches."""
    seen = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)([image])
    grid, pixels = torch.tensor(seen["image_grid_thw"]), torch.tensor(seen["pixel_values"])
    text = (
        f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}"
        f"<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    said = tokenizer(text, return_tensors="pt")
    marks = (said["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return {**said, "mm_token_type_ids": marks, "pixel_values": pixels, "image_grid_thw": grid}


WORDED: dict[str, Callable[[Path, Any, Image.Image], Any]] = {
    "blip": _as_blip, "florence2": _as_florence, "qwen_vl": _as_qwen,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_says_what_it_says_by_hand_however_many_it_looks_at(
    name: str, models: Callable[[str], Path], tmp_path: Path
) -> None:
    for number, size in enumerate(SIZES):
        scene(number, size).save(tmp_path / f"{number}.png")
    chosen = {
        "by": MAKERS[name][0], "model": str(models(name)), "most_tokens": LENGTH,
        "question": QUESTION,
    }  # fmt: skip
    expected = {f"{n}.txt": by_hand(models(name), tmp_path / f"{n}.png") for n in range(4)}
    assert described(tmp_path, **chosen, batch_size=3) == expected
    assert described(tmp_path, **chosen, batch_size=1) == expected
    said = set(expected.values())
    assert len(said) > 1, "another picture, another text"
    assert not any(sign in text for text in said for sign in ("<|", "</", "[P", QUESTION))
    assert max(map(len, said)) >= LENGTH - 4


def test_a_text_that_its_length_broke_off_ends_with_a_sentence(
    models: Callable[[str], Path],
) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(models("florence2"))
    told = SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer))

    def text(words: str, length: int) -> str:
        told.settings = SimpleNamespace(most_tokens=length)
        row = tokenizer(words, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return _TransformersCaptioner._text(told, row)  # type: ignore[arg-type]

    assert text("a sea. a boat. at ni", 20) == "a sea. a boat."
    assert text("a sea. a boat. at n</s>", 20) == "a sea. a boat.", "an end that was forced"
    assert text("a sea. a boat. at ni", 21) == "a sea. a boat. at ni", "there was room left"
    assert text("a sea. a boat.</s><pad>", 16) == "a sea. a boat."
    assert text("a sea, at 3.5 metr", 18) == "a sea, at 3.5 metr"


def test_a_chatting_model_sees_no_more_than_it_can_bear() -> None:
    for size, seen in (
        ((1024, 1024), (1024, 1024)), ((4000, 3000), (1182, 886)), ((1, 3000), (1, 100)),
        ((60_000, 10), (1000, 10)), ((5, 4), (5, 4)),
    ):  # fmt: skip
        assert _no_larger(Image.new("RGB", size)).size == seen


def test_blip_describes_what_has_no_caption_and_undo_takes_it_back(
    blip: Path, pictures: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["dataset", "describe", str(pictures), "--model", str(blip), "--most-tokens", "12"]
    line += ["--workspace", str(workspace), "--prefix", "zibo, "]
    assert main(line) == 0
    said = capsys.readouterr()
    assert "not written yet" in said.out and "3.png is no picture" in said.err
    assert not (pictures / "0.txt").exists()
    assert main([*line, "--write", "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [Path(row["file"]).name for row in rows[:-1]] == ["0.txt", "2.txt"]
    assert rows[-1] == {"changed": 2}
    for name in ("0", "2"):
        text = by_hand(blip, pictures / f"{name}.png")
        expected = " ".join(f"zibo, {text}".split())
        assert (pictures / f"{name}.txt").read_text().strip() == expected
    assert (pictures / "1.txt").read_text() == "zibo, by hand"
    assert by_hand(blip, pictures / "0.png")
    undo(pictures)
    assert not (pictures / "0.txt").exists() and (pictures / "2.txt").read_text() == "  \n"


def described(folder: Path, **values: Any) -> dict[str, str]:
    settings = DescribeSettings.from_values({"data": str(folder), **values})
    changes = [e for e in caption_images(settings, folder) if hasattr(e, "after")]
    return {change.path.name: change.after for change in changes}


def test_a_tagger_names_what_it_is_sure_of(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, folder = tmp_path / "tagger", tmp_path / "set"
    for path in (model, folder):
        path.mkdir()
    write_tagger(model / "model.onnx", side=16)
    rows = "tag_id,name,category,count\n1,deep_blue,0,9\n2,grass,0,9\n3,rating_red,9,9\n"
    (model / "selected_tags.csv").write_text(rows)
    Image.new("RGB", (40, 40), (250, 130, 200)).save(folder / "a.png")
    Image.new("RGB", (10, 10), (0, 200, 0)).save(folder / "b.png")
    Image.new("RGB", (20, 10), (0, 0, 0)).save(folder / "c.png")  # half of it is white paper
    chosen = {"by": "wd14", "model": str(model)}
    assert described(folder, **chosen) == {
        "a.txt": "deep blue, grass", "b.txt": "grass", "c.txt": "deep blue, grass",
    }  # fmt: skip
    assert described(folder, **chosen, threshold=0.6)["c.txt"] == ""
    (model / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be opened"):
        described(folder, **chosen)


def copied(model: Path, folder: Path, **config: Any) -> Path:
    """The model with another config."""
    shutil.copytree(model, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    return folder


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_kernels_of_the_hub_are_not_fetched(
    key: str, blip: Path, pictures: Path, tmp_path: Path
) -> None:
    model = copied(blip, tmp_path / "model", text_config={key: "somebody/kernels:version"})
    with pytest.raises(ModelError, match="code of its own"):
        described(pictures, model=str(model))
    model = copied(blip, tmp_path / "plain", **{key: "eager"})
    assert described(pictures, model=str(model))


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "processor_config.json", "its_config.json"]
)
def test_code_beside_the_weights_is_never_run(
    file: str, blip: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copied(blip, tmp_path / "model")
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass It: pass\n")
    said = json.loads((model / file).read_text()) if (model / file).exists() else {}
    kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
    said["auto_map"] = {kind: "evil.It" for kind in kinds}
    (model / file).write_text(json.dumps(said))
    monkeypatch.setattr("builtins.input", lambda _: "y")  # nobody is asked either
    with pytest.raises(ModelError, match=f"code of its own .{file} names it."):
        described(pictures, model=str(model))
    monkeypatch.setattr("sdlora.data.captioning._names_code", lambda file: False)
    with contextlib.suppress(ModelError):
        described(pictures, model=str(model))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_not_whole_is_told(blip: Path, pictures: Path, tmp_path: Path) -> None:
    model = copied(blip, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    lost = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    save_file({n: w for n, w in weights.items() if n != lost}, model / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 1 of its weights, such as .*mlp.fc1.weight"):
        described(pictures, model=str(model))
    (model / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be opened"):
        described(pictures, model=str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be opened"):
        described(pictures, model=str(model))


def test_memory_that_is_short_is_told_and_what_is_done_is_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def say(images: Any) -> list[str]:
        calls.append(len(images))
        if len(calls) > 1:
            raise torch.OutOfMemoryError
        return ["a text"] * len(images)

    monkeypatch.setitem(
        CAPTION_MODEL_TYPES, "blip", CaptionModelType("", (), lambda folder, settings: say)
    )
    with pytest.raises(ModelError, match="describe 1 pictures together; give a smaller"):
        described(pictures, model=str(tmp_path), batch_size=1, write=True)
    assert (pictures / "0.txt").read_text() == "a text\n"


def test_a_model_that_is_another_or_missing_is_told(
    blip: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="is a 'blip' model; this kind takes florence2"):
        described(pictures, by="florence2", model=str(blip))
    with pytest.raises(ModelError, match="the hub does not give it"):
        described(pictures, model="nobody/nothing")
    with pytest.raises(ModelError, match="no config.json"):
        described(pictures, model=str(pictures))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="pip install onnxruntime"):
        described(pictures, by="wd14", model=str(blip))
