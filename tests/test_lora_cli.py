"""`launch.py lora`: every tool from its flags to the file on the disk, and what it says."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from adapter_cases import by_input, make_loha, make_lokr, make_lora, random
from launch import ROOT
from sdlora.cli.lora import TOOLS
from sdlora.cli.main import main
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.layer import Adapter
from tiny import open_tiny, tiny, tiny_lora

Run = Callable[..., tuple[int, list[dict[str, Any]], str]]


@pytest.fixture
def run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a tool with --json: exit code, its answers, what it wrote to standard error."""
    (workspace / "loras").mkdir()
    shutil.copytree(tiny("sd1"), workspace / "models" / "tiny")
    family = open_tiny("sd1")
    said = {"modelspec.trigger_phrase": "one, both", "ss_base_model_version": "sd_v1",
            "ss_tag_frequency": '{"cats": {"one": 3}}', "ss_seed": "4"}  # fmt: skip
    for seed, name in enumerate(("one", "two"), 1):
        file = tiny_lora(family, seed=seed, scale=0.05)
        words = said if name == "one" else {**said, "modelspec.trigger_phrase": "both, two"}
        lora = LoraFile(file.layers, words)
        write_lora(lora, workspace / "loras" / f"{name}.safetensors", torch.float32)

    def runs(*words: object) -> tuple[int, list[dict[str, Any]], str]:
        line = ["lora", *map(str, words), "--workspace", str(workspace), "--json"]
        code = main(line)
        out, err = capsys.readouterr()
        return code, [json.loads(row) for row in out.splitlines()], err

    return runs


def test_info(run: Run, workspace: Path) -> None:
    code, (facts,), _ = run("info", "one")
    path = workspace / "loras" / "one.safetensors"
    assert code == 0
    assert facts["file"] == str(path)
    assert facts["kinds"] == {"LoRA": facts["parts"]["unet"] + facts["parts"]["te"]}
    assert set(facts["ranks"]) <= {"2", "4"}
    assert facts["trigger words"] == ["one", "both"]
    assert set(facts["layers"]) == {"attention", "feed_forward", "conv", "text_encoder"}
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["AutoV2"] == facts["sha256"][:10]


def test_info_goes_on_after_a_file_that_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(b"nothing")
    code, answers, _ = run("info", tmp_path / "odd.safetensors", "one")
    assert code == 1
    assert [answer["good"] for answer in answers] == [False, True]
    assert "odd.safetensors is not a safetensors file" in answers[0]["problem"]


def test_check_tells_what_fits(run: Run, workspace: Path) -> None:
    code, (answer,), _ = run("check", "one", "--model", "tiny")
    assert (code, answer["model"], answer["unmatched"]) == (0, "tiny", [])
    code, (answer,), _ = run("check", "neon_lighting", "--model", "tiny")
    assert code == 1
    assert "starter model" in answer["problem"]
    code, (answer,), _ = run("check", "neon_lighting")  # the starter model is always at hand
    assert (code, answer["model"]) == (0, "starter")


def test_convert(run: Run, workspace: Path, tmp_path: Path) -> None:
    Image.new("RGB", (600, 300), "red").save(tmp_path / "red.png")
    out = tmp_path / "half.safetensors"
    code, (answer,), _ = run(
        "convert", "one", "--output", out, "--names", "peft", "--precision", "fp16", "--private",
        "--trigger-words", "mine", "yours", "--thumbnail", tmp_path / "red.png",
    )  # fmt: skip
    assert code == 0
    assert 0 < answer["lost"]["all"] < 1e-3
    assert "ss_tag_frequency" in answer["taken out"]
    assert not any("hash" in key for key in answer["taken out"])  # written anew
    before, after = read_lora(workspace / "loras" / "one.safetensors"), read_lora(out)
    assert after.layers.keys() == before.layers.keys()
    assert after.metadata["modelspec.trigger_phrase"] == "mine, yours"
    assert after.metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert after.metadata["ss_seed"] == "4"
    assert b".lora_A.weight" in out.read_bytes()
    StableDiffusionPipeline.from_pretrained(
        tiny("sd1"), safety_checker=None, requires_safety_checker=False
    ).load_lora_weights(out)


