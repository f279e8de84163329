"""LoRA files: the gate, the formats, what is written, and what other programs make of it."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from sdlora.architectures import base_of
from sdlora.errors import LoraFileError
from sdlora.lora.format.errors import REFUSALS
from sdlora.lora.format.file import LoraFile, read_lora, write_lora
from sdlora.lora.format.header import body_hash, read_header
from sdlora.lora.format.layer import Adapter
from sdlora.lora.format.metadata import TrainingFacts, count_tags, training_metadata
from sdlora.settings.train import TrainSettings

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


def lora(rank: int = 2, width: int = 6, out: int = 5, alpha: float = 1.0) -> Adapter:
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(rank, width, generator=rng), torch.randn(out, rank, generator=rng)
    return Adapter.lora(down, up, alpha)


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
    "twice": (b'{"a": 1, "a": 2}', 0, "occurs twice"),
    "twice in an entry": (b'{"a": {"dtype": "F32", "dtype": "F32"}}', 0, "occurs twice"),
    "integers": ({f"{LAYER}.diff": entry([8], 0, "I32")}, 32, "not floating"),
    "no known numbers": ({"a": entry([8], 0, "X32")}, 32, "not floating"),
    "zero dimension": ({f"{LAYER}.diff": entry([0, 2], 0)}, 4, "impossible shape"),
    "five dimensions": ({f"{LAYER}.diff": entry([1, 1, 1, 1, 1], 0)}, 4, "impossible shape"),
    "negative": ({"a": entry([-1], 0)}, 4, "damaged"),
    "huge number": ({"a": entry([2**70], 0)}, 4, "damaged"),
    "odd number format": ({"a": {**entry([1], 0), "dtype": ["F32"]}}, 4, "not floating"),
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
    "half": ({f"{LAYER}.lora_down.weight": torch.ones(2, 6)}, "lacks its up tensor"),
    "ranks": (halves([2, 6], [5, 3]), "do not fit together"),
    "rank too high": (halves([4, 3], [5, 4]), "holds 1 to 3"),
    "dimensions": (halves([2, 6], [5, 2, 1, 1]), "do not fit together"),
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
        "occurs twice",
    ),
    "half a LoHa": ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "lacks its hada_w1_b"),
    "half a LoKr": ({f"{LAYER}.lokr_w1": torch.ones(2, 2)}, "lacks its lokr_w2"),
    "LoRA and more": (
        {**halves([2, 6], [5, 2]), f"{LAYER}.diff": torch.ones(5, 6)},
        "a LoRA that also has diff",
    ),
    "infinite vectors": (
        {**halves([2, 6], [5, 2]), "bundle_emb.x.clip_l": torch.full((1, 4), torch.inf)},
        "not finite",
    ),
    "a checkpoint": (
        {"model.diffusion_model.out.2.weight": torch.ones(2, 2)},
        "1 of its 1 keys are unknown",
    ),
    "evil": ({"../../evil.lora_down.weight": torch.ones(2, 2)}, "unknown"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_unfit_tensors_are_refused(what: str, tmp_path: Path) -> None:
    tensors, sentence = UNFIT[what]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(LoraFileError, match=sentence):
        read_lora(tmp_path / "bad.safetensors")


def test_every_refusal_has_its_name(tmp_path: Path) -> None:
    codes = set()
    for what, (entries, body, _) in DAMAGED.items():
        with pytest.raises(LoraFileError) as refused:
            read_lora(raw(tmp_path / f"{what}.safetensors", entries, b"\0" * body))
        codes.add(refused.value.code)
    for what, (tensors, _) in UNFIT.items():
        save_file(tensors, tmp_path / f"{what}.safetensors")
        with pytest.raises(LoraFileError) as refused:
            read_lora(tmp_path / f"{what}.safetensors")
        assert str(refused.value).startswith(f"{what}.safetensors: ")
        codes.add(refused.value.code)
    assert codes <= REFUSALS.keys() and len(codes) > 12


def test_written_and_read_again(tmp_path: Path) -> None:
    words = {"cat": {"": torch.rand(2, 8)}, "a.dog": {"clip_l": torch.rand(1, 4)}}
    file = LoraFile({LAYER: lora(alpha=0.7)}, {"a": "ä\n<b>"}, words)
    again = read_lora(write_lora(file, tmp_path / "new" / "a.safetensors", torch.float32))
    assert again.metadata["a"] == "ä\n<b>" and set(again.layers) == {LAYER}
    its, was = again.layers[LAYER].tensors, file.layers[LAYER].tensors
    assert its.keys() == was.keys() and all(torch.equal(its[role], was[role]) for role in was)
    assert again.embeddings.keys() == words.keys()
    assert torch.equal(again.embeddings["cat"][""], words["cat"][""])
    assert torch.equal(again.embeddings["a.dog"]["clip_l"], words["a.dog"]["clip_l"])
    assert [p.name for p in tmp_path.rglob("*.*")] == ["a.safetensors"]


def test_layers_that_share_a_tensor_are_written(tmp_path: Path) -> None:
    whole = lora(out=6)
    shares = {f"{LAYER}_{number}": whole.rows(number, number + 1, 3) for number in range(3)}
    path = write_lora(LoraFile(shares), tmp_path / "a.safetensors", torch.float32)
    again = read_lora(path).layers.values()
    ups = torch.cat([adapter.tensors["up"] for adapter in again])
    assert torch.equal(ups, whole.tensors["up"])


def test_half_precision_is_the_default_and_overflow_is_refused(tmp_path: Path) -> None:
    path = write_lora(LoraFile({LAYER: lora()}), tmp_path / "a.safetensors")
    assert read_lora(path).layers[LAYER].tensors["down"].dtype == torch.float16
    huge = Adapter.lora(torch.full((2, 6), 1e6), torch.ones(5, 2), 1.0)
    with pytest.raises(LoraFileError, match="not finite"):
        write_lora(LoraFile({LAYER: huge}), tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_same_lora_same_bytes_and_true_hashes(tmp_path: Path) -> None:
    said = training_metadata(SETTINGS, FACTS)
    paths = [write_lora(LoraFile({LAYER: lora()}, said), tmp_path / f"{n}.st") for n in "ab"]
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


CROSS, CONV = "lora_unet_x_attn2_to_k", "lora_unet_x_conv1"
BLOCK = "lora_unet_transformer_blocks_0_attn_to_q"
BASES = [
    ({CROSS: (320, 768)}, {}, "sd1"),
    ({CROSS: (320, 1024)}, {}, "sd2"),
    ({"lora_unet_x_attn2_to_v": (4, 2048)}, {"ss_base_model_version": "sd_v1"}, "sdxl"),
    ({CROSS: (320, 128)}, {}, "starter"),
    ({"lora_te2_text_model_x_q_proj": (1280, 1280)}, {}, "sdxl"),
    ({"lora_te_text_model_x_q_proj": (768, 768)}, {}, "sd1"),
    ({CONV: (320, 320, 3, 3)}, {"ss_base_model_version": "sdxl_v1"}, "sdxl"),
    ({CONV: ()}, {"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
    ({CONV: ()}, {"modelspec.architecture": "flux-1-schnell/lora"}, "flux"),
    ({CONV: (320, 320, 3, 3)}, {}, ""),
    ({CROSS: ()}, {}, ""),
    ({"lora_unet_double_blocks_0_img_attn_qkv": ()}, {}, "flux"),
    ({"lora_unet_joint_blocks_0_x_block_attn_qkv": (4608, 1536)}, {}, "sd3"),
    ({BLOCK: (3072, 3072)}, {}, "flux"),
    ({BLOCK: (1536, 1536)}, {}, "sd3"),
    ({BLOCK: (1536, 1536), "lora_unet_single_transformer_blocks_0_proj_out": ()}, {}, "flux"),
    ({"lora_te3_encoder_block_0": (4, 4)}, {"ss_base_model_version": "sd3_m"}, "sd3"),
]


@pytest.mark.parametrize(("weights", "metadata", "base"), BASES)
def test_base_is_told_by_shapes(
    weights: dict[str, tuple[int, ...]], metadata: dict[str, str], base: str
) -> None:
    assert base_of(weights, metadata) == base


def test_written_header_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    path = write_lora(LoraFile({LAYER: lora()}, {"k": "v" * 7}), tmp_path / "a.safetensors")
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
