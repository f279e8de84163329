"""The library of base models: every place, every name, what each is, and what nobody opens."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny_checkpoints as tiny
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.errors import ModelError
from sdlora.model_files import list_models
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.workspace import STARTER_MODEL, Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def put(path: Path, kind: str = "sd1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(tiny.checkpoint(kind), path))


def names(space: Workspace) -> dict[str, str]:
    """Name -> the path below the workspace's parent."""
    entries = CheckpointLibrary(space).list()[1:]
    return {e.name: e.path.relative_to(space.root.parent).as_posix() for e in entries}


def test_the_starter_comes_first_and_is_described(space: Workspace) -> None:
    first = CheckpointLibrary(space).list()[0]
    assert (first.name, first.path, first.info.family) == ("starter", STARTER_MODEL, "starter")
    assert not first.problem and not first.missing_parts() and first.info.dtype == "fp16"


def test_what_a_file_is(space: Workspace) -> None:
    put(space.models / "anime" / "deep" / "animerge_vpred.safetensors", "sdxl")
    put(space.models / "plain_lightning.safetensors")
    _, second, third = CheckpointLibrary(space).list()
    info = second.info
    assert (second.name, info.family, info.prediction) == ("animerge_vpred", "sdxl", "v_prediction")
    assert (info.told_by, info.few_steps, info.dtype) == ("name", False, "fp16")
    assert second.size_gib == second.path.stat().st_size / 2**30 > 0
    assert third.info.few_steps and third.info.prediction == "epsilon"


def test_a_file_without_vae_says_which_part_is_missing(space: Workspace) -> None:
    tensors = {k: v for k, v in tiny.tensors("sd1").items() if not k.startswith("first_stage")}
    tiny.write(space.models / "novae.safetensors", tensors)
    entry = CheckpointLibrary(space).find("novae")
    assert entry.missing_parts() == ["VAE"] and not entry.problem


def test_what_cannot_be_used_is_listed_with_its_sentence(space: Workspace) -> None:
    (space.models / "old.ckpt").write_bytes(b"\x80\x02rest")
    (space.models / "cut.safetensors").write_bytes(b"\x10")
    (space.models / "page.safetensors").write_bytes(b"<html>" * 9)
    (space.models / "bare").mkdir()
    problems = {e.name: str(e.problem) for e in CheckpointLibrary(space).list()[1:]}
    assert set(problems) == {"old", "cut", "page", "bare"}
    assert "launch.py models convert old.ckpt" in problems["old"]
    assert "cut short" in problems["cut"] and "web page" in problems["page"]
    assert "model_index.json is not there" in problems["bare"]


def test_folders_of_other_programs_are_read_in_place_whatever_their_case(space: Workspace) -> None:
    top = space.root.parent
    places = (
        "a1111/models/Stable-diffusion/a.safetensors", "comfy/models/checkpoints/sub/b.safetensors",
        "comfy/models/diffusion_models/c.safetensors", "comfy/models/loras/no.safetensors",
        "matrix/Data/Models/StableDiffusion/d.safetensors", "plain/deep/e.safetensors",
        "invoke/models/sdxl/main/f.safetensors",
        "invoke6/models/0b1d6c1e-5a4f-4a52-9d0f-8d7c3f2f1a11/h.safetensors",
        "forge/MODELS/STABLE-DIFFUSION/g.safetensors",
    )  # fmt: skip
    for place in places:
        put(top / place)
    folders = [
        "a1111",
        "comfy/models",
        "matrix",
        "plain",
        "invoke",
        "invoke6/models",
        "forge",
        "gone",
    ]
    lines = ["# programs", *(f'"{top / folder}"' for folder in folders)]
    (space.root / "model_folders.txt").write_text("\n".join(lines), "utf-8")
    expected = {Path(place).stem: place for place in places if "loras" not in place}
    assert names(space) == expected
    assert space.model_source("B") == str(top / places[1])
    library = CheckpointLibrary(space)
    library.list()
    assert "gone" in str(library.problems[0])


def test_names_are_unique_and_the_first_keeps_the_bare_one(space: Workspace) -> None:
    for place in ("pony.safetensors", "sdxl/pony.safetensors", "sdxl/Pony.ckpt"):
        put(space.models / place)
    top = "workspace/models"
    assert names(space) == {
        "pony": f"{top}/pony.safetensors", "sdxl/pony": f"{top}/sdxl/pony.safetensors",
        "sdxl/Pony.ckpt": f"{top}/sdxl/Pony.ckpt",
    }  # fmt: skip
    for name, place in names(space).items():
        assert space.model_source(name) == str(space.root.parent / place)
    assert space.model_names() == ["starter", "pony", "sdxl/pony"]


def test_a_name_that_is_not_there_suggests_near_ones_and_is_no_id(space: Workspace) -> None:
    put(space.models / "sub" / "animerge_v2.safetensors")
    put(space.models / "animerge_v2.safetensors")
    assert space.checked_model("Animerge v2") == str(space.models / "animerge_v2.safetensors")
    assert space.checked_model("owner/name") == "owner/name"
    for mistaken in ("animerge_v3", "sub/animerge_v3", "gpt2"):
        with pytest.raises(ModelError, match="there is no model") as raised:
            space.checked_model(mistaken)
        assert "animerge_v2" in str(raised.value)
    with pytest.raises(ModelError, match="Did you mean animerge_v2"):
        CheckpointLibrary(space).find("animerge_v3")


