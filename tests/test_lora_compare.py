"""Where two LoRAs collide, against float64; converted files, and what they say of themselves."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.errors import DataError, LoraFileError
from sdlora.lora.format.file import LoraFile
from sdlora.lora.format.layer import Adapter
from sdlora.lora.tools import provenance
from sdlora.lora.tools.compare import compare, draw
from sdlora.lora.tools.convert import number_format, rounding, with_diffusers_names, with_key_style
from test_lora_tools import CONV, LINEAR, delta, file_of, lora, random, relative

# Comparing


def test_compare_measures_principal_angles() -> None:
    one, other = file_of(3, 60), file_of(2, 70)
    its = compare(LoraFile({LINEAR: one.layers[LINEAR]}), LoraFile({LINEAR: other.layers[LINEAR]}))
    first, second = (delta(file.layers[LINEAR], (12, 10)) for file in (one, other))
    bases = [torch.linalg.svd(d, full_matrices=False) for d in (first, second)]
    columns = torch.linalg.svdvals(bases[0].U[:, :3].T @ bases[1].U[:, :2])
    rows = torch.linalg.svdvals(bases[0].Vh[:3] @ bases[1].Vh[:2].T)
    found = its["attention"]
    assert found.outputs == pytest.approx(float(columns.square().mean()), abs=1e-5)
    assert found.inputs == pytest.approx(float(rows.square().mean()), abs=1e-5)
    assert found.chance == pytest.approx(3 / 12)
    assert found.sizes == pytest.approx((float(first.norm()), float(second.norm())), rel=1e-5)
    energy = first.square().sum() + second.square().sum()
    loss = 1 - float((first + second).square().sum() / energy)
    assert found.loss == pytest.approx(loss, abs=1e-5)
    assert its["all"] == found


@pytest.mark.parametrize(("factor", "loss"), [(1.0, -1.0), (-1.0, 1.0), (-3.0, 0.6)])
def test_compare_with_itself(factor: float, loss: float) -> None:
    one = file_of(3, 60)
    other = LoraFile({n: Adapter.lora(a.tensors["down"], factor * a.tensors["up"], 3.0)
                      for n, a in one.layers.items()})  # fmt: skip
    its = compare(one, other)["all"]
    assert (its.layers, its.alone) == (2, (0, 0))
    assert (its.outputs, its.inputs) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert its.loss == pytest.approx(loss, abs=1e-4)


def test_compare_of_what_does_not_meet() -> None:
    eye = torch.eye(12)[:, :10]
    apart = [
        LoraFile({LINEAR: Adapter.lora(torch.eye(10)[i : i + 2], eye[:, i : i + 2], 2.0)})
        for i in (0, 4)
    ]
    its = compare(*apart)["attention"]
    assert (its.outputs, its.inputs, its.loss) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    one, other = file_of(2, 1), file_of(2, 5)
    its = compare(LoraFile({LINEAR: one.layers[LINEAR]}), LoraFile({CONV: other.layers[CONV]}))[
        "all"
    ]
    assert (its.layers, its.alone, its.loss) == (0, (1, 1), 0.0)
    with pytest.raises(LoraFileError, match="different models"):
        compare(one, LoraFile({LINEAR: lora((12, 11), 2, 5)}))


def test_the_picture_shows_more_where_more_is_shared() -> None:
    one = file_of(3, 60)
    same, apart = (
        draw(compare(one, one), "one", "two"),
        draw(compare(one, file_of(3, 90)), "one", "two"),
    )
    assert same.size == apart.size
    assert same.getpixel((2, 2)) == (255, 255, 255)
    purple = tuple(bytes.fromhex("7048e8"))
    counts = [dict((c, n) for n, c in its.getcolors(1 << 20))[purple] for its in (same, apart)]
    assert counts[0] > 1.5 * counts[1] > 0


# Converting


def flux(name: str, rank: int, seed: int, alpha: float = 2.0, rows: int = 6) -> dict[str, Adapter]:
    return {f"lora_unet_{name}": lora((rows, 6), rank, seed, alpha)}


# blocks that tell the base, whatever their width
SINGLE = {"lora_unet_single_transformer_blocks_9_proj_out": lora((6, 30), 2, 90)}


def flux_file(layers: Mapping[str, Adapter]) -> LoraFile:
    return LoraFile({**layers, **SINGLE})


QKV = ("attn_to_q", "attn_to_k", "attn_to_v")
BLOCK = "transformer_blocks_0_"


@pytest.mark.parametrize("alphas", [(2.0, 2.0, 2.0), (2.0, 1.0, 5.0)])
def test_flux_layers_stack_to_exactly_the_same_change(alphas: tuple[float, ...]) -> None:
    parts = [
        flux(BLOCK + name, 2 + i, 10 * i, alphas[i] * (2 + i) / 2) for i, name in enumerate(QKV)
    ]
    layers = {name: adapter for part in parts for name, adapter in part.items()}
    stacked = with_key_style(flux_file({**layers, **flux(BLOCK + "ff_net_2", 2, 50)}), "kohya")
    assert set(stacked.layers) == {
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_double_blocks_0_img_mlp_2",
        "lora_unet_single_blocks_9_linear2",
    }
    whole = stacked.layers["lora_unet_double_blocks_0_img_attn_qkv"]
    assert whole.rank == 2 + 3 + 4
    wanted = torch.cat([delta(adapter, (6, 6)) for adapter in layers.values()])
    assert relative(delta(whole, (18, 6)), wanted) < 1e-6


def test_flux_stacks_come_apart_and_together_without_growing() -> None:
    whole = lora((18, 6), 3, 7)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    apart = with_key_style(flux_file({name: whole}), "peft")
    assert set(apart.layers) == {*(f"lora_unet_{BLOCK}{part}" for part in QKV), *SINGLE}
    assert torch.equal(apart.layers[f"lora_unet_{BLOCK}attn_to_k"].tensors["up"],
                       whole.tensors["up"][6:12])  # fmt: skip
    again = with_key_style(apart, "kohya").layers[name]
    assert again.rank == 3
    assert torch.equal(again.tensors["up"], whole.tensors["up"])
    assert torch.equal(again.tensors["down"], whole.tensors["down"])


def test_a_share_that_is_missing_changes_nothing() -> None:
    layers = flux("single_transformer_blocks_0_proj_mlp", 2, 1, rows=24)
    layers |= flux("single_transformer_blocks_0_attn_to_k", 2, 5)
    whole = with_key_style(flux_file(layers), "kohya").layers["lora_unet_single_blocks_0_linear1"]
    change = delta(whole, (42, 6))
    k, mlp = (delta(layers[f"lora_unet_single_transformer_blocks_0_{n}"], s)
              for n, s in (("attn_to_k", (6, 6)), ("proj_mlp", (24, 6))))  # fmt: skip
    assert relative(change, torch.cat([torch.zeros(6, 6), k, torch.zeros(6, 6), mlp])) < 1e-6


def test_what_cannot_be_stacked_is_refused() -> None:
    loha = Adapter("LoHa", {f"hada_w{i}_{s}": random(*shape, seed=i) for i in (1, 2)
                            for s, shape in (("a", (6, 2)), ("b", (2, 6)))})  # fmt: skip
    layers = {f"lora_unet_{BLOCK}{name}": loha for name in QKV}
    with pytest.raises(LoraFileError, match="LoHa of layer .* cannot be stacked"):
        with_key_style(flux_file(layers), "kohya")
    assert set(with_key_style(flux_file(layers), "peft").layers) == {*layers, *SINGLE}


def test_stability_names_become_those_of_diffusers() -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    text = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    file = LoraFile({name: lora((6, 2048), 2, 1), text: lora((8, 4), 2, 3)})
    ours = with_diffusers_names(file)
    diffusers = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    assert list(ours.layers) == [diffusers, text]
    assert ours.layers[diffusers] is file.layers[name]
    both = LoraFile({**file.layers, diffusers: file.layers[name]})
    with pytest.raises(LoraFileError, match="occurs twice"):
        with_diffusers_names(both)


def test_number_format_and_rounding() -> None:
    file = file_of(2, 1)
    half = LoraFile({n: Adapter(a.kind, {r: t.half() if t.dim() else t
                                         for r, t in a.tensors.items()})
                     for n, a in file.layers.items()})  # fmt: skip
    assert number_format(half) == torch.float16
    assert number_format(half, file) == torch.float32
    assert rounding(half, torch.float32).by_group()["all"] == 0
    error = rounding(file, torch.float16).by_group()["attention"]
    its = delta(half.layers[LINEAR], (12, 10)), delta(file.layers[LINEAR], (12, 10))
    assert error == pytest.approx(relative(*its), rel=1e-2)


# What files say of themselves

SECRETS = {
    "ss_sd_model_name": "/home/ada/secret.safetensors",
    "ss_dataset_dirs": '{"/home/ada/secret": {}}',
    "ss_tag_frequency": '{"secret": {"a secret caption": 3}}',
    "ss_output_name": "secret name",
    "ss_training_comment": "secret",
    "ss_vae_name": "C:\\secret",
    "ss_datasets": '[{"image_dir": "secret"}]',
    "ss_network_args": '{"conv_dim": "4", "preset": "/home/ada/secret.toml", "decay": "1e-3"}',
    "modelspec.author": "secret",
    "modelspec.title": "secret",
    "modelspec.description": "secret",
    "some_tool.path": "/secret",
}
KEPT = {
    "ss_base_model_version": "sd_v1",
    "ss_learning_rate": "0.0001",
    "ss_network_dim": "8",
    "modelspec.trigger_phrase": "zibo",
    "modelspec.architecture": "stable-diffusion-v1/lora",
}


def test_private_data_goes_and_the_rest_stays() -> None:
    ours = provenance.with_title(provenance.without_private(SECRETS | KEPT), "new")
    assert "secret" not in json.dumps(ours)
    assert KEPT.items() <= ours.items()
    assert json.loads(ours["ss_network_args"]) == {"conv_dim": "4", "decay": "1e-3"}
    assert ours["modelspec.title"] == ours["ss_output_name"] == "new"


def test_a_merged_file_names_its_sources_and_has_all_their_words() -> None:
    def source(name: str, weight: float, **said: str) -> provenance.MergeSource:
        return provenance.MergeSource(
            name, weight, {key.replace("__", "."): v for key, v in said.items()}
        )

    common = {"ss_base_model_version": "sd_v1", "modelspec__prediction_type": "epsilon"}
    its = provenance.merged_metadata(
        [
            source("neon", 0.8, modelspec__trigger_phrase="neon lights, night", **common),
            source("zibo", -0.5, trained_words='["zibo", "night"]', ss_steps="9", **common),
        ],
        "sd1",
        "linear, rank 8",
    )
    assert its["modelspec.trigger_phrase"] == "neon lights, night, zibo"
    assert its["modelspec.merged_from"] == "neon, zibo"
    assert its["modelspec.description"] == "0.8 × neon + -0.5 × zibo (linear, rank 8)"
    assert its["modelspec.prediction_type"] == "epsilon"
    assert its["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "ss_steps" not in its  # of no one training


def test_facts_of_the_old_tensors_are_dropped() -> None:
    old = {"sshs_model_hash": "1", "lora_adapter_metadata": "{}", "ss_training_comment": "by hand"}
    ours = provenance.rewritten_metadata(old | {"ss_seed": "4"}, "resized")
    assert set(ours) == {"ss_training_comment", "ss_seed"}
    assert ours["ss_training_comment"].startswith("by hand; resized with sdlora")
    assert provenance.rank_metadata([4, 4])["ss_network_dim"] == "4"
    assert provenance.rank_metadata([4, 8])["ss_network_alpha"] == "Dynamic"


def test_thumbnail_is_a_small_jpeg(tmp_path: Path) -> None:
    Image.new("RGBA", (1000, 500), (200, 30, 30, 255)).save(tmp_path / "big.png")
    said: Mapping[str, str] = provenance.with_thumbnail({"a": "b"}, tmp_path / "big.png")
    start, _, data = said["modelspec.thumbnail"].partition(",")
    assert (start, said["a"]) == ("data:image/jpeg;base64", "b")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 128))
        red, green, blue = image.getpixel((128, 64))  # type: ignore[misc]
        assert red > 180 and green < 60 and blue < 60
    (tmp_path / "not.png").write_text("no picture")
    with pytest.raises(DataError, match="not.png cannot be read"):
        provenance.with_thumbnail({}, tmp_path / "not.png")
