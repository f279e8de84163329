"""Whole models in one file: every kind that people have opens, or says what it is."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as stock
from torch import Tensor

import architectures
from sdlora.errors import ModelError, SettingsError
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.models.checkpoint_facts import checkpoint_facts
from sdlora.models.checkpoint_header import read_checkpoint_header
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions
from sdlora.models.registry import detect_family, open_family, preset_family
from sdlora.models.single_file import predicts_noise, single_file
from sdlora.settings.presets import preset, preset_drift_prompts
from sdlora.settings.train import TrainSettings
from sdlora.training.train import open_model
from sdlora.workspace import STARTER_MODEL, Workspace
from tiny import CPU, open_tiny, tiny
from tiny_checkpoints import KINDS, checkpoint, make, tensors, write

Change = Callable[[dict[str, Tensor]], object]
UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask for anything."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)


def parts_of(pipeline: Any) -> dict[str, Any]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}


def assert_holds(family: ModelFamily, expected: Any) -> None:
    """Every tensor of `expected`, a pipeline, to the bit; and none without numbers."""
    assert parts_of(family.pipeline).keys() == parts_of(expected).keys()
    for name, part in parts_of(expected).items():
        ours, theirs = getattr(family.pipeline, name).state_dict(), part.state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(ours[key], tensor), (name, key)
    for part in parts_of(family.pipeline).values():
        assert not any(t.is_meta for t in (*part.parameters(), *part.buffers()))


def opened(path: Path, options: ModelOptions = DEFAULT_OPTIONS) -> ModelFamily:
    return open_family(str(path), torch.float16, CPU, options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_opens_to_the_weights_it_was_made_of(kind: str) -> None:
    path = checkpoint(kind)
    assert detect_family(path) == kind
    assert_holds(opened(path), make(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_stock_diffusers_opens_the_same_file_to_the_same_weights(kind: str, tmp_path: Path) -> None:
    pipeline = make(kind)
    pipeline.save_pretrained(tmp_path / "folder")
    theirs = type(pipeline).from_single_file(
        str(checkpoint(kind)), config=str(tmp_path / "folder"), torch_dtype=torch.float16,
        local_files_only=True,
    )  # fmt: skip
    assert_holds(opened(checkpoint(kind)), theirs)


class Meta:
    """A family of a real model's size, without its numbers."""

    def __init__(self, name: str) -> None:
        parts = dict(architectures.build(name))
        self.name, self.title, self.denoiser = name, name, parts.pop("denoiser")
        self.text_encoders = parts
        self.text_encoder_names = {"te": "text_encoder", "te1": "text_encoder"}
        self.text_encoder_names |= {"te2": "text_encoder_2"}
        self.pipeline = open_tiny("sd1").pipeline


