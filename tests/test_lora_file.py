"""LoRA files: the gate, the formats, what is written, and what other programs make of it."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_conversion_utils import (
    _convert_unet_lora_key,
    _maybe_map_sgm_blocks_to_diffusers,
)
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from sdlora.errors import LoraFileError
from sdlora.lora.bases import base_of
from sdlora.lora.file import LoraFile, LoraPair, read_lora, write_lora
from sdlora.lora.formats import canonical
from sdlora.lora.header import body_hash, read_header
from sdlora.lora.metadata import TrainingFacts, count_tags, training_metadata
from sdlora.settings import TrainSettings
from tiny import open_tiny, tiny, tiny_lora

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
SETTINGS = TrainSettings(
    data="/home/anna/pictures", name="neon", model="/home/anna/models/sd", rank=4, alpha=2,
    conv_rank=2, targets=("attention", "conv"),
)  # fmt: skip
FACTS = TrainingFacts(
    "sd1", "epsilon", 512, images=2, steps=90, trigger_word="neon lighting",
    tag_frequency=count_tags(["neon lighting, a cat", "neon lighting, a dog, a dog"]),
    started_at=1_000_000.0, finished_at=1_000_060.0,
)  # fmt: skip


def pair(rank: int = 2, width: int = 6, out: int = 5, seed: int = 0, **more: Any) -> LoraPair:
    rng = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=rng), torch.randn(out, rank, generator=rng)
    return LoraPair(down, up, more.get("alpha", 1.0))


def raw(path: Path, entries: dict[str, Any], body: bytes = b"", length: int | None = None) -> Path:
    """A file with any header whatever."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", length or len(header)) + header + body)
    return path


def entry(shape: list[int], first: int, dtype: str = "F32", **more: Any) -> dict[str, Any]:
    count = 4
    for size in shape:
        count *= size
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, first + count], **more}