def test_hashes_are_computed_once_and_outlive_new_code(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(space.models / "a.safetensors")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    library = CheckpointLibrary(space)
    assert not library.find("a").sha256 and not library.known_hash(str(path))
    assert library.hashed(library.find("a")).sha256 == sha256
    monkeypatch.setattr("sdlora.assets.checkpoints._PROGRAM", 1)
    again = CheckpointLibrary(space)
    assert again.find("a").autov2 == again.known_hash(str(path)) == sha256[:10]
    found, is_claimed = again.find_by_hash(sha256[:10].upper())
    assert found and found.name == "a" and not is_claimed
    os.utime(path, (1, 1))
    assert not CheckpointLibrary(space).find("a").sha256
    assert not CheckpointLibrary(space).known_hash(str(path))
    with pytest.raises(ModelError, match="only a file has a hash"):
        again.hashed(again.find("starter"))


def test_the_first_kind_of_hash_finds_a_file(space: Workspace) -> None:
    path = put(space.models / "a.safetensors")
    legacy = hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    found, _ = CheckpointLibrary(space).find_by_hash(legacy)
    assert found and found.name == "a"


CLAIM = "ab" * 32


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("a.civitai.info", {
            "name": "v6", "baseModel": "Pony", "model": {"name": "Pony Diffusion"},
            "files": [{"hashes": {"SHA256": CLAIM.upper()}}],
        }),
        ("a.cm-info.json", {
            "ModelName": "Pony Diffusion", "VersionName": "v6", "BaseModel": "Pony",
            "Hashes": {"SHA256": CLAIM},
        }),
        ("a.metadata.json", {
            "model_name": "Pony Diffusion", "base_model": "Pony", "sha256": CLAIM,
        }),
    ],
)  # fmt: skip
def test_sidecars_are_claims(space: Workspace, file: str, page: dict[str, Any]) -> None:
    put(space.models / "a.safetensors")
    (space.models / file).write_text(json.dumps(page), "utf-8")
    (space.models / "a.preview.png").write_bytes(b"")
    entry = CheckpointLibrary(space).find("a")
    claims = entry.info.claims
    assert (claims.title, claims.base, claims.sha256) == ("Pony Diffusion", "Pony", CLAIM)
    assert claims.by == file and not entry.sha256
    assert entry.preview == space.models / "a.preview.png"
    found, is_claimed = CheckpointLibrary(space).find_by_hash(CLAIM[:10])
    assert found and is_claimed


def test_a1111s_cached_hashes_are_claims(space: Workspace) -> None:
    program = space.root.parent / "webui"
    put(program / "models" / "Stable-diffusion" / "sub" / "a.safetensors")
    rows = {"checkpoint/sub\\a.safetensors": {"mtime": 1, "sha256": CLAIM}, "x": 3}
    (program / "cache.json").write_text(json.dumps({"hashes": rows}), "utf-8")
    (space.root / "model_folders.txt").write_text(str(program), "utf-8")
    claims = CheckpointLibrary(space).find("a").info.claims
    assert (claims.sha256, claims.by) == (CLAIM, "cache.json")


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', "{" * 9999, '{"sha256": 4}'])
def test_damaged_sidecars_are_no_crash(space: Workspace, text: str) -> None:
    put(space.models / "a.safetensors")
    for ending in (".civitai.info", ".json", ".cm-info.json", ".metadata.json"):
        (space.models / f"a{ending}").write_text(text, "utf-8")
    entry = CheckpointLibrary(space).find("a")
    assert entry.info.family == "sd1" and not entry.info.claims.sha256


def test_a_diffusers_folder_is_one_model(space: Workspace) -> None:
    tiny.make("sd1").save_pretrained(space.models / "group" / "mine")
    assert names(space) == {"mine": "workspace/models/group/mine"}
    entry = CheckpointLibrary(space).find("mine")
    assert (entry.info.family, entry.info.dtype, entry.problem) == ("sd1", "fp16", "")
    assert not entry.missing_parts()


def test_unchanged_files_are_not_opened_again(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(space.models / "a.safetensors")
    before = CheckpointLibrary(space).list()
    opened: list[Path] = []

    def watched(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return read_checkpoint_header(path, *rest)

    monkeypatch.setattr("sdlora.assets.checkpoints.read_checkpoint_header", watched)
    library = CheckpointLibrary(space)
    assert library.list() == before == library.list() and not opened
    os.utime(path, (1, 1))
    library.list()
    assert opened == [path]


def test_files_of_one_table_share_it_and_keep_their_own_metadata(space: Workspace) -> None:
    tensors = tiny.tensors("sd1")
    tiny.write(space.models / "a.safetensors", tensors, **{"modelspec.prediction_type": "v"})
    tiny.write(space.models / "b.safetensors", tensors, **{"modelspec.title": "B é"})
    cut = space.models / "c.safetensors"
    cut.write_bytes((space.models / "a.safetensors").read_bytes()[:-9])
    _, a, b, c = CheckpointLibrary(space).list()
    assert (a.info.prediction, a.info.told_by) == ("v_prediction", "file")
    assert (b.info.prediction, b.info.title) == ("epsilon", "B é")
    assert "cut short" in str(c.problem)
    tables: dict[bytes, Any] = {}
    for name in "ab":
        alone = read_checkpoint_header(space.models / f"{name}.safetensors")
        shared = read_checkpoint_header(space.models / f"{name}.safetensors", tables)
        assert (alone.shapes, alone.metadata) == (shared.shapes, shared.metadata)


def test_a_link_to_what_holds_the_models_is_named_and_not_followed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "mine.safetensors").write_bytes(b"")
    (tmp_path / "not mine.safetensors").write_bytes(b"")
    (models / "up").symlink_to(tmp_path, target_is_directory=True)
    (models / "round").symlink_to(models, target_is_directory=True)
    files, problems = list_models([models])
    assert [file.name for file in files] == ["mine"]
    assert len(problems) == 1 and "up is not followed" in problems[0]
    assert "in which the folder of models itself lies" in problems[0]
