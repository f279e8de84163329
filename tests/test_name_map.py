"""Every layer that files name for the real architectures finds its modules, and its rows of them.

The names in files come from original_layers.py, the modules from the stock classes on the meta
device; which belong together is also asked of diffusers' own converters.
"""

import functools
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_unet_lora_key,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from architectures import ARCHITECTURES, BASES, read_keys, shapes
from original_layers import FIRST_CODE
from sdlora.errors import LoraFileError
from sdlora.lora.format.name_map import Slot, build_name_map, fused, original_layer_names, unfused
from sdlora.lora.format.original_names import Rows

BASE_NAMES = ("sd1", "sd2", "sdxl", "sd3", "flux", "starter")
UNETS = ("sd1", "sd2", "sdxl")
MODULES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, RMSNorm)
CLIP = ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj"]
CLIP += ["mlp_fc1", "mlp_fc2"]
T5 = [f"layer_0_SelfAttention_{name}" for name in "qkvo"]
T5 += [f"layer_1_DenseReluDense_{name}" for name in ("wi_0", "wi_1", "wo")]
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@functools.cache
def words(name: str) -> dict[str, tuple[Slot, ...]]:
    """The vocabulary of a real architecture, norms and all."""
    return build_name_map(BASES.get(name, name), shapes(name, MODULES))