def of_kind(kind: str, workspace: Path) -> None:
    """That kind of adapter on the layers of `one`, as `odd`, with a key that nobody knows."""
    make = {"LoHa": make_loha, "LoKr": make_lokr(False, True), "DoRA": by_input(make_lora)}[kind]
    layers = read_lora(workspace / "loras" / "one.safetensors").layers
    few = {name: it for name, it in layers.items() if "attn1" in name}
    made = {
        name: Adapter(kind, make(it.shape, random(number)))
        for number, (name, it) in enumerate(few.items())
    }
    path = write_lora(LoraFile(made), workspace / "loras" / "odd.safetensors", torch.float32)
    save_file({**load_file(path), "odd.key": torch.ones(1)}, path)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_convert_to_what_every_program_reads(kind: str, run: Run, workspace: Path) -> None:
    of_kind(kind, workspace)
    asked = ["convert", "odd", "--to", "lora", "--output", "plain", "--precision", "fp32"]
    code, (answer,), _ = run(*asked, "--model", "tiny")
    assert code == 0 and answer["lost"]["all"] < 0.02
    assert (
        "odd.safetensors has tensors that are not known here and not used" in answer["warnings"][0]
    )
    before, after = (read_lora(workspace / "loras" / f"{n}.safetensors") for n in ("odd", "plain"))
    assert after.kinds.keys() == {"LoRA"} and after.layers.keys() == before.layers.keys()
    assert after.metadata["ss_network_module"] == "networks.lora"
    stock: Any = StableDiffusionPipeline.from_pretrained(
        tiny("sd1"), safety_checker=None, requires_safety_checker=False
    )
    family = open_tiny("sd1")
    stock.load_lora_weights(workspace / "loras" / "plain.safetensors")
    stock.fuse_lora()
    for name, adapter in before.layers.items():
        part, path = family.module_names()[name]
        layer = (stock.unet if part == "denoiser" else stock.text_encoder).get_submodule(path)
        weight = family.components[part].get_submodule(path).weight.detach()
        wanted = adapter.delta(weight)
        assert (layer.base_layer.weight - weight - wanted).norm() < 0.02 * wanted.norm(), name
    code, (answer,), _ = run(*asked, "--model", "tiny", "--rank", "1", "--overwrite")
    assert (code, answer["rank"]) == (0, "1") and answer["lost"]["all"] > 0.05
    code, _, said = run("convert", "odd", "--rank", "1", "--output", "no")
    assert code != 0 and "--to lora" in said


def test_merge_writes_what_it_says(run: Run, workspace: Path) -> None:
    code, (answer,), _ = run(
        "merge", "one", "two", "--weights", "0.5", "-0.25", "--method", "concat",
        "--precision", "fp32", "--output", "both",
    )  # fmt: skip
    out = workspace / "loras" / "both.safetensors"
    assert (code, answer["output"]) == (0, str(out))
    assert answer["lost"]["all"] < 1e-5
    one, two, both = (read_lora(workspace / "loras" / f"{n}.safetensors")
                      for n in ("one", "two", "both"))  # fmt: skip
    for name, adapter in both.layers.items():
        shape = torch.zeros(adapter.shape)
        wanted = 0.5 * one.layers[name].delta(shape) - 0.25 * two.layers[name].delta(shape)
        assert float((adapter.delta(shape) - wanted).norm() / wanted.norm()) < 1e-4
    assert both.metadata["modelspec.trigger_phrase"] == "one, both, two"
    assert both.metadata["modelspec.title"] == "both"
    assert both.metadata["modelspec.merged_from"] == "one, two"
    assert both.base == one.base


def test_resize_and_its_report(run: Run, workspace: Path) -> None:
    code, (answer,), _ = run("resize", "one", "--rank", "1", "--output", "small")
    assert (code, answer["rank"]) == (0, "1")
    assert {"attention", "conv", "text_encoder"} < answer["lost"].keys()
    assert 0.01 < answer["lost"]["all"] < 1
    said = read_lora(workspace / "loras" / "small.safetensors").metadata
    assert (said["ss_network_dim"], said["ss_seed"]) == ("1", "4")
    code, (answer,), _ = run("resize", "one", "--keep", "0.999999", "--output", "same")
    assert answer["lost"]["all"] < 0.01
    assert (
        read_lora(workspace / "loras" / "same.safetensors").metadata["ss_network_dim"] == "Dynamic"
    )