# what is wrong -> header, body length, part of the sentence
DAMAGED: dict[str, tuple[Any, int, str]] = {
    "no header": (b"", 0, "not a safetensors file"),
    "not json": (b"{nonsense}", 0, "damaged"),
    "a list": ([], 0, "not a table"),
    "deep": (b"[" * 100_000, 0, "damaged"),
    "nothing in it": ({}, 0, "0 tensors"),
    "twice": (b'{"a": 1, "a": 2}', 0, "stands twice"),
    "metadata is no text": ({"__metadata__": {"a": 1}, "b": {}}, 0, "not text"),
    "integers": ({"a": entry([2], 0, "I32")}, 8, "not floating"),
    "zero dimension": ({"a": entry([0, 2], 0)}, 4, "impossible shape"),
    "five dimensions": ({"a": entry([1, 1, 1, 1, 1], 0)}, 4, "impossible shape"),
    "negative": ({"a": entry([-1], 0)}, 4, "damaged"),
    "huge number": ({"a": entry([2**70], 0)}, 4, "damaged"),
    "boolean": ({"a": {**entry([1], 0), "shape": [True]}}, 4, "damaged"),
    "wrong size": ({"a": {**entry([2], 0), "data_offsets": [0, 4]}}, 4, "damaged"),
    "odd field": ({"a": entry([1], 0, extra=1)}, 4, "damaged"),
    "cut short": ({"a": entry([4], 0)}, 8, "cut short"),
    "bytes after the end": ({"a": entry([1], 0)}, 8, "cut short or has bytes after"),
    "hole": ({"a": entry([1], 0), "b": entry([1], 8)}, 12, "leave a hole"),
    "overlap": ({"a": entry([2], 0), "b": entry([1], 4)}, 8, "overlap"),
    "too many": ({str(i): entry([1], 4 * i) for i in range(20_001)}, 80_004, "20001 tensors"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_header_is_refused(what: str, tmp_path: Path) -> None:
    entries, body, sentence = DAMAGED[what]
    with pytest.raises(LoraFileError, match=sentence):
        read_lora(raw(tmp_path / "bad.safetensors", entries, b"\0" * body))


def test_boasting_length_is_refused_without_reading(tmp_path: Path) -> None:
    for length in (2**63, 2**24 + 1, 10**6):
        with pytest.raises(LoraFileError, match="cut short"):
            read_lora(raw(tmp_path / "bad.safetensors", {}, b"", length))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors")
    for content in (b"", b"PK\3\4", b"\x80\x02}q\x00." * 40):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(LoraFileError, match="not a safetensors file"):
            read_lora(tmp_path / "bad.safetensors")


def halves(down: list[int], up: list[int]) -> dict[str, Tensor]:
    return {
        f"{LAYER}.lora_down.weight": torch.ones(down),
        f"{LAYER}.lora_up.weight": torch.ones(up),
    }


# what is wrong -> tensors, part of the sentence
UNFIT: dict[str, tuple[dict[str, Tensor], str]] = {
    "half": ({f"{LAYER}.lora_down.weight": torch.ones(2, 6)}, "lacks its up matrix"),
    "ranks": (halves([2, 6], [5, 3]), "do not fit together"),
    "rank too high": (halves([4, 3], [5, 4]), "do not fit together"),
    "dimensions": (halves([2, 6, 1, 1], [5, 2]), "do not fit together"),
    "two alphas": ({**halves([2, 6], [5, 2]), f"{LAYER}.alpha": torch.ones(2)}, "do not fit"),
    "up too large": (halves([2, 6, 3, 3], [5, 2, 3, 3]), "do not fit together"),
    "nan": ({**halves([2, 6], [5, 2]), f"{LAYER}.alpha": torch.tensor(torch.nan)}, "not finite"),
    "infinite": (
        {**halves([2, 6], [5, 2]), f"{LAYER}.lora_up.weight": torch.full((5, 2), torch.inf)},
        "not finite",
    ),
    "twice": (
        {
            **halves([2, 6], [5, 2]),
            "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 6),
        },
        "stands twice",
    ),
    "LoHa": ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "LoHa file"),
    "LoKr": ({f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "LoKr file"),
    "DoRA": ({**halves([2, 6], [5, 2]), f"{LAYER}.dora_scale": torch.ones(1, 6)}, "DoRA file"),
    "OFT": ({f"{LAYER}.oft_blocks": torch.ones(2, 2)}, "OFT file"),
    "difference": ({f"{LAYER}.diff": torch.ones(2, 2)}, "full-weight difference file"),
    "FLUX": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 2)},
        "for FLUX",
    ),
    "a checkpoint": (
        {"model.diffusion_model.out.2.weight": torch.ones(2, 2)},
        "1 keys are unknown",
    ),
    "evil": ({"../../evil.lora_down.weight": torch.ones(2, 2)}, "unknown"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_unfit_tensors_are_refused(what: str, tmp_path: Path) -> None:
    tensors, sentence = UNFIT[what]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(LoraFileError, match=sentence):
        read_lora(tmp_path / "bad.safetensors")


def test_delta_is_the_product() -> None:
    some = pair(alpha=3.0)
    torch.testing.assert_close(some.delta(), 1.5 * some.up @ some.down)
    conv = LoraPair(torch.randn(2, 6, 3, 3), torch.randn(5, 2, 1, 1), 2.0)
    expected = torch.einsum("or,rikl->oikl", conv.up[:, :, 0, 0], conv.down)
    torch.testing.assert_close(conv.delta(), expected)


def test_written_and_read_again(tmp_path: Path) -> None:
    file = LoraFile({LAYER: pair(alpha=0.7)}, {"a": "ä\n<b>"})
    again = read_lora(write_lora(file, tmp_path / "new" / "a.safetensors", torch.float32))
    assert again.metadata["a"] == "ä\n<b>" and set(again.pairs) == {LAYER}
    assert torch.equal(again.pairs[LAYER].down, file.pairs[LAYER].down)
    assert again.pairs[LAYER].alpha == pytest.approx(0.7)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["a.safetensors"]


def test_half_precision_is_the_default_and_overflow_is_refused(tmp_path: Path) -> None:
    path = write_lora(LoraFile({LAYER: pair()}), tmp_path / "a.safetensors")
    assert read_lora(path).pairs[LAYER].down.dtype == torch.float16
    huge = LoraPair(torch.full((2, 6), 1e6), torch.ones(5, 2), 1.0)
    with pytest.raises(LoraFileError, match="not finite"):
        write_lora(LoraFile({LAYER: huge}), tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_same_lora_same_bytes_and_true_hashes(tmp_path: Path) -> None:
    said = training_metadata(SETTINGS, FACTS)
    paths = [write_lora(LoraFile({LAYER: pair()}, said), tmp_path / f"{n}.st") for n in "ab"]
    blob = paths[0].read_bytes()
    assert blob == paths[1].read_bytes()
    start = 8 + struct.unpack("<Q", blob[:8])[0]
    assert start % 8 == 0
    true_hash = hashlib.sha256(blob[start:]).hexdigest()
    assert read_lora(paths[0]).metadata["sshs_model_hash"] == true_hash == body_hash(paths[0])


def test_metadata_says_what_others_read() -> None:
    said = training_metadata(SETTINGS, FACTS)
    assert all(isinstance(value, str) for value in said.values())
    expected = {
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0",
        "ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_output_name": "neon",
        "ss_num_train_images": "2", "ss_steps": "90", "ss_training_started_at": "1000000.0",
        "modelspec.sai_model_spec": "1.0.1", "modelspec.title": "neon",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "neon lighting", "modelspec.resolution": "512x512",
        "modelspec.date": "1970-01-12T13:47:40", "modelspec.prediction_type": "epsilon",
    }  # fmt: skip
    assert {key: said[key] for key in expected} == expected
    assert json.loads(said["ss_network_args"])["conv_dim"] == "2"
    assert json.loads(said["ss_tag_frequency"]) == {
        "neon": {"neon lighting": 2, "a cat": 1, "a dog": 1}
    }
    assert "anna" not in json.dumps(said)


@pytest.mark.parametrize(
    ("names", "metadata", "base"),
    [
        ({"lora_unet_x_attn2_to_k": (4, 768)}, {}, "sd1"),
        ({"lora_unet_x_attn2_to_k": (4, 1024)}, {}, "sd2"),
        ({"lora_unet_x_attn2_to_v": (4, 2048)}, {"ss_base_model_version": "sd_v1"}, "sdxl"),
        ({"lora_unet_x_attn2_to_k": (4, 128)}, {}, "starter"),
        ({"lora_te2_text_model_x_q_proj": (4, 1280)}, {}, "sdxl"),
        ({"lora_te_text_model_x_q_proj": (4, 768)}, {}, "sd1"),
        ({"lora_unet_x_conv1": (4, 320, 3, 3)}, {"ss_base_model_version": "sdxl_v1"}, "sdxl"),
        (
            {"lora_unet_x_conv1": (4, 320, 3, 3)},
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "sd1",
        ),
        ({"lora_unet_x_conv1": (4, 320, 3, 3)}, {}, ""),
    ],
)
def test_base_is_told_by_shapes(
    names: dict[str, tuple[int, ...]], metadata: dict[str, str], base: str
) -> None:
    assert base_of(names, metadata) == base


STABILITY = [
    "input_blocks_1_0_in_layers_2", "input_blocks_2_0_out_layers_3", "input_blocks_3_0_op",
    "input_blocks_4_0_skip_connection", "input_blocks_4_0_emb_layers_1",
    "input_blocks_4_1_proj_in", "input_blocks_5_1_transformer_blocks_1_attn2_to_k",
    "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj", "middle_block_0_in_layers_2",
    "middle_block_1_transformer_blocks_0_attn1_to_out_0", "middle_block_2_out_layers_3",
    "output_blocks_0_1_proj_out", "output_blocks_2_2_conv", "output_blocks_5_2_conv",
    "output_blocks_5_1_transformer_blocks_0_attn1_to_q", "output_blocks_8_0_skip_connection",
    "input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2",
]  # fmt: skip


def diffusers_name(key: str) -> str:
    return str(_convert_unet_lora_key(key))


def test_stability_names_become_what_diffusers_makes_of_them() -> None:
    class TwoLayers:
        layers_per_block = 2

    for name in STABILITY:
        key = f"lora_unet_{name}.lora_down.weight"
        theirs = _maybe_map_sgm_blocks_to_diffusers({key: 0}, TwoLayers())
        ours, role = canonical([key])[key]
        assert role == "down"
        assert diffusers_name(f"{ours}.lora_down.weight") == diffusers_name(*theirs), name


def test_stability_name_of_the_sizes_embedding() -> None:
    for theirs, ours in (("0_0", "linear_1"), ("0_2", "linear_2")):
        key = f"lora_unet_label_emb_{theirs}.lora_up.weight"
        assert canonical([key])[key][0] == f"lora_unet_add_embedding_{ours}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", (LAYER, "down")),
        ("base_model.model.unet.mid_block.attentions.0.proj_in.lora_B.weight", (LAYER, "up")),
        ("unet.mid_block.attentions.0.proj_in.lora.up.weight", (LAYER, "up")),
        (
            "unet.mid_block.x.attn1.processor.to_out_lora.down.weight",
            ("lora_unet_mid_block_x_attn1_to_out_0", "down"),
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
            ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "up"),
        ),
        (
            "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight",
            ("lora_te_text_model_encoder_layers_0_mlp_fc1", "down"),
        ),
    ],
)
def test_diffusers_and_peft_keys(key: str, expected: tuple[str, str]) -> None:
    assert canonical([key]) == {key: expected}


