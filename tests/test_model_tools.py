"""The tools of models: listed, described, checked, converted, merged; nothing is overwritten."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import tiny_checkpoints as tiny
from sdlora import disk_room
from sdlora.assets.merge import ModelMerge, block_weight_table
from sdlora.cli.main import main
from sdlora.cli.models import VERBS
from sdlora.errors import SettingsError
from sdlora.models.checkpoint_facts import checkpoint_facts
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.models.registry import open_family
from sdlora.workspace import Workspace

CPU = torch.device("cpu")
Command = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    space = Workspace.open(tmp_path / "workspace")
    shutil.copy(tiny.checkpoint("sd1"), space.models / "first.safetensors")
    return space


@pytest.fixture
def command(space: Workspace, capsys: pytest.CaptureFixture[str]) -> Command:
    """`launch.py models ...`: exit code, rows on standard output, standard error."""

    def run(*words: str) -> tuple[int, list[dict[str, Any]], str]:
        code = main(["models", *words, "--json", "--workspace", str(space.root)])
        captured = capsys.readouterr()
        rows = [json.loads(line) for line in captured.out.splitlines()]
        return code, rows, captured.err

    return run


def second(space: Workspace, factor: float = 2.0, name: str = "second") -> None:
    scaled = {key: tensor * factor for key, tensor in tiny.tensors("sd1").items()}
    tiny.write(space.models / f"{name}.safetensors", scaled)


def test_list_names_all_and_says_why_not(command: Command, space: Workspace) -> None:
    (space.models / "old.ckpt").write_bytes(b"PK\x03\x04")
    code, rows, _ = command("list")
    assert code == 0 and [row["name"] for row in rows] == ["starter", "first", "old"]
    assert rows[1]["family"].startswith("Stable Diffusion 1")
    assert rows[1]["parts"] == ["text_encoder", "unet", "vae"] and rows[1]["numbers"] == "fp16"
    assert "is a pickle" in rows[2]["problem"]


def test_list_is_a_line_per_model(space: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--workspace", str(space.root)]) == 0
    starter, first = capsys.readouterr().out.splitlines()
    assert starter.startswith("starter: ")
    assert "predicts noise (epsilon) (usual for its family), fp16, 0.02 GiB" in first


def test_info_computes_a_hash_when_asked(command: Command, space: Workspace) -> None:
    assert command("info", "first")[1][0]["sha256"] == ""
    code, (row,), _ = command("info", "first", "--hash")
    assert code == 0 and row["AutoV2"] == row["sha256"][:10] and len(row["sha256"]) == 64
    assert command("info", "first")[1][0]["sha256"] == row["sha256"]
    code, (row,), _ = command("info", "frist")
    assert code == 1 and "Did you mean first?" in row["problem"]


def test_check_compares_every_tensor(command: Command, space: Workspace) -> None:
    tiny.make("sd1").save_pretrained(space.models / "folder")
    tensors = dict(tiny.tensors("sd1"))
    text = "cond_stage_model.transformer.text_model."
    tensors.pop(f"{text}encoder.layers.0.layer_norm1.bias")
    tiny.write(space.models / "short.safetensors", tensors)
    tensors.pop(f"{text}embeddings.token_embedding.weight")
    tiny.write(space.models / "bare.safetensors", tensors)
    code, rows, _ = command("check", "all")
    answers = {row["name"]: row for row in rows}
    assert code == 1 and answers["first"]["good"] and answers["starter"]["good"]
    assert answers["folder"]["good"] and answers["folder"]["tensors"] > 500
    assert "1 tensors of its text encoder are missing" in answers["short"]["problem"]
    assert "its token embedding is missing" in answers["bare"]["problem"]
    unet = space.models / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    tiny.write(unet, dict(list(load_file(unet).items())[1:]))
    code, (row,), _ = command("check", "folder")
    assert code == 1 and "1 tensors in" in row["problem"]


def test_file_to_folder_and_back_is_the_same_to_the_bit(command: Command, space: Workspace) -> None:
    assert command("convert", "first", "--to", "folder", "--output", "folder")[0] == 0
    assert command("convert", "folder", "--output", "again")[0] == 0
    before, after = (load_file(space.models / f"{n}.safetensors") for n in ("first", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_number_formats(command: Command, space: Workspace, precision: str) -> None:
    assert command("convert", "first", "--precision", precision, "--output", "x")[0] == 0
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    for name, tensor in load_file(space.models / "x.safetensors").items():
        assert torch.equal(tensor, tiny.tensors("sd1")[name].to(kind))


def test_a_model_that_predicts_v_stays_marked(command: Command, space: Workspace) -> None:
    tensors = {**tiny.tensors("sdxl"), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    tiny.write(space.models / "noob.safetensors", tensors)
    assert command("convert", "noob", "--precision", "bf16", "--output", "x")[0] == 0
    header = read_checkpoint_header(space.models / "x.safetensors")
    assert "v_pred" in header and "ztsnr" in header
    facts = checkpoint_facts(read_checkpoint_header(space.models / "x.safetensors"))
    assert (facts.prediction, facts.zero_terminal_snr) == ("v_prediction", True)
    open_family(str(space.models / "x.safetensors"), torch.float32, CPU)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_becomes_a_safetensors_file(
    command: Command, space: Workspace, legacy: bool
) -> None:
    content = {"state_dict": dict(tiny.tensors("sd1")), "global_step": 3}
    path = space.models / "old.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert command("convert", "old")[0] == 0
    made = load_file(space.models / "old.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in tiny.tensors("sd1").items())
    assert space.model_source("old") == str(space.models / "old.safetensors")


class Malice:
    """An object whose unpickling would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_of_something_else_is_refused_and_not_run(
    command: Command, space: Workspace, tmp_path: Path
) -> None:
    torch.save({"state_dict": {}, "callbacks": Malice(tmp_path / "ran")}, space.models / "bad.ckpt")
    torch.save([1, 2], space.models / "list.ckpt")
    (space.models / "broken.ckpt").write_bytes(b"PK\x03\x04broken")
    for name, problem in (
        ("bad", "holds more than weights"), ("list", "no weights"), ("broken", "cannot be read"),
    ):  # fmt: skip
        code, _, error = command("convert", name)
        assert code == 1 and problem in error, error
    assert not (tmp_path / "ran").exists()
    assert not list(space.models.glob(".*")) and not list(space.models.glob("bad.safetensors"))


