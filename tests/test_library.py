"""Finding LoRA files by name, alias and hash, in folders of any shape."""

import hashlib
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from launch import ROOT
from raw_lora import beside, lora, shapes_of
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import read_lora
from sdlora.lora.format.header import read_header
from sdlora.lora.library import library as library_module
from sdlora.lora.library.library import Library
from sdlora.prompt import parse_prompt
from sdlora.prompt.tags import format_tag


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "loras"
    lora(root / "neon.safetensors", ss_output_name="old neon")
    lora(root / "My_style-v1.0.safetensors", 2048)
    lora(root / "people" / "zibo.safetensors", 128)
    return root


# By name


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


def test_letters_are_alike_however_they_are_stored(tmp_path: Path) -> None:
    lora(tmp_path / "Größe.safetensors")
    assert Library([tmp_path]).find("GRÖSSE").name == "Größe"
    assert Library([tmp_path]).find(unicodedata.normalize("NFD", "Größe")).name == "Größe"


@pytest.mark.parametrize(
    ("name", "found", "why"),
    [
        ("neon.safetensors", "neon", "ending"),
        ("NEON.SFT", "neon", "ending"),
        ("my style v1.0.ckpt", "My_style-v1.0", "ending"),
        ("people/zibo.safetensors", "people/zibo", "ending"),
        ("styles/neon", "neon", "the only file of that name"),
        ("a\\b\\Zibo", "people/zibo", "the only file of that name"),
        ("styles/zibo.safetensors", "people/zibo", "the only file of that name"),
    ],
)
def test_a_name_with_more_around_it_is_told(name: str, found: str, why: str, folder: Path) -> None:
    entry = Library([folder]).find(name)
    assert entry.full_name == found
    assert repr(found) in entry.note and why in entry.note
    assert not Library([folder]).find("neon").note


def test_a_folder_that_is_not_there_names_none_of_several(tmp_path: Path) -> None:
    for place in "ab":
        lora(tmp_path / place / "x.safetensors")
    with pytest.raises(LoraFileError, match="there is no LoRA 'c/x'. Did you mean [ab]/x or"):
        Library([tmp_path]).find("c/x")


def test_a_name_that_a_tag_cannot_hold_is_written_without_its_signs(tmp_path: Path) -> None:
    try:
        lora(tmp_path / "Style: Noir <v1>.safetensors")
    except OSError:
        pytest.skip("this disk has no such names")
    tag = parse_prompt(format_tag("Style: Noir <v1>", 0.8)).loras[0]
    assert Library([tmp_path]).find(tag.name).name == "Style: Noir <v1>"
    with pytest.raises(LoraFileError):
        Library([tmp_path]).find(":")


