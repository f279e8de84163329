"""Files of other programs: what is not known in them is left out by name, and the rest is used."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapter_cases import error, make_blocks, make_lokr, make_lora, random
from sdlora.errors import LoraFileError
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.library.describe import describe
from sdlora.lora.library.library import Library

LAYERS = [f"lora_unet_mid_block_attentions_0_transformer_blocks_{i}_attn1_to_q" for i in range(4)]
OUT, IN = 12, 8


def tensors() -> dict[str, Tensor]:
    """A LoRA's, of four layers."""
    return {
        f"{name}.{end}": value
        for number, name in enumerate(LAYERS)
        for end, value in zip(
            ("lora_down.weight", "lora_up.weight", "alpha"),
            make_lora((OUT, IN), random(number)).values(),
            strict=True,
        )
    }


def saved(folder: Path, more: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({**tensors(), **more}, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


# Keys that nobody knows, or of kinds that are not read -> their tensors
UNKNOWN: dict[str, dict[str, Tensor]] = {
    "odd name": {"lora_unet_x.odd": torch.ones(2)},
    "no grammar": {"something.else": torch.ones(3, 3)},
    "a LoRA of an embedding": {"unet.x.lora_embedding_A": torch.ones(2, 6)},
    "many axes": {"video.weight": torch.ones(1, 1, 2, 2, 2)},
    "whole numbers": {f"{LAYERS[0]}.bias_indices": torch.zeros(2, 9, dtype=torch.int16)},
    "control characters": {"a\x1b[31m\n": torch.ones(1)},
    "several": {f"network.{i}": torch.ones(2) for i in range(6)},
    "beside a layer": {f"{LAYERS[0]}.lora_down.bias": torch.ones(3)},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_is_named_and_the_rest_used(what: str, tmp_path: Path) -> None:
    path = saved(tmp_path, UNKNOWN[what])
    file = read_lora(path)
    assert list(file.layers) == LAYERS
    assert set(file.unread) == UNKNOWN[what].keys()
    entry = Library([tmp_path]).find("a")
    assert entry.problem == "" and entry.facts.kinds == ["LoRA"]
    (note,) = entry.facts.notes
    assert note.startswith("a.safetensors has tensors that are not known here")
    assert repr(min(UNKNOWN[what]))[1:-1] in note and note.isprintable()
    assert ("3 more" in note) == (len(UNKNOWN[what]) == 6)
    assert describe(path)["not used"] == sorted(UNKNOWN[what])
    again = load_file(write_lora(file, tmp_path / "again.safetensors", torch.float32))
    assert again.keys() == tensors().keys()


def test_what_is_mostly_not_known_is_refused(tmp_path: Path) -> None:
    for count, good in ((12, True), (13, False)):
        path = saved(tmp_path, {f"x.{i}": torch.ones(1) for i in range(count)})
        if good:
            assert len(read_lora(path).unread) == count
            continue
        with pytest.raises(LoraFileError, match="13 of its 25 keys are unknown") as refused:
            read_lora(path)
        assert refused.value.code == "unknown_keys"


# Metadata as programs and faults leave it: JSON, not all of it of texts
METADATA: dict[str, bytes] = {
    "a number": b'{"a": 1}',
    "no table": b"5",
    "nothing": b"null",
    "a list": b'["a", "b"]',
    "a table in it": b'{"ss_tag_frequency": {"a": {"b": 1}}, "ss_output_name": null}',
    "a name twice": b'{"a": "1", "a": "2"}',
    "a name twice, deeper": b'{"a": {"b": 1, "b": 2}}',
    "no text": b'{"a": "\xff\xfe \x80"}',
    "control characters": b'{"a": "tab\there\nand there"}',
    "an endless number": b'{"a": ' + b"9" * 5000 + b"}",
    "long": b'{"a": "' + b"x" * 70_000 + b'"}',
    "alphas of odd types": json.dumps({"lora_adapter_metadata": "[1, 2]"}).encode(),
    "alphas of odd values": json.dumps(
        {"lora_adapter_metadata": '{"unet.lora_alpha": NaN, "unet.alpha_pattern": [1]}'}
    ).encode(),
    "an alpha out of all numbers": json.dumps(
        {"lora_adapter_metadata": '{"unet.lora_alpha": 1e300}'}
    ).encode(),
    "another base": b'{"ss_base_model_version": "flux1", "modelspec.architecture": "x"}',
}


def with_metadata(path: Path, metadata: bytes, first: bool) -> None:
    """The same file with these bytes for metadata, at the beginning of its header or its end."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    inner = blob[8 : 8 + length].strip()[1:-1]
    ours = b'"__metadata__":' + metadata
    header = b"{" + b",".join([ours, inner] if first else [inner, ours]) + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header + blob[8 + length :])


@pytest.mark.parametrize("what", METADATA)
@pytest.mark.parametrize("peft", [False, True])
def test_metadata_never_decides_whether_a_file_is_used(
    what: str, peft: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    made = tensors()
    if peft:  # alphas are asked for in the metadata
        made = {
            f"unet.mid_block.attentions.{number}.proj_in.lora_{'A' if half == 'down' else 'B'}"
            ".weight": made[f"{name}.lora_{half}.weight"]
            for number, name in enumerate(LAYERS)
            for half in ("down", "up")
        }
    save_file(made, path)
    with_metadata(path, METADATA[what], first=True)
    file = read_lora(path)
    assert len(file.layers) == len(LAYERS) and not file.unread
    down = next(value for key, value in made.items() if "down" in key or "lora_A" in key)
    first = next(iter(file.layers.values())).tensors
    assert torch.equal(first["down"], down) and ("alpha" in first) != peft
    assert Library([tmp_path]).find("a").problem == ""
    assert describe(path)["kinds"] == {"LoRA": 4}


def test_metadata_at_the_end_of_a_header(tmp_path: Path) -> None:
    for what in ("a number", "no table", "a table in it", "a name twice, deeper"):
        path = saved(tmp_path, {})
        with_metadata(path, METADATA[what], first=False)
        assert list(read_lora(path).layers) == LAYERS, what
        assert Library([tmp_path]).find("a").problem == "", what


# sd-scripts' OFT and LyCORIS' DyLoRA


def cayley(blocks: Tensor, limit: float) -> Tensor:
    """(I + Q)(I - Q)^-1 of each block, the whole's norm at most `limit` (arXiv:2306.07280, sec. 3.3
    and its COFT), in float64."""
    skew = blocks.double() - blocks.double().mT
    skew = skew * min(1.0, limit / float(skew.norm()))
    one = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (one + skew) @ torch.linalg.inv(one - skew)


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 10.0])
@pytest.mark.parametrize("shape", [(OUT, IN), (OUT, IN, 3, 3)])
def test_oft_of_sd_scripts(alpha: float, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Outputs are turned block by block: row m of a block becomes the sum over n of R[n,m] W[n];
    alpha times the outputs is the limit."""
    blocks = 0.3 * random(1)(3, OUT // 3, OUT // 3)
    name = "mid_block_attentions_0_proj_in"
    save_file(
        {f"oft_unet_{name}.oft_blocks": blocks, f"oft_unet_{name}.alpha": torch.tensor(alpha)},
        tmp_path / "a.safetensors",
    )
    adapter = read_lora(tmp_path / "a.safetensors").layers[f"lora_unet_{name}"]
    weight = random(2)(*shape)
    turns, parts = cayley(blocks, alpha * OUT), weight.double().flatten(1).split(OUT // 3)
    rows = torch.cat([turn.T @ part for turn, part in zip(turns, parts, strict=True)])
    assert error(adapter.delta(weight), rows.view(shape) - weight) < 1e-5


@pytest.mark.parametrize("window", [(3, 3), (1, 1)])
def test_dylora_of_lycoris(window: tuple[int, ...], tmp_path: Path) -> None:
    """The up of its convolutions has no window; what is written has, as other programs ask for."""
    rank, rand = 4, random(0)
    down, up, alpha = rand(rank, IN, *window), rand(OUT, rank), torch.tensor(2.0)
    name = "lora_unet_mid_block_resnets_0_conv1"
    made = {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}
    save_file({f"{name}.{end}": half for end, half in made.items()}, tmp_path / "a.safetensors")
    file = read_lora(tmp_path / "a.safetensors")
    weight = torch.zeros(OUT, IN, *window)
    wanted = (up.double() @ down.double().flatten(1) * 2.0 / rank).view(weight.shape)
    assert error(file.layers[name].delta(weight), wanted) < 1e-6
    written = load_file(write_lora(file, tmp_path / "b.safetensors", torch.float32))
    assert written[f"{name}.lora_up.weight"].shape == (OUT, rank, 1, 1)


# What is written, so that all read the same


def written(adapter: Adapter, folder: Path) -> dict[str, Any]:
    """End of the key -> tensor."""
    file = LoraFile({LAYERS[0]: adapter})
    made = load_file(write_lora(file, folder / "out.safetensors", torch.float32))
    return {key.removeprefix(f"{LAYERS[0]}."): value for key, value in made.items()}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_every_lokr_layer_has_an_alpha(small: bool, large: bool, tmp_path: Path) -> None:
    """LyCORIS asks for one; without it the scale is 1, and stays so."""
    made = make_lokr(small, large)((OUT, IN), random())
    del made["alpha"]
    alpha = float(written(Adapter("LoKr", made), tmp_path)["alpha"])
    # alpha / rank is the scale, of a half that has a rank; of whole halves LyCORIS' rank is 1
    rank = next((t.shape[1] for role, t in made.items() if role.endswith("_a")), 1)
    assert alpha / rank == 1
    again = read_lora(tmp_path / "out.safetensors").layers[LAYERS[0]]
    weight = torch.zeros(OUT, IN)
    assert torch.equal(again.delta(weight), Adapter("LoKr", made).delta(weight))


def test_no_limit_of_a_rotation_is_none_for_all(tmp_path: Path) -> None:
    """Programs read `oft_blocks` in two ways: a limit of 0 is none (LyCORIS, ComfyUI), or lets
    nothing turn at all (sd-scripts, A1111, SD.Next). One that is never reached is no limit for any;
    by their outputs or as it stands. One that is meant stays."""
    made = make_blocks(4)((OUT, IN), random())
    weight = random(1)(OUT, IN)
    ours = Adapter("OFT", made).delta(weight)
    for tensors in (made, {role: t for role, t in made.items() if role != "alpha"}):
        out = written(Adapter("OFT", tensors), tmp_path)
        skew = out["oft_blocks"] - out["oft_blocks"].mT
        assert float(out["alpha"]) > 100 * float(skew.norm())
        again = read_lora(tmp_path / "out.safetensors").layers[LAYERS[0]]
        assert error(again.delta(weight), ours) < 1e-6
    limited = make_blocks(4, limit=0.01)((OUT, IN), random())
    assert float(written(Adapter("OFT", limited), tmp_path)["alpha"]) == pytest.approx(0.01)