def flat(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def taken(rows: Tensor, share: Rows | None) -> Tensor:
    """What a Slot's rows mean: shares one after the other, from the start again past the end."""
    first, last, of = share or (0, 1, 1)
    cut = rows.chunk(of)
    return torch.cat([cut[number % of] for number in range(first, last)])


def numbered_rows(name: str) -> dict[str, Tensor]:
    """First code's layer -> a number of its own for each of its output rows."""
    found, start = {}, 0
    for layer, (out, *_) in FIRST_CODE[name].items():
        found[layer] = torch.arange(start, start + out, dtype=torch.float64)
        start += out
    return found


@each_architecture
def test_kept_keys_are_those_of_the_stock_classes(name: str) -> None:
    kept = {part: sorted(paths) for part, paths in read_keys(name).items()}
    assert kept == {part: sorted(paths) for part, paths in shapes(name).items()}


@each_architecture
def test_every_layer_of_the_first_code_is_found_with_its_size(name: str) -> None:
    """None is unmatched, no module is missed or met twice, and all sizes are the real ones."""
    modules = shapes(name, MODULES)["denoiser"]
    met: Counter[str] = Counter()
    for layer, (out, *inner) in FIRST_CODE[name].items():
        slots = words(name)[flat(layer)]
        met.update(slot.path for slot in slots)
        assert sum(modules[slot.path][0] for slot in slots) == out, layer
        for slot in slots:
            assert slot.part == "denoiser"
            assert [*modules[slot.path][1:]] == inner, layer
            assert len(taken(torch.arange(out), slot.rows)) == modules[slot.path][0], layer
    assert met == Counter(list(modules))


@each_architecture
def test_diffusers_names_are_found(name: str) -> None:
    for path in shapes(name, MODULES)["denoiser"]:
        # one name is in both codes, for the same layer
        assert words(name)[flat(path)] == (Slot("denoiser", path),)


@pytest.mark.parametrize(
    ("name", "part", "prefixes", "layers"),
    [
        ("sd1", "te", ("lora_te_", "lora_te1_"), 12),
        ("sd2", "te", ("lora_te_", "lora_te1_"), 23),
        ("sdxl", "te1", ("lora_te1_", "lora_te_"), 12),
        ("sdxl", "te2", ("lora_te2_",), 32),
        ("sd3", "te1", ("lora_te1_", "lora_te_"), 12),
        ("sd3", "te2", ("lora_te2_",), 32),
        ("flux", "te1", ("lora_te1_", "lora_te_"), 12),
    ],
)
def test_clip_layers_are_found(
    name: str, part: str, prefixes: tuple[str, ...], layers: int
) -> None:
    modules = shapes(name)[part]
    met: set[str] = set()
    for prefix in prefixes:
        for layer in range(layers):
            for inner in CLIP:
                short = f"encoder_layers_{layer}_{inner}"
                (slot,) = words(name)[f"{prefix}text_model_{short}"]
                assert words(name)[prefix + short] == (slot,)
                assert slot.part == part and slot.rows is None
                assert slot.path.replace(".", "_").removeprefix("text_model_") == short
                met.add(slot.path)
    assert met == set(modules) - {"text_projection"}
    assert len(met) == 6 * layers
    if "text_projection" in modules:
        assert words(name)[f"{prefixes[0]}text_projection"] == (Slot(part, "text_projection"),)


@pytest.mark.parametrize(
    ("name", "part", "prefixes"),
    [
        ("sd3", "te3", ("lora_te3_",)),
        ("flux", "te3", ("lora_te3_", "lora_te2_")),
    ],
)
def test_t5_layers_are_found(name: str, part: str, prefixes: tuple[str, ...]) -> None:
    for prefix in prefixes:
        met = {
            words(name)[f"{prefix}encoder_block_{block}_{inner}"]
            for block in range(24)
            for inner in T5
        }
        assert met == {(Slot(part, path),) for path in read_keys(name)[part]}


def test_encoders_are_kept_apart() -> None:
    """A name of one text encoder never changes another, nor the second of SD 3 its third."""
    for name in ARCHITECTURES:
        owners = {(prefix[0], slots[0].part) for n, slots in words(name).items()
                  if (prefix := re.match(r"lora_(te\d?|unet)_", n))}  # fmt: skip
        parts = Counter(prefix for prefix, _ in owners)
        assert set(parts.values()) == {1}, name
    assert "lora_te2_encoder_block_0_layer_0_SelfAttention_q" not in words("sd3")
    second = build_name_map("flux", {"te2": ["encoder.block.0.layer.0.SelfAttention.q"]})
    assert {name[:9] for name in second} == {"lora_te2_", "lora_te3_"}


@pytest.mark.parametrize("name", UNETS)
def test_unets_as_diffusers_converts_checkpoints(name: str) -> None:
    ids = {
        f"model.diffusion_model.{layer}.{parameter}": rows
        for layer, rows in numbered_rows(name).items()
        for parameter in ("weight", "bias")
    }
    config = {"layers_per_block": 2, "addition_embed_type": "text_time" if name == "sdxl" else None}
    theirs = convert_ldm_unet_checkpoint(ids, config)
    for layer, rows in numbered_rows(name).items():
        (slot,) = words(name)[flat(layer)]
        assert torch.equal(theirs[f"{slot.path}.weight"], rows), layer


@pytest.mark.parametrize("name", ["sd3", "sd35_medium", "sd35_large", "flux"])
def test_transformers_as_diffusers_converts_checkpoints(name: str) -> None:
    """Row for row, so that the turned halves of the last modulations are seen too."""
    checkpoint = {}
    for layer, rows in numbered_rows(name).items():
        for parameter in ("scale",) if layer.endswith("_norm") else ("weight", "bias"):
            checkpoint[f"{layer}.{parameter}"] = rows
    if name == "flux":
        theirs = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    else:
        theirs = convert_sd3_transformer_checkpoint_to_diffusers({**checkpoint, "pos_embed": 0})
    for layer, rows in numbered_rows(name).items():
        for slot in words(name)[flat(layer)]:
            assert torch.equal(theirs[f"{slot.path}.weight"], taken(rows, slot.rows)), layer


def test_sdxl_as_diffusers_converts_loras() -> None:
    """Their converter of LoRA keys knows linear layers and convolutions, not norms."""
    unet = SimpleNamespace(layers_per_block=2)
    for layer, shape in FIRST_CODE["sdxl"].items():
        if len(shape) > 1:
            key = f"{flat(layer)}.lora_down.weight"
            (theirs,) = _maybe_map_sgm_blocks_to_diffusers({key: 0}, unet)
            path = re.sub(r"[._]lora\.down\.weight$", "", _convert_unet_lora_key(theirs))
            # they leave the index of the one linear layer of emb_layers
            path = path.replace(".processor", "").replace("time_emb_proj.1", "time_emb_proj")
            path = re.sub(r"to_out$", "to_out.0", path)
            assert words("sdxl")[flat(layer)] == (Slot("denoiser", path),)


def flux_lora(ups: dict[str, Tensor]) -> dict[str, Tensor]:
    """The up matrices of a rank 1 FLUX LoRA after diffusers' converter, by path."""
    file = {f"{name}.lora_up.weight": up[:, None] for name, up in ups.items()}
    file |= {f"{name}.lora_down.weight": torch.ones(1, 1) for name in ups}
    theirs = _convert_kohya_flux_lora_to_diffusers(file)
    return {
        key.removeprefix("transformer.").removesuffix(".lora_B.weight"): up[:, 0]
        for key, up in theirs.items()
        if key.endswith(".lora_B.weight")
    }


def flux_rows() -> dict[str, Tensor]:
    rows = numbered_rows("flux")
    return {flat(name): rows[name] for name, shape in FIRST_CODE["flux"].items() if len(shape) > 1}


def test_flux_as_diffusers_converts_loras() -> None:
    theirs = flux_lora(flux_rows())
    assert set(theirs) == set(read_keys("flux")["denoiser"])
    for name, rows in flux_rows().items():
        for slot in words("flux")[name]:
            assert torch.equal(theirs[slot.path], taken(rows, slot.rows)), name


def stacked(shares: tuple[tuple[str | None, Rows | None], ...], ups: dict[str, Tensor]) -> Tensor:
    """The up matrix to write for `shares`; zeros where there is no layer."""
    name, (first, last, of) = next((n, rows or (0, 1, 1)) for n, rows in shares if n)
    out = torch.zeros(len(ups[name]) // (last - first) * of, dtype=torch.float64)
    for share, rows in shares:
        if share:
            out[taken(torch.arange(len(out)), rows)] = ups[share]
    return out


def test_what_is_stacked_for_flux_is_what_diffusers_takes_apart() -> None:
    """From diffusers' names to Black Forest Labs', and back by diffusers' converter."""
    sizes = shapes("flux")["denoiser"]
    ups = {flat(path): torch.randn(size[0]).double() for path, size in sizes.items()}
    layers = fused("flux", ups)
    assert set(layers) == set(flux_rows())
    back = flux_lora({name: stacked(shares, ups) for name, shares in layers.items()})
    assert set(back) == set(sizes)
    for path, up in back.items():
        assert torch.equal(up, ups[flat(path)]), path


def test_stack_with_shares_missing() -> None:
    key = "lora_unet_single_transformer_blocks_7_attn_to_k"
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    assert fused("flux", [key, text]) == {
        "lora_unet_single_blocks_7_linear1": (
            (None, (0, 1, 7)), (key, (1, 2, 7)), (None, (2, 3, 7)), (None, (3, 7, 7)),
        ),
        text: ((text, None),),
    }  # fmt: skip


def test_names_that_are_not_to_be_stacked_stay() -> None:
    for name in ("sd1", "sd2", "sd3"):
        names = [flat(path) for path in read_keys(name)["denoiser"]]
        assert fused(name, names) == {name: ((name, None),) for name in names}
    assert fused("flux", flux_rows()) == {name: ((name, None),) for name in flux_rows()}


def test_sdxl_is_written_with_the_names_of_its_first_code() -> None:
    """As kohya does, whichever of its layers a file has; each is the module that it was."""
    names = [flat(path) for path in read_keys("sdxl")["denoiser"]]
    whole = fused("sdxl", names)
    layers = {flat(layer) for layer, shape in FIRST_CODE["sdxl"].items() if len(shape) > 1}
    assert whole.keys() == layers
    for first, ((name, rows),) in whole.items():
        assert name and rows is None
        assert words("sdxl")[first] == words("sdxl")[name]
        assert fused("sdxl", [name]) == {first: ((name, None),)}, "alone"
    upsampler = "lora_unet_up_blocks_0_upsamplers_0_conv"  # which A1111 takes for another
    assert whole["lora_unet_output_blocks_2_2_conv"] == ((upsampler, None),)
    spelt = original_layer_names("sdxl", names)
    assert {spelt[name]: ((name, None),) for name in names} == whole
    assert original_layer_names("sd1", names) == {}


def test_a_model_built_otherwise_than_sdxl_keeps_its_names() -> None:
    name = "lora_unet_down_blocks_0_resnets_4_conv1"
    assert fused("sdxl", [name]) == {name: ((name, None),)}


def test_stack_beside_its_share_is_refused() -> None:
    names = ["lora_unet_double_blocks_3_img_attn_qkv", "lora_unet_transformer_blocks_3_attn_to_v"]
    for order in (names, names[::-1]):
        with pytest.raises(LoraFileError, match="occurs twice"):
            fused("flux", order)


@each_architecture
def test_taken_apart_without_the_model(name: str) -> None:
    """The same modules and rows as the vocabulary of the model itself says."""
    base = BASES.get(name, name)
    for layer, shares in unfused(base, map(flat, FIRST_CODE[name])).items():
        expected = tuple((flat(slot.path), slot.rows) for slot in words(name)[layer])
        assert shares == expected
    kept = ["lora_te1_text_model_encoder_layers_0_mlp_fc1"]
    kept += [flat(path) for path in read_keys(name)["denoiser"]]
    assert unfused(base, kept) == {name: ((name, None),) for name in kept}


def test_unet_with_one_layer_per_block() -> None:
    """Blocks are counted by what the model has: those of our tiny models are shorter."""
    found = build_name_map(
        "sd1",
        {
            "denoiser": [
                "down_blocks.0.resnets.0.conv1",
                "down_blocks.0.downsamplers.0.conv",
                "down_blocks.1.resnets.0.conv1",
                "up_blocks.0.upsamplers.0.conv",
                "up_blocks.1.resnets.0.conv1",
                "up_blocks.1.attentions.1.proj_in",
            ]
        },
    )
    assert {name.removeprefix("lora_unet_") for name in found if "put_blocks" in name} == {
        "input_blocks_1_0_in_layers_2",
        "input_blocks_2_0_op",
        "input_blocks_3_0_in_layers_2",
        "output_blocks_1_1_conv",
        "output_blocks_2_0_in_layers_2",
        "output_blocks_3_1_proj_in",
    }


def test_stacked_layer_needs_all_its_modules() -> None:
    queries = build_name_map("flux", {"denoiser": ["transformer_blocks.0.attn.to_q"]})
    assert set(queries) == {"lora_unet_transformer_blocks_0_attn_to_q"}


@pytest.mark.parametrize("base", BASE_NAMES)
def test_odd_names_stay_as_they_are(base: str) -> None:
    """Names come from files: none may break the reading of the others."""
    odd = ["", "#", "double_blocks_#_img_attn_qkv", "input_blocks_0_x", "output_blocks_9_9",
           f"input_blocks_{'9' * 5000}_0_op", f"joint_blocks_{'9' * 5000}_x_block_attn_qkv",
           "joint_blocks__x_block_attn_qkv", "middle_block_x_in_layers_2"]  # fmt: skip
    names = [f"lora_unet_{name}" for name in odd]
    whole = {name: ((name, None),) for name in names}
    assert unfused(base, names) == whole and fused(base, names) == whole


def test_unknown_base_has_diffusers_names_only() -> None:
    assert set(build_name_map("", {"denoiser": ["conv_in"]})) == {"lora_unet_conv_in"}
    assert unfused("", ["lora_unet_out_2"]) == {"lora_unet_out_2": (("lora_unet_out_2", None),)}