@pytest.mark.parametrize("ending", [".pt", ".ckpt", ".BIN", ".pth"])
def test_a_file_that_may_hold_code_is_named_and_never_opened(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"neon{ending}"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    lora(tmp_path / "both.safetensors")
    (tmp_path / "both.pt").write_bytes(b"\x80\x04")
    entries = {entry.name: entry for entry in Library([tmp_path]).list()}
    assert entries.keys() == {"neon", "both"} and not entries["both"].problem
    assert f"neon{ending} may hold code and is not read" in entries["neon"].problem
    assert "'neon.safetensors'" in entries["neon"].problem
    assert Library([tmp_path]).find("neon").path == path
    for read in (read_header, read_lora):
        with pytest.raises(LoraFileError, match="may hold code"):
            read(path)


def test_a_file_that_can_be_read_comes_before_one_that_may_hold_code(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    usable = lora(tmp_path / "styles" / "x.safetensors")
    assert Library([tmp_path]).find("x").path == usable
    second = lora(tmp_path / "other" / "x.safetensors")
    library = Library([tmp_path, tmp_path / "other"])
    assert library.find("x").path != tmp_path / "x.pt"
    assert second in {entry.path for entry in library.list() if not entry.problem}


def test_files_that_end_in_sft_are_safetensors(tmp_path: Path) -> None:
    path = lora(tmp_path / "Neon.SFT")
    beside(path, ".json", {"activation text": "glow"})
    (entry,) = Library([tmp_path]).list()
    assert (entry.name, entry.family, entry.trigger_words) == ("Neon", "sd1", ("glow",))
    assert Library([tmp_path]).find("neon").path == path


@pytest.mark.parametrize("name", ["neo", "", "../neon", "neon.safetensors/..", "/etc/passwd"])
def test_what_is_not_there_is_not_found(name: str, folder: Path) -> None:
    with pytest.raises(LoraFileError, match="there is no LoRA"):
        Library([folder]).find(name)


def test_near_names_are_offered_among_many(folder: Path) -> None:
    for number in range(200):
        lora(folder / f"something_else_{number}.safetensors")
    lora(folder / "neon_2.safetensors")
    with pytest.raises(LoraFileError, match="Did you mean neon or neon_2"):
        Library([folder]).find("neom")


def test_list_tells_base_kind_rank_and_size(folder: Path) -> None:
    entries = Library([folder]).list()
    assert [(e.full_name, e.family, e.rank, e.facts.kinds) for e in entries] == [
        ("My_style-v1.0", "sdxl", 4, ["LoRA"]),
        ("neon", "sd1", 4, ["LoRA"]),
        ("people/zibo", "starter", 4, ["LoRA"]),
    ]
    assert entries[0].size_bytes == (folder / "My_style-v1.0.safetensors").stat().st_size


def test_the_highest_rank_counts(tmp_path: Path) -> None:
    other = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    shapes = {**shapes_of(768, rank=2), **shapes_of(768, rank=6, layer=other)}
    lora(tmp_path / "a.safetensors", shapes=shapes)
    assert Library([tmp_path]).list()[0].rank == 6


def test_of_two_files_of_one_name_both_are_listed_and_the_choice_is_told(tmp_path: Path) -> None:
    own, shipped = lora(tmp_path / "own" / "a.safetensors"), lora(tmp_path / "b" / "a.safetensors")
    library = Library([tmp_path / "own", tmp_path / "b"])
    found = library.find("A")
    assert (found.path, found.also) == (own, (shipped,))
    first, second = library.list()
    assert (first.path, first.also, first.problem) == (own, (shipped,), "")
    assert second.path == shipped and f"'a' means {own}" in second.problem


def test_one_name_in_two_sub_folders_is_told_too(tmp_path: Path) -> None:
    near, far = lora(tmp_path / "b" / "x.safetensors"), lora(tmp_path / "a" / "c" / "x.safetensors")
    library = Library([tmp_path])
    assert (library.find("x").path, library.find("x").also) == (near, (far,))
    assert library.find("a/c/x").path == far and not library.find("a/c/x").also
    assert not any(entry.problem or entry.also for entry in library.list())


def test_exact_case_wins(tmp_path: Path) -> None:
    for name in ("Neon", "neon"):
        lora(tmp_path / name / "x.safetensors")
        lora(tmp_path / f"{name}_{name}.safetensors")
    assert Library([tmp_path]).find("neon_neon").name == "neon_neon"
    assert Library([tmp_path]).find("Neon/x").folder == "Neon"


# By hash


@pytest.fixture
def hashed(folder: Path) -> tuple[Path, dict[str, str]]:
    """A file long enough for every hash, and what they are by their definitions."""
    wide = {"lora_unet_x.lora_down.weight": [768, 768], "lora_unet_x.lora_up.weight": [768, 768]}
    path = lora(folder / "big.safetensors", shapes=wide, fill=7)
    content = path.read_bytes()
    assert len(content) > 0x110000
    (length,) = struct.unpack("<Q", content[:8])
    return path, {
        "sha256": hashlib.sha256(content).hexdigest(),
        "AutoV2": hashlib.sha256(content).hexdigest()[:10],
        "AutoV3": hashlib.sha256(content[8 + length :]).hexdigest()[:12],
        "legacy": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


def nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read for its hash")

    monkeypatch.setattr(library_module, "read_hashes", refuse)


@pytest.mark.parametrize("kind", ["sha256", "AutoV2", "AutoV3", "legacy"])
def test_find_by_hash(kind: str, hashed: tuple[Path, dict[str, str]], folder: Path) -> None:
    path, hashes = hashed
    assert Library([folder]).find(hashes[kind]).path == path
    assert Library([folder]).find(hashes[kind][:8].upper()).path == path
    with pytest.raises(LoraFileError, match="there is no LoRA"):
        Library([folder]).find(hashes[kind][:7])


def test_hashes_are_read_once(
    hashed: tuple[Path, dict[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, hashes), index = hashed, folder.parent / "index.db"
    read = Library([folder], index).hashes(Library([folder], index).find("big"))
    assert [read.sha256, read.autov2, read.autov3, read.legacy] == list(hashes.values())
    nobody_reads(monkeypatch)
    path.with_suffix(".json").write_text('{"activation text": "big"}', "utf-8")
    for known in (hashes["AutoV3"], hashes["AutoV3"].upper(), hashes["sha256"][:8].upper()):
        entry = Library([folder], index).find(known)
        assert entry.path == path and entry.hashes == read and entry.trigger_words == ("big",)


def test_a_changed_file_has_other_hashes(hashed: tuple[Path, dict[str, str]], folder: Path) -> None:
    (path, hashes), library = hashed, Library([folder], folder.parent / "index.db")
    assert library.find(hashes["AutoV3"]).path == path
    lora(path, 1024)
    for some in (library, Library([folder], folder.parent / "index.db")):
        with pytest.raises(LoraFileError, match="there is no LoRA"):
            some.find(hashes["AutoV3"])


def test_the_hash_that_a_file_claims_finds_it_unread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora(folder / "claims.safetensors", sshs_model_hash="AB" * 32)
    nobody_reads(monkeypatch)
    for claimed in ("abababababab", "ABABABABABAB"):
        assert Library([folder]).find(claimed).name == "claims"


def test_many_files_are_not_all_read_for_one_hash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "HASHED_AT_ONCE", 1)
    library = Library([folder])
    sha = hashlib.sha256((folder / "people" / "zibo.safetensors").read_bytes()).hexdigest()
    for left in (2, 1):
        with pytest.raises(LoraFileError, match=f"{left} files are not read yet: ask again"):
            library.find(sha[:10])
    assert library.find(sha[:10]).name == "zibo"


def test_a_hidden_file_is_found_by_its_hash(tmp_path: Path) -> None:
    lora(tmp_path / "own" / "a.safetensors")
    hidden = lora(tmp_path / "b" / "a.safetensors", 2048)
    library = Library([tmp_path / "own", tmp_path / "b"])
    assert library.find(hashlib.sha256(hidden.read_bytes()).hexdigest()).path == hidden


# Folders


def test_unusable_files_are_listed_with_their_problem(folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"nonsense, and quite a lot of it")
    (folder / "dangling.SAFETENSORS").symlink_to(folder / "nowhere")
    (folder / "itself.safetensors").symlink_to(folder / "itself.safetensors")
    (folder / ".hidden.safetensors").write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    lora(folder / ".cache" / "hidden.safetensors")
    lora(folder / "other.safetensors", shapes={"model.weight": [2, 2]})
    entries = {entry.name: entry for entry in Library([folder]).list()}
    assert "not a safetensors file" in entries["broken"].problem
    assert "cannot be read" in entries["dangling"].problem
    assert "cannot be read" in entries["itself"].problem
    assert "keys are unknown" in entries["other"].problem
    assert not entries["neon"].problem
    assert len(entries) == 7


def test_listing_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib; from sdlora.lora.library.library import Library\n"
        f"assert len(Library([pathlib.Path({str(folder)!r})]).list()) == 3\n"
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