@pytest.mark.parametrize(("kind", "telling"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")])
def test_real_models_have_the_names_that_tell_them_apart(
    kind: str, telling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: Any = Meta(kind)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)  # there is nothing to copy
    found = single_file(family)
    assert stock.CHECKPOINT_KEY_NAMES[telling] in found
    converted = stock.convert_ldm_unet_checkpoint(dict(found), {**family.denoiser.config})
    shapes = {name: tensor.shape for name, tensor in family.denoiser.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == shapes


def changed(kind: str, path: Path, change: Change, **metadata: str) -> Path:
    found = dict(tensors(kind))
    change(found)
    return write(path, found, **metadata)


def without(prefix: str) -> Change:
    return lambda found: [found.pop(name) for name in list(found) if name.startswith(prefix)]


def renamed(old: str, new: str) -> Change:
    def change(found: dict[str, Tensor]) -> None:
        for name in list(found):
            if old in name:
                found[name.replace(old, new)] = found.pop(name)

    return change


def added(**more: Tensor) -> Change:
    return lambda found: found.update({n.replace("__", "."): t for n, t in more.items()})


EMPTY = torch.zeros(0)
HARMLESS: dict[str, Change] = {
    "EMA beside": lambda found: found.update(
        {"model_ema.diffusion_modelout2bias": torch.ones(4), "model_ema.decay": torch.ones(())}
    ),
    "position_ids as floats": added(
        cond_stage_model__transformer__text_model__embeddings__position_ids=torch.arange(77.0)[None]
    ),
    "constants of the noise": added(betas=torch.ones(1000), alphas_cumprod_prev=torch.ones(1000)),
    "text encoder without text_model": renamed(".transformer.text_model.", ".transformer."),
    "VAE attention as matrices": lambda found: found.update(
        {n: t.flatten(1) for n, t in found.items() if "attn_1" in n and t.dim() == 4}
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_programs_leave_in_files_changes_nothing(kind: str, tmp_path: Path) -> None:
    path = changed("sd1", tmp_path / "model.safetensors", HARMLESS[kind])
    assert_holds(opened(path), make("sd1"))


REFUSED: dict[str, tuple[Change, str]] = {
    "denoiser": (
        without(UNET + "output_blocks.3.0.in_layers.2"),
        r"2 tensors of its denoiser are missing, such as '.*output_blocks.3.0.in_layers.2.bias'",
    ),
    "VAE": (
        without(VAE + "decoder.up.0.block.0.norm1.bias"),
        "1 tensors of its VAE are missing",
    ),
    "text encoder": (
        without("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        "1 tensors of its text encoder are missing",
    ),
    "shape": (
        lambda found: found.update({UNET + "out.0.weight": torch.ones(31)}),
        r"1 tensors of its denoiser have another shape, such as '.*out.0.weight'",
    ),
    "more": (
        lambda found: found.update({UNET + "adapter.weight": torch.ones(3)}),
        r"1 tensors of its denoiser are unknown, such as '.*adapter.weight'",
    ),
    "no block": (without(UNET + "input_blocks.1."), "blocks of it are missing"),
    "LCM": (
        lambda found: found.update({UNET + "time_embed.cond_proj.weight": torch.ones(3, 3)}),
        r"guidance distilled into it \(LCM\)",
    ),
    "Playground": (added(edm_mean=torch.ones(4)), "Playground 2.5"),
    "CosXL": (
        lambda found: found.update({"edm_vpred.sigma_max": torch.ones(())}),
        r"EDM noise schedule \(CosXL\)",
    ),
    "another width": (
        lambda found: found.update(
            {n: torch.ones(8, 777) for n in found if n.endswith("attn2.to_k.weight")}
        ),
        "reads texts of width 777",
    ),
    "five channels": (
        lambda found: found.update({UNET + "input_blocks.0.0.weight": torch.ones(32, 5, 3, 3)}),
        "reads 5 channels",
    ),
    "only a VAE": (
        lambda found: [without(UNET)(found), without("cond_stage_model.")(found)],
        "holds a VAE and no denoiser",
    ),
    "only a LoRA": (
        lambda found: [found.clear(), found.update({"lora_te_x.lora_up.weight": torch.ones(2, 2)})],
        "is a LoRA, not a base model; put it into loras/",
    ),
    "something else": (
        lambda found: [found.clear(), found.update({"blocks.0.weight": torch.ones(2)})],
        r"not a checkpoint of Stable Diffusion 1, 2 or XL.*'blocks.0.weight'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_refused_in_its_own_words(kind: str, tmp_path: Path) -> None:
    change, sentence = REFUSED[kind]
    path = changed("sd1", tmp_path / "model.safetensors", change)
    with pytest.raises(ModelError, match=sentence):
        opened(path)


def test_the_refiner_of_xl_is_refused(tmp_path: Path) -> None:
    path = changed(
        "sdxl", tmp_path / "refiner.safetensors", renamed("embedders.1.", "embedders.0.")
    )
    with pytest.raises(ModelError, match="the refiner of Stable Diffusion XL"):
        opened(path)


BROKEN = {
    "pickle": (b"PK\x03\x04" + b"0" * 40, "is a pickle, .* convert it with"),
    "old pickle": (b"\x80\x02" + b"0" * 40, "is a pickle"),
    "GGUF": (b"GGUF" + b"0" * 40, "is a GGUF file of version 808464432; versions 2 and 3"),
    "page": (b"<!DOCTYPE html><html>", "is a web page"),
    "noise": (b"no model", "is not a safetensors or GGUF file, or it is cut short"),
    "header": (b'\x08\0\0\0\0\0\0\0{"a": 1' + b"0" * 20, "header of .* is damaged"),
    "entry": (b'\x08\0\0\0\0\0\0\0{"a": 1}' + b"0" * 20, "its entry 'a' is wrong"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_checkpoint_says_what_it_is(kind: str, tmp_path: Path) -> None:
    content, sentence = BROKEN[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        opened(tmp_path / "model.safetensors")


def test_a_file_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint("sd1").read_bytes()[: -3 * 2**20])
    with pytest.raises(ModelError, match=r"cut short: 3\.0 MiB are missing"):
        opened(path)


def test_a_denoiser_alone_opens_with_the_parts_of_another_file(tmp_path: Path) -> None:
    """As it is given away for ComfyUI, with and without the prefix."""
    change = lambda found: [without(VAE)(found), without("cond_stage_model.")(found)]  # noqa: E731
    for number, prefix in enumerate((UNET, "")):
        both = lambda found, new=prefix: [change(found), renamed(UNET, new)(found)]  # noqa: E731
        path = changed("sd1", tmp_path / f"{number}.safetensors", both)
        with pytest.raises(ModelError, match="no text encoder and no VAE.*text_encoder"):
            opened(path)
        whole = str(checkpoint("sd1"))
        assert_holds(opened(path, ModelOptions(vae=whole, text_encoder=whole)), make("sd1"))


def test_a_checkpoint_without_vae_opens_with_any_form_of_one(tmp_path: Path) -> None:
    path = changed("sd1", tmp_path / "no-vae.safetensors", without(VAE))
    with pytest.raises(ModelError, match="holds no VAE.*Name a file .* with .*vae"):
        opened(path)
    pipeline = make("sd1")
    pipeline.save_pretrained(tmp_path / "folder")
    bare = {n.removeprefix(VAE): t for n, t in tensors("sd1").items() if n.startswith(VAE)}
    forms = (checkpoint("sd1"), tmp_path / "folder", write(tmp_path / "vae.safetensors", bare))
    for form in forms:
        assert_holds(opened(path, ModelOptions(vae=str(form))), pipeline)


def test_a_vae_with_the_names_of_diffusers_is_read_too(tmp_path: Path) -> None:
    pipeline = make("sd1")
    theirs = write(tmp_path / "vae.safetensors", pipeline.vae.state_dict())
    path = changed("sd1", tmp_path / "no-vae.safetensors", without(VAE))
    assert_holds(opened(path, ModelOptions(vae=str(theirs))), pipeline)


def test_a_damaged_vae_of_its_own_is_not_read_where_another_is_chosen(tmp_path: Path) -> None:
    path = changed("sd1", tmp_path / "damaged.safetensors", without(VAE + "decoder.up.0."))
    with pytest.raises(ModelError, match="tensors of its VAE are missing"):
        opened(path)
    assert_holds(opened(path, ModelOptions(vae=str(checkpoint("sd1")))), make("sd1"))


def test_parts_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    bare = {n.removeprefix(VAE): t for n, t in tensors("sd1").items() if n.startswith(VAE)}
    wide = {**bare, "decoder.conv_in.weight": torch.ones(32, 16, 3, 3)}
    wide |= {f"{n}quant_conv.weight": torch.ones(s, s, 1, 1) for n, s in (("", 32), ("post_", 16))}
    wide |= {f"{n}quant_conv.bias": torch.ones(s) for n, s in (("", 32), ("post_", 16))}
    wide["encoder.conv_out.weight"] = torch.ones(32, 32, 3, 3)
    wide["encoder.conv_out.bias"] = torch.ones(32)
    vae = write(tmp_path / "wide.safetensors", wide)
    misshapen = write(
        tmp_path / "odd.safetensors", {**bare, "decoder.norm_out.weight": torch.ones(31)}
    )
    make("sd2").save_pretrained(tmp_path / "sd2")
    choices = {
        ModelOptions(vae=str(vae)): "makes latents of 16 channels, .* has 4",
        ModelOptions(vae=str(misshapen)): "1 tensors of its VAE have another shape",
        ModelOptions(text_encoder=str(checkpoint("sdxl"))): "holds no text encoder of .* 1",
        ModelOptions(text_encoder=str(tmp_path / "sd2")): "texts of width 1024, .* reads 768",
    }
    for options, sentence in choices.items():
        with pytest.raises(ModelError, match=sentence):
            opened(checkpoint("sd1"), options)


@pytest.mark.parametrize("setting", ["vae", "text_encoder"])
@pytest.mark.parametrize("kind", ["starter", "flux", "sd3"])
def test_families_whose_parts_are_their_own_say_so(kind: str, setting: str) -> None:
    source = str(STARTER_MODEL) if kind == "starter" else str(tiny(kind))
    with pytest.raises(ModelError, match=f"is used with its own parts; .*{setting}"):
        open_family(source, torch.float32, CPU, ModelOptions(**{setting: source}))


def test_another_vae_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    other = {n: t + 1 for n, t in tensors("sd1").items() if n.startswith(VAE)}
    family = opened(
        checkpoint("sd1"), ModelOptions(vae=str(write(tmp_path / "vae.safetensors", other)))
    )
    assert torch.equal(
        family.pipeline.vae.encoder.conv_in.weight, other[VAE + "encoder.conv_in.weight"]
    )


PREDICTIONS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "plain XL": ("sdxl", {}, "epsilon", False),
    "NoobAI v": ("sdxl", {"marks": ("v_pred", "ztsnr")}, "v_prediction", True),
    "v alone": ("sd1", {"marks": ("v_pred",)}, "v_prediction", False),
    "modelspec": ("sdxl", {"metadata": {"modelspec.prediction_type": "v"}}, "v_prediction", False),
    "modelspec epsilon": (
        "sd2", {"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon", False,
    ),
    "name": ("sdxl", {"name": "noob-vpred-1.0"}, "v_prediction", False),
    "name of SD 2": ("sd2", {"name": "v2-1_768-v-ema"}, "v_prediction", False),
    "merge that lost it": ("sdxl", {"chosen": "v_prediction"}, "v_prediction", False),
    "choice against the mark": (
        "sdxl", {"marks": ("v_pred",), "chosen": "epsilon"}, "epsilon", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PREDICTIONS)
def test_prediction_and_schedule_are_those_of_the_file_or_of_the_user(
    case: str, tmp_path: Path
) -> None:
    kind, how, prediction, zero_snr = PREDICTIONS[case]
    marks = added(**dict.fromkeys(how.get("marks", ()), EMPTY))
    path = tmp_path / f"{how.get('name', 'model')}.safetensors"
    changed(kind, path, marks, **how.get("metadata", {}))
    family = opened(path, ModelOptions(prediction=how.get("chosen", "auto")))
    assert family.noise.prediction == prediction
    signal = family.noise.alphas_bar[-1]
    assert (signal < 1e-6) == zero_snr
    spacing = family.pipeline.scheduler.config.timestep_spacing
    assert (spacing == "trailing") == zero_snr


def test_scaled_fp8_is_read_with_its_scales(tmp_path: Path) -> None:
    found = dict(tensors("sd1"))
    expected = {}
    for number, name in enumerate(n for n in list(found) if n.endswith("attn2.to_q.weight")):
        stem = name.removesuffix(".weight")
        weight = found[name].float()
        scale = weight.abs().amax() / 448 if number % 2 else weight.abs().amax(1) / 448
        rows = scale if scale.dim() == 0 else scale[:, None]
        found[name] = (weight / rows).to(torch.float8_e4m3fn)
        found[stem + (".scale_weight" if number % 2 else ".weight_scale")] = scale
        found[stem + ".scale_input"] = torch.ones(())
        expected[name] = (found[name].float() * rows).half()
    found["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    family = opened(write(tmp_path / "fp8.safetensors", found))
    written = single_file(family)
    assert expected
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert checkpoint_facts(read_checkpoint_header(checkpoint("sd1"))).dtype == "F16"


def test_plain_fp8_is_cast(tmp_path: Path) -> None:
    name = UNET + "middle_block.1.proj_in.weight"
    small = tensors("sd1")[name].to(torch.float8_e4m3fn)
    path = changed("sd1", tmp_path / "fp8.safetensors", lambda found: found.update({name: small}))
    assert torch.equal(single_file(opened(path))[name], small.half())


def test_an_unknown_quantisation_is_refused_by_its_name(tmp_path: Path) -> None:
    name = UNET + "middle_block.1.transformer_blocks.0.attn2.to_q"
    text = json.dumps({"format": "nvfp4"}).encode()
    mark = torch.tensor(list(text), dtype=torch.uint8)
    path = changed(
        "sd1", tmp_path / "four.safetensors",
        lambda found: found.update({name + ".comfy_quant": mark}),
    )  # fmt: skip
    with pytest.raises(ModelError, match="quantised as nvfp4"):
        opened(path)
    whole = changed(
        "sd1", tmp_path / "int.safetensors",
        lambda found: found.update({name + ".weight": found[name + ".weight"].to(torch.int8)}),
    )  # fmt: skip
    with pytest.raises(ModelError, match="as I8, a quantised format"):
        opened(whole)


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("dreamshaperXL_lightning4step", True),
        ("sdxl_turbo", True),
        ("Hyper-SDXL-8step", True),
        ("hyperion", False),
        ("pony", False),
    ],
)
def test_a_model_for_few_steps_is_known_by_its_name(name: str, few: bool, tmp_path: Path) -> None:
    path = changed("sd1", tmp_path / f"{name}.safetensors", lambda found: None)
    assert checkpoint_facts(read_checkpoint_header(path)).few_steps is few


def test_an_unknown_family_is_written_as_a_folder_only() -> None:
    family = open_tiny("sd1")
    family.name = "other"
    with pytest.raises(ModelError, match="diffusers folder only"):
        single_file(family)


def test_a_fused_starter_model_opens_again(tmp_path: Path) -> None:
    starter = open_family(str(STARTER_MODEL), torch.float32, CPU)
    path = write(tmp_path / "fused.safetensors", single_file(starter))
    again = open_family(str(path), torch.float32, CPU)
    assert_holds(again, starter.pipeline)
    assert again.tokenizer("te").get_vocab() == starter.tokenizer("te").get_vocab()


def test_tokens_are_those_of_clip() -> None:
    """The numbers of OpenAI's own tokenizer."""
    tokenizer = opened(checkpoint("sdxl")).pipeline.tokenizer
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(tokenizer) == 49408
    assert opened(checkpoint("sdxl")).pipeline.tokenizer_2.pad_token_id == 0


class Asked:
    """A denoiser that answers every question with the same words."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        self.answer = answer
        self.config = SimpleNamespace(in_channels=4, out_channels=4)

    def __call__(self, x: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        return (self.answer(x),)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x: x + 0.3 * torch.ones_like(x), True),
        (lambda x: torch.ones_like(x) - 0.1 * x, False),
    ],
)
def test_a_model_of_sd2_is_asked_what_it_predicts(
    answer: Callable[[Tensor], Tensor], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = opened(checkpoint("sd2"))
    assert family.noise.prediction == "v_prediction"  # random weights give no noise back
    monkeypatch.setattr(family, "denoiser", Asked(answer))
    assert predicts_noise(family) is expected


def test_an_inpainting_model_makes_whole_pictures_and_is_not_trained_on(tmp_path: Path) -> None:
    path = checkpoint("sd1", channels=9)
    family = open_family(str(path), torch.float32, CPU)
    assert (family.latent_channels, family.extra_channels) == (4, 5)
    x = torch.randn(2, 4, 8, 8)
    texts = Conditioning({"context": torch.zeros(2, 77, 768)})
    with torch.no_grad():
        given = family.predict(x, torch.tensor([500, 500]), texts)
        grey = family.encode_images(torch.zeros(1, 3, 64, 64)).expand(2, -1, -1, -1)
        whole = torch.cat([x, torch.ones(2, 1, 8, 8), grey], 1)
        expected = family.denoiser(whole, 500, texts.tensors["context"])[0]
    assert torch.equal(given, expected)
    workspace = Workspace.open(tmp_path)
    settings = TrainSettings(data="zibo", name="x", model=str(path))
    with pytest.raises(SettingsError, match="is an inpainting model"):
        list(open_model(settings, workspace, torch.float32, CPU))


def test_names_in_models_open_files_folders_and_vaes(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    for place in (
        "models/anything.safetensors",
        "vae/soft.safetensors",
        "models/vae/x.safetensors",
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    (workspace.models / "folder").mkdir()
    assert workspace.model_names() == ["starter", "anything", "folder"]
    for name in ("anything", "anything.safetensors"):
        assert workspace.model_source(name) == str(workspace.models / "anything.safetensors")
    for name in ("soft", "soft.safetensors"):
        assert workspace.vae_source(name) == str(workspace.vaes / "soft.safetensors")
    assert workspace.vae_source("x") == str(workspace.models / "vae" / "x.safetensors")
    assert (workspace.vae_source(""), workspace.vae_source("/x/y")) == ("", "/x/y")


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("ponyDiffusionV6XL_v6", "pony"), ("noobaiXLNAIXL_vPred10", "illustrious"),
        ("waiNSFWIllustrious_v140", "illustrious"), ("WAI-illustrious-SDXL", "illustrious"),
        ("juggernautXL_v9", "sdxl"), ("pilot", "sdxl"),
    ],
)  # fmt: skip
def test_children_of_xl_have_presets_of_their_own(name: str, presets: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.hardlink_to(checkpoint("sdxl"))
    assert preset_family(path) == presets
    values = preset(presets, "style")
    assert values["rank"] == preset("sdxl", "style")["rank"] == 32
    assert values.get("shuffle_tags", False) == (presets != "sdxl")
    assert ("score_9" in preset_drift_prompts(presets)[0]) == (presets == "pony")
