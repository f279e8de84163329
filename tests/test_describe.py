"""Captions by models that look: a tiny BLIP and a tagger, both real, on real pictures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from awkward import scene
from onnx_file import write_tagger
from sdlora.cli import main
from sdlora.data.describing import DescribeSettings
from sdlora.data.edit import undo
from sdlora.describe import describe
from sdlora.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "[ENC]", "a", "red", "ball", "sea", "night"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of a few thousand random weights that knows eleven words."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "encoder_hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 2, "sep_token_id": 3,
        "projection_dim": 16,
    }  # fmt: skip
    eyes = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "image_size": 32,
        "num_attention_heads": 2, "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=eyes, projection_dim=16)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():  # so that it says something, and another thing of another picture
        for weight in model.parameters():
            weight.normal_(0, 0.7)
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


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


def by_hand(blip: Path, picture: Path) -> str:
    """What transformers' own classes say of it."""
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipProcessor.from_pretrained(blip)
    with Image.open(picture) as image:
        given = processor(images=[image], return_tensors="pt")
    written = model.generate(**given, max_new_tokens=6, do_sample=False)
    return str(processor.batch_decode(written, skip_special_tokens=True)[0]).strip()


def test_blip_describes_what_has_no_caption_and_undo_takes_it_back(
    blip: Path, pictures: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["dataset", "describe", str(pictures), "--model", str(blip), "--most-tokens", "6"]
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
    settings = DescribeSettings.of({"data": str(folder), **values})
    changes = [e for e in describe(settings, folder) if hasattr(e, "after")]
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