def test_nothing_is_overwritten(command: Command, space: Workspace) -> None:
    second(space)
    before = (space.models / "second.safetensors").read_bytes()
    for words in (
        ("convert", "first"), ("convert", "first", "--output", "second"),
        ("merge", "first", "second", "--output", "second.safetensors"),
    ):  # fmt: skip
        code, _, error = command(*words)
        assert code == 1 and "exists, and is not replaced; choose another --output" in error
    assert (space.models / "second.safetensors").read_bytes() == before


@pytest.mark.parametrize("verb", ["info", "convert"])
def test_what_is_no_pickle_is_not_called_one(command: Command, space: Workspace, verb: str) -> None:
    (space.models / "noise.ckpt").write_bytes(bytes(range(7, 250)))
    code, rows, error = command(verb, "noise")
    text = str(rows) + error
    assert code == 1 and "neither a safetensors file nor a PyTorch file" in text
    assert "models convert" not in text


def test_room_is_checked_before_anything_is_written(
    command: Command, space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    second(space)
    tiny.make("sd1").save_pretrained(space.models / "folder")
    torch.save(tiny.tensors("sd1"), space.models / "old.ckpt")
    monkeypatch.setattr(disk_room, "free_bytes", lambda folder: disk_room.DISK_RESERVE + 2**20)
    before = sorted(space.models.rglob("*"))
    for words in (
        ("convert", "first", "--output", "third"),
        ("convert", "first", "--to", "folder", "--output", "third"),
        ("convert", "folder", "--output", "third"),
        ("convert", "old", "--output", "third"),
        ("merge", "first", "second"),
        ("merge", "first", "old"),
    ):
        code, _, error = command(*words)
        assert code == 1 and re.search(r"this needs \d+\.\d MiB, and the disk of ", error), error
        assert "has 257.0 MiB free" in error and "--output" in error
        assert sorted(space.models.rglob("*")) == before


def test_conversion_prints_nothing_of_the_libraries(
    space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()
    assert main(["models", "convert", "first", "--to", "folder", "--output", "third",
        "--workspace", str(space.root)]) == 0  # fmt: skip
    assert capfd.readouterr().err == ""


def test_positional_arguments_are_named_as_in_the_usage_line(
    command: Command, space: Workspace
) -> None:
    for words, named in (
        (("merge", "first"), "MODEL"),
        (("merge", *["first"] * 4), "MODEL"),
        (("convert", ""), "MODEL"),
        (("download", ""), "SOURCE"),
    ):
        code, _, error = command(*words)
        assert code == 1 and named in error and f"--{named.lower()}" not in error, error


def test_a_merge_without_a_name_is_called_by_its_models(command: Command, space: Workspace) -> None:
    second(space)
    code, (row,), _ = command("merge", "first", "second")
    assert code == 0 and row["output"] == str(space.models / "first_second.safetensors")


def test_numbers_too_large_for_fp16_are_told(command: Command, space: Workspace) -> None:
    tensors = {name: tensor.float() for name, tensor in tiny.tensors("sd1").items()}
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], 1e6)
    tiny.write(space.models / "big.safetensors", tensors)
    code, _, error = command("convert", "big", "--precision", "fp16", "--output", "x")
    assert code == 1 and "too large for fp16" in error
    assert not (space.models / "x.safetensors").exists()