@pytest.mark.parametrize("output", ["fused", "fused.safetensors"])
def test_fuse_then_extract(run: Run, workspace: Path, tmp_path: Path, output: str) -> None:
    out = tmp_path / output
    code, (answer,), _ = run("fuse", "one", "--model", "tiny", "--output", out)
    assert (code, answer["output"]) == (0, str(out))
    assert answer["lost"]["all"] < 1e-4
    code, (answer,), _ = run("extract", "tiny", out, "--precision", "fp32", "--output", "again")
    assert code == 0
    one, again = (read_lora(workspace / "loras" / f"{n}.safetensors") for n in ("one", "again"))
    assert again.layers.keys() == one.layers.keys()
    name = next(iter(one.layers))
    shape = torch.zeros(one.layers[name].shape)
    wanted = one.layers[name].delta(shape)
    assert float((again.layers[name].delta(shape) - wanted).norm() / wanted.norm()) < 1e-2


def test_compare_draws(run: Run, tmp_path: Path) -> None:
    code, (answer,), _ = run("compare", "one", "two", "--picture", tmp_path / "table.png")
    assert code == 0
    groups = answer["groups"]
    assert 0 < groups["attention"]["outputs"] < 1
    assert groups.pop("all")["layers"] == sum(row["layers"] for row in groups.values()) > 0
    with Image.open(tmp_path / "table.png") as image:
        assert image.format == "PNG"
    with pytest.raises(SystemExit):
        main(["lora", "compare", "one"])
    code, _, err = run("compare", "one", "two", "--picture", tmp_path / "table.png")
    assert (code, "--overwrite" in err) == (1, True)


def test_no_file_is_replaced_without_being_told(run: Run, workspace: Path) -> None:
    path = workspace / "loras" / "two.safetensors"
    before = path.read_bytes()
    code, _, err = run("resize", "one", "--rank", "1", "--output", "two")
    assert code == 1
    assert "two.safetensors exists" in err and "--overwrite" in err
    assert path.read_bytes() == before
    code, _, _ = run("resize", "one", "--rank", "1", "--output", "two", "--overwrite")
    assert code == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["info", "nothing"], "there is no LoRA 'nothing'"),
        (["merge", "one", "two", "--output", "x", "--weights", "1"], "1 weights for 2 files"),
        (["merge", "one", "neon_lighting", "--output", "x"], "different base models"),
        (["resize", "one", "--output", "x"], "--rank 8 or --keep 0.95"),
        (["resize", "one", "--rank", "2"], "output"),
        (["resize", "one", "--rank", "2", "--output", ".x"], "cannot be a name"),
        (["convert", "one", "--output", "x", "--thumbnail", "no.png"], "no.png cannot be read"),
        (["extract", "tiny", "starter", "--output", "x"], "not of one architecture"),
        (["fuse", "neon_lighting", "--model", "tiny", "--output", "x"], "starter model"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, workspace: Path, line: list[str], said: str) -> None:
    code, answers, err = run(*line)
    assert code == 1
    assert said in err + json.dumps(answers, ensure_ascii=False)
    assert not list(workspace.glob("*/x*"))


def test_text_for_people(run: Run, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", "one")
    assert main(["lora", "info", "one", "--workspace", str(workspace)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one"
    assert any(line.split() == ["trigger", "words", "one,", "both"] for line in lines)
    assert main(["lora", "compare", "one", "two", "--workspace", str(workspace)]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert head == ["layers", "alone", "sizes", "outputs", "inputs", "chance", "loss"]
    told = " ".join(
        word for row in rows[[row[0] for row in rows].index("all") + 1 :] for word in row
    )
    assert all(f"{what}:" in told for what in ("alone", "sizes", "outputs, inputs", "chance"))


@pytest.mark.parametrize("tool", TOOLS)
def test_every_setting_of_a_tool_can_be_given(
    tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["lora", tool, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    row = TOOLS[tool]
    for name in set(row.settings.model_fields) - set(row.operands):
        assert f"--{name.replace('_', '-')}" in text
    assert (row.settings.__doc__ or "-")[:30] in text


def test_help_and_info_leave_torch_alone(workspace: Path) -> None:
    code = (
        "import sys; from sdlora.cli.main import main; "
        f"main(['lora', 'info', 'neon_lighting', '--workspace', {str(workspace)!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
