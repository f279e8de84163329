"""Finding LoRA files by name, from their headers alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import ROOT
from sdlora.errors import LoraFileError
from sdlora.lora.file import LoraFile, LoraPair, write_lora
from sdlora.lora.header import body_hash
from sdlora.lora.library import Library, trigger_words


def lora(path: Path, width: int = 768, **metadata: str) -> Path:
    some = LoraPair(torch.ones(4, width), torch.ones(8, 4), 4.0)
    return write_lora(LoraFile({"lora_unet_x_attn2_to_k": some}, metadata), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lora(tmp_path / "neon.safetensors", ss_output_name="old neon")
    lora(tmp_path / "My_style-v1.0.safetensors", 2048)
    lora(tmp_path / "people" / "zibo.safetensors", 128)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("neon", "neon"),
        ("NEON", "neon"),
        (" neon ", "neon"),
        ("old neon", "neon"),
        ("Old_Neon", "neon"),
        ("My_style-v1.0", "My_style-v1.0"),
        ("my style v1 0", "My_style-v1.0"),
        ("MY.STYLE.V1.0", "My_style-v1.0"),
        ("zibo", "zibo"),
        ("people/zibo", "zibo"),
        ("People\\Zibo", "zibo"),
    ],
)
def test_find(name: str, found: str, folder: Path) -> None:
    assert Library([folder]).find(name).name == found


@pytest.mark.parametrize("name", ["neo", "", "../neon", "neon.safetensors/..", "/etc/passwd"])
def test_what_is_not_there_is_not_found(name: str, folder: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no LoRA"):
        Library([folder]).find(name)


def test_near_names_are_offered(folder: Path) -> None:
    with pytest.raises(LoraFileError, match="Did you mean neon"):
        Library([folder]).find("neom")


def test_list_tells_base_rank_and_size(folder: Path) -> None:
    entries = Library([folder, folder / "none"]).list()
    assert [(e.full_name, e.family, e.rank) for e in entries] == [
        ("My_style-v1.0", "sdxl", 4),
        ("neon", "sd1", 4),
        ("people/zibo", "starter", 4),
    ]
    assert entries[0].size_bytes == (folder / "My_style-v1.0.safetensors").stat().st_size
    assert entries[1].autov3 == body_hash(folder / "neon.safetensors")[:12]


def test_first_folder_wins_and_it_is_told(tmp_path: Path) -> None:
    own, shipped = lora(tmp_path / "own" / "a.safetensors"), lora(tmp_path / "b" / "a.safetensors")
    library = Library([tmp_path / "own", tmp_path / "b"])
    found = library.find("A")
    assert (found.path, found.also) == (own, (shipped,))
    assert [(e.path, e.also) for e in library.list()] == [(own, (shipped,))]


def test_exact_case_wins(tmp_path: Path) -> None:
    for name in ("Neon", "neon"):
        lora(tmp_path / name / "x.safetensors")
        lora(tmp_path / f"{name}_{name}.safetensors")
    assert Library([tmp_path]).find("neon_neon").name == "neon_neon"
    assert Library([tmp_path]).find("Neon/x").folder == "Neon"


def test_unreadable_file_is_listed_with_its_problem(folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"nonsense, and quite a lot of it")
    (folder / "dangling.SAFETENSORS").symlink_to(folder / "nowhere")
    (folder / ".hidden.safetensors").write_bytes(b"")
    entries = {entry.name: entry for entry in Library([folder]).list()}
    assert "not a safetensors file" in entries["broken"].problem
    assert "cannot be read" in entries["dangling"].problem
    assert ".hidden" not in entries and not entries["neon"].problem


def test_a_changed_file_is_read_again(folder: Path) -> None:
    library = Library([folder])
    assert library.find("neon").family == "sd1"
    lora(folder / "neon.safetensors", 1024)
    assert library.find("neon").family == "sd2"


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "neon lighting"}, ("neon lighting",)),
        ({"trained_words": '["zibo", "robot"]'}, ("zibo", "robot")),
        ({"trained_words": "zibo, robot"}, ("zibo", "robot")),
        ({"ss_tag_frequency": json.dumps({"10_a": {"zibo": 20, "sea": 3}})}, ("zibo",)),
        ({"ss_tag_frequency": json.dumps({"a": {c: 1 for c in "abcdefgh"}})}, ()),
        ({"ss_tag_frequency": "{broken"}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({}, ()),
    ],
)
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert trigger_words(metadata) == words


def test_listing_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from sdlora.lora.library import Library\n"
        f"assert len(Library([pathlib.Path({str(folder)!r})]).list()) == 3\n"
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