def test_first_of_two_text_encoders_is_te1() -> None:
    keys = [f"text_encoder{n}.encoder.layers.0.mlp.fc1.lora_A.weight" for n in ("", "_2")]
    names = [name for name, _ in canonical(keys).values()]
    assert [name.partition("_text")[0] for name in names] == ["lora_te1", "lora_te2"]


def stock(kind: str) -> Any:
    opened = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipeline = opened.from_pretrained(tiny(kind))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_what_diffusers_saves_is_read(kind: str, tmp_path: Path) -> None:
    """Our file through a stock pipeline and out again in diffusers' own format: same deltas."""
    file = tiny_lora(open_tiny(kind))
    write_lora(file, tmp_path / "ours.safetensors", torch.float32)
    pipeline = stock(kind)
    pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    layers: dict[str, Any] = {}
    for argument, part in (
        ("unet_lora_layers", "unet"),
        ("text_encoder_lora_layers", "text_encoder"),
        ("text_encoder_2_lora_layers", "text_encoder_2"),
    ):
        if model := getattr(pipeline, part, None):
            layers[argument] = get_peft_model_state_dict(model, adapter_name="default_0")
            metadata = argument.replace("_layers", "_adapter_metadata")
            layers[metadata] = model.peft_config["default_0"].to_dict()
    pipeline.save_lora_weights(tmp_path, weight_name="theirs.safetensors", **layers)
    again = read_lora(tmp_path / "theirs.safetensors")
    assert set(again.pairs) == set(file.pairs)
    for name, its in file.pairs.items():
        torch.testing.assert_close(again.pairs[name].delta(), its.delta(), msg=name)


def test_written_header_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    path = write_lora(LoraFile({LAYER: pair()}, {"k": "v" * 7}), tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["k"] == "v" * 7
        assert len(list(file.keys())) == 3
    assert read_header(path).shapes[f"{LAYER}.alpha"] == ()


@pytest.mark.parametrize("cut", [lambda b: b[:-1], lambda b: b[:9], lambda b: b + b"\0"])
def test_any_cut_of_a_good_file_is_refused(cut: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(cut(save(halves([2, 6], [5, 2]))))
    with pytest.raises(LoraFileError):
        read_lora(path)