def test_weighted_merge(command: Command, space: Workspace) -> None:
    second(space, 3.0)
    words = ("merge", "first", "second", "--weight", "0.25", "--precision", "fp32")
    assert command(*words, "--output", "between")[0] == 0
    path = space.models / "between.safetensors"
    for name, tensor in load_file(path).items():
        own = tiny.tensors("sd1")[name]
        expected = own.float() + 0.25 * ((own * 3.0).float() - own.float())
        assert torch.equal(tensor, expected)
    metadata = read_checkpoint_header(path).metadata
    assert metadata["modelspec.merged_from"] == "first, second"
    assert json.loads(metadata["sdlora.merge"])["weight"] == 0.25
    open_family(str(path), torch.float32, CPU)


def test_add_difference_works_on_folders_too(command: Command, space: Workspace) -> None:
    second(space, 2.0)
    tiny.make("sd1").save_pretrained(space.models / "base")
    words = ("merge", "second", "second", "base", "--method", "add_difference", "--weight", "1")
    assert command(*words, "--precision", "fp32", "--output", "sum")[0] == 0
    for name, tensor in load_file(space.models / "sum.safetensors").items():
        assert torch.equal(tensor, tiny.tensors("sd1")[name].float() * 3)


def test_block_weights(command: Command, space: Workspace) -> None:
    second(space, 2.0)
    weights = [str(number / 32) for number in range(25)]
    words = ("merge", "first", "second", "--weight", "1", "--precision", "fp32", "--output", "mbw")
    assert command(*words, "--block-weights", *weights)[0] == 0
    made = load_file(space.models / "mbw.safetensors")
    prefix = "model.diffusion_model."
    for name, place in (
        ("input_blocks.0.0.weight", 0), ("input_blocks.11.0.in_layers.2.weight", 11),
        ("middle_block.1.proj_in.weight", 12), ("output_blocks.0.0.in_layers.2.weight", 13),
        ("output_blocks.11.1.proj_in.weight", 24), ("time_embed.0.weight", 0), ("out.2.weight", 24),
    ):  # fmt: skip
        own = tiny.tensors("sd1")[prefix + name].float()
        assert torch.equal(made[prefix + name], own * (1 + place / 32)), name
    text = next(name for name in made if name.startswith("cond_stage_model"))
    assert torch.equal(made[text], tiny.tensors("sd1")[text].float() * 2)
    names = list(tiny.tensors("sd1"))
    table = block_weight_table(ModelMerge(block_weights=(0.9, *[0.1] * 25)), names)
    assert table[text] == 0.9 and table[prefix + "out.2.weight"] == 0.1
    with pytest.raises(SettingsError, match="this model takes 25"):
        block_weight_table(ModelMerge(block_weights=(0.5,) * 19), names)


def test_what_does_not_go_together(command: Command, space: Workspace) -> None:
    shutil.copy(tiny.checkpoint("sd2"), space.models / "other.safetensors")
    second(space)
    for words, problem in (
        (("first", "other"), "only models of one family are merged"),
        (("first", "second", "second"), "weighted takes 2 models; 3 are named"),
        (("first", "second", "--method", "add_difference"), "takes 3 models"),
        (("first", "second", "--block-weights", "1"), "has 1 numbers"),
        (("first", "nobody"), "there is no model 'nobody'"),
    ):
        code, _, error = command("merge", *words, "--output", "x")
        assert code == 1 and problem in error, error


def test_a_part_that_the_other_lacks_stays_that_of_the_first(
    command: Command, space: Workspace
) -> None:
    novae = {k: v for k, v in tiny.tensors("sd1").items() if not k.startswith("first_stage")}
    tiny.write(space.models / "novae.safetensors", novae)
    code, (row,), _ = command("merge", "first", "novae", "--output", "x")
    made = load_file(space.models / "x.safetensors")
    assert code == 0 and made.keys() == tiny.tensors("sd1").keys()
    assert row["tensors"]["merged"] == len(novae)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: launch.py {VERBS[name].example}" in shown
