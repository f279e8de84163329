"""From a picture back to a request: values, LoRAs found by hash, and what is missing."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_checkpoints
from recorded_metadata import A1111, COMFY, FOOOCUS, INVOKE, SWARM
from sdlora.assets.checkpoints import CheckpointLibrary
from sdlora.image_metadata.a1111 import ImageMetadata
from sdlora.image_metadata.reader import parse_infotext
from sdlora.image_metadata.sampler_names import SAMPLER_TITLES, sampler_of
from sdlora.image_metadata.to_request import request_of
from sdlora.lora.format.file import LoraFile, write_lora
from sdlora.lora.format.layer import Adapter
from sdlora.lora.library.library import Library
from sdlora.settings.image_request import ImageRequest
from sdlora.workspace import Workspace

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(space: Workspace, name: str, seed: int = 0) -> str:
    """A LoRA file of that name; its hash."""
    rng = torch.Generator().manual_seed(seed)
    halves = torch.randn(1, 32, generator=rng), torch.randn(32, 1, generator=rng)
    write_lora(LoraFile({LAYER: Adapter.lora(*halves, 1.0)}), space.loras / f"{name}.safetensors")
    library = Library.for_workspace(space)
    return library.hashes(library.find(name)).autov3


def restored(space: Workspace, said: str | dict[str, Any]) -> tuple[dict[str, Any], str]:
    text = said if isinstance(said, str) else json.dumps(said)
    values, problems = request_of(parse_infotext(text), Library.for_workspace(space), space)
    ImageRequest.from_values(values)
    return values, "\n".join(problems)


def test_a1111(space: Workspace) -> None:
    values, problems = restored(space, A1111)
    assert values.pop("prompt").endswith("standing\nin a street")
    assert values == {
        "negative_prompt": "(worst quality:1.4), blurry\ntwo heads", "steps": 37, "guidance": 7.0,
        "seed": 57707383, "count": 1, "width": 568, "height": 512, "sampler": "euler",
        "clip_skip": 2, "hires_scale": 2.0, "hires_steps": 27, "hires_strength": 0.3,
        "hires_upscaler": "lanczos",
    }  # fmt: skip
    for part in ("4x-UltraSharp", "'UniMiX.v4' is not here", "Its hash is bab8c95a8b1b"):
        assert part in problems


@pytest.mark.parametrize(
    ("said", "sampler", "size", "told"),
    [
        (INVOKE, "dpm++_2m_sde", (768, 432), "no schedule 'karras'"),
        (SWARM, "euler", (1024, 768), "no schedule 'karras'"),
        (FOOOCUS, "dpm++_2m_sde", (1152, 896), "no LoRA 'sd_xl_offset'"),
        (COMFY, "euler", (512, 768), "no LoRA 'fur'"),
    ],
)
def test_other_programs(
    space: Workspace, said: dict[str, Any], sampler: str, size: tuple[int, int], told: str
) -> None:
    values, problems = restored(space, said)
    assert (values["sampler"], values["width"], values["height"]) == (sampler, *size)
    assert told in problems and "<lora:" in values["prompt"]


def test_loras_are_found_by_hash_and_what_is_missing_is_told(space: Workspace) -> None:
    neon, oil = lora(space, "my neon"), lora(space, "oil", 1)
    text = (
        "<lora:neon:0.8> lora:oil:1 <lora:soft> <lora:oli:1>\n"
        'Steps: 1, Seed: 2, Size: 64x64, VAE: x, Lora hashes: "neon: {}, oil: {}, soft: {}"'
    )
    values, problems = restored(space, text.format(neon, oil, "0123456789ab"))
    assert values["prompt"] == "<lora:my neon:0.8> lora:oil:1 <lora:soft> <lora:oli:1>"
    assert problems.split("\n") == [
        "the VAE 'x' is not here; the model's own is used",
        "there is no LoRA 'soft'. Its hash is 0123456789ab.",
        "there is no LoRA 'oli'. Did you mean oil?",
    ]
    _, problems = restored(space, text.format(neon, "f" * 12, neon))
    assert f"'oil' is another file here: its hash was {'f' * 12}" in problems


def test_a_vae_is_taken_over_by_its_name_only(space: Workspace) -> None:
    (space.models / "vae").mkdir()
    (space.models / "vae" / "soft.safetensors").write_bytes(b"")
    line = "a\nSteps: 1, Seed: 2, Size: 64x64, VAE: "
    for named in ("soft.safetensors", "soft", "models/VAE/soft.pt"):
        values, problems = restored(space, line + named)
        assert (values["vae"], problems) == ("soft", "")
    values, problems = restored(space, line + "/etc/other")
    assert "vae" not in values and "is not here; the model's own is used" in problems
    values, problems = restored(space, line + "Automatic")
    assert "vae" not in values and not problems


def test_a_picture_never_chooses_a_model_that_is_not_here(space: Workspace) -> None:
    (space.models / "mine").mkdir()
    line = "a\nSteps: 1, Seed: 2, Size: 64x64, Model: "
    assert restored(space, line + "mine")[0]["model"] == "mine"
    for model in ("someone/model", "/etc", "../mine"):
        values, problems = restored(space, line + model)
        assert "model" not in values and "is not here" in problems


def own(request: dict[str, Any], **image: Any) -> ImageMetadata:
    return replace(ImageMetadata(), program="sdlora", details={"request": request, "image": image})


def test_our_own_picture_is_its_whole_request(space: Workspace) -> None:
    asked = {
        "prompt": "{a|b|c|d} \n Steps: 1, b: 2, c: 3", "negative_prompt": "x", "steps": 3,
        "seed": 7, "count": 4, "sampler": "euler_a", "hires_scale": 1.5, "future": 1,
        "height": 63,
    }  # fmt: skip
    values, problems = request_of(own(asked, seed=9, index=2), Library.for_workspace(space), space)
    kept = {key: asked[key] for key in ("prompt", "negative_prompt", "steps", "hires_scale")}
    rest = {"sampler": "euler_a", "seed": 9, "count": 1, "upscaler": "none"}
    assert values == {**kept, **rest}
    assert "no setting 'future'" in problems[0] and "height must be a multiple of 8" in problems[1]


def test_what_was_drawn_wins_where_the_lists_are_others(space: Workspace) -> None:
    asked = {"prompt": "a __pet__", "seed": 1, "styles": ["oil"]}
    drawn = {"prompt": "oil of a cat", "negative_prompt": "", "seed": 1}
    values, problems = request_of(own(asked, **drawn), Library.for_workspace(space), space)
    assert (values["prompt"], values["styles"]) == ("oil of a cat", ())
    assert "have changed since" in problems[0]
    space.wildcards.mkdir()
    (space.wildcards / "pet.txt").write_text("cat\n")
    space.styles.write_text("name,prompt,negative_prompt\noil,oil of {prompt},\n")
    values, problems = request_of(own(asked, **drawn), Library.for_workspace(space), space)
    assert (values["prompt"], values["styles"], problems) == ("a __pet__", ("oil",), [])


def test_a_picture_of_the_first_rules_keeps_its_words(space: Workspace) -> None:
    asked = {"prompt": "a cat, <lora:x:1>, red", "negative_prompt": "dull, <lora:y>"}
    record, library = own(asked), Library.for_workspace(space)
    values, _ = request_of(record, library, space)
    assert values["prompt"] == "a cat, <lora:x:1> red"
    assert values["negative_prompt"] == "dull <lora:y>"
    record.details["prompt_rules"] = 2
    values, _ = request_of(record, library, space)
    assert {name: values[name] for name in asked} == asked


@pytest.mark.parametrize(
    "details",
    [
        {"request": {"prompt": 3}},
        {"request": [], "image": 4},
        {"request": {"seed": "x"}, "image": {"seed": []}},
    ],
)
def test_damaged_records_are_no_crash(space: Workspace, details: dict[str, Any]) -> None:
    request_of(ImageMetadata(details=details), Library.for_workspace(space), space)


def test_samplers_by_every_name() -> None:
    for setting, (title, schedule) in SAMPLER_TITLES.items():
        assert sampler_of(title, schedule, "sdlora") == (setting, "")
    for name, schedule, program, expected in (
        ("DPM++ 2M Karras", "", "A1111", "dpm++_2m_karras"),
        ("DPM++ 2M", "Automatic", "A1111", "dpm++_2m_karras"),
        ("DPM++ 2M", "", "A1111", "dpm++_2m"),
        ("dpmpp_2m", "karras", "ComfyUI", "dpm++_2m_karras"),
        ("dpmpp_2m_k", "", "InvokeAI", "dpm++_2m_karras"),
        ("euler_ancestral", "normal", "ComfyUI", "euler_a"),
        ("uni_pc", "simple", "ComfyUI", "unipc"),
    ):
        assert sampler_of(name, schedule, program) == (expected, "")
    assert sampler_of("Heun")[0] == "" and "'Heun' is not known" in sampler_of("Heun")[1]


def test_a_picture_that_began_from_noise_alone_says_so(space: Workspace) -> None:
    said = "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Noise Schedule: Zero Terminal SNR"
    values, problems = restored(space, said)
    assert values["zero_terminal_snr"] is True and not problems
    plain, _ = restored(space, said.replace("Zero Terminal SNR", "Default"))
    assert "zero_terminal_snr" not in plain


PARAMETERS = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512"


def claimed(space: Workspace, name: str, hash_: str, seed: int = 0) -> None:
    """A LoRA file whose metadata claims a hash."""
    lora(space, name, seed)
    path = space.loras / f"{name}.safetensors"
    save_file(load_file(path), path, {"sshs_model_hash": hash_})


def test_a_claimed_hash_moves_no_tag_off_a_file_of_its_name(space: Workspace) -> None:
    claim = "0123456789ab" + "0" * 52
    claimed(space, "first", claim)
    claimed(space, "second", claim, 1)
    for name in ("first", "second"):
        text = f'<lora:{name}:0.8>\n{PARAMETERS}, Lora hashes: "{name}: {claim[:12]}"'
        values, problems = restored(space, text)
        assert (values["prompt"], problems) == (f"<lora:{name}:0.8>", "")
    text = f'<lora:gone:0.8>\n{PARAMETERS}, Lora hashes: "gone: {claim[:12]}"'
    values, problems = restored(space, text)
    assert values["prompt"] == "<lora:first:0.8>" and "several files have the hash" in problems


def test_another_file_of_a_name_keeps_the_tag_and_the_right_one_is_named(space: Workspace) -> None:
    lora(space, "neon")
    right = lora(space, "glow", 1)
    text = f'<lora:neon:0.8> <lora:old:1>\n{PARAMETERS}, Lora hashes: "neon: {right}, old: {right}"'
    values, problems = restored(space, text)
    assert values["prompt"] == "<lora:neon:0.8> <lora:glow:1>"
    assert f"its hash was {right}, which 'glow' has" in problems


@pytest.mark.parametrize("hash_", ["e3b0c44298fc", "e3b0c44298fc1c149afbf4c8996fb924", ""])
def test_the_hash_of_no_bytes_names_nothing(space: Workspace, hash_: str) -> None:
    claimed(space, "empty", sha256(b"").hexdigest())
    lora(space, "neon", 1)
    text = (
        f'<lora:neon:0.8> <lora:gone:1>\n{PARAMETERS}, Lora hashes: "neon: {hash_}, gone: {hash_}"'
    )
    values, problems = restored(space, text)
    assert values["prompt"] == "<lora:neon:0.8> <lora:gone:1>"
    assert problems.startswith("there is no LoRA 'gone'") and "e3b0c" not in problems


def test_hashes_as_json_are_read(space: Workspace) -> None:
    space.embeddings.mkdir()
    lora(space, "glow")
    library = Library.for_workspace(space)
    autov2 = library.hashes(library.find("glow")).autov2
    hashes = {"LORA:my, neon": autov2, "embed:dull": "abcdefabcd", "model": "0123456789"}
    text = f"<lora:my, neon:0.8>\n{PARAMETERS}, Hashes: {json.dumps(hashes)}, Version: x"
    values, problems = restored(space, text)
    assert values["prompt"] == "<lora:glow:0.8>"
    assert problems == "the textual inversion 'dull' (hash abcdefabcd) is not here"


def test_what_civitai_lists_is_told(space: Workspace) -> None:
    lora(space, "Ink")
    rows = [
        {"type": "checkpoint", "modelName": "Dream", "modelVersionName": "8", "modelVersionId": 4},
        {"type": "lora", "modelName": "ink", "weight": 0.75},
        {"type": "lycoris", "weight": "strong", "air": "urn:air:sd1:lora:civitai:1@2"},
    ]
    _, problems = restored(space, f"a\n{PARAMETERS}, Civitai resources: {json.dumps(rows)}")
    assert problems.split("\n") == [
        "it was made on Civitai with the checkpoint 'Dream' (version 8, id 4)",
        "it was made on Civitai with the lora 'ink' at weight 0.75; its tag is not in the prompt: "
        "add <lora:Ink:0.75>",
        "it was made on Civitai with the lycoris 'urn:air:sd1:lora:civitai:1@2' at weight 1; its "
        "tag is not in the prompt: add <lora:urnairsd1loracivitai1@2:1> once its file is here",
    ]
    _, problems = restored(space, f"a\n{PARAMETERS}, Civitai resources: {{broken")
    assert problems == "not taken over: Civitai resources: {broken"


@pytest.mark.parametrize(
    ("target", "scale", "told"),
    [
        ("1024x1024", 2.0, ""),
        ("768x0", 1.5, ""),
        ("0x768", 1.5, ""),
        ("1024x768", 2.0, "the second pass from 512x512 to 1024x768 cropped the picture"),
        ("512x512", None, "the size is the same"),
        ("large", None, "it gives no scale"),
    ],
)
def test_a_second_pass_given_by_its_size(
    space: Workspace, target: str, scale: float | None, told: str
) -> None:
    text = (
        f"a\n{PARAMETERS}, Denoising strength: 0.5, Hires resize: {target}, Hires upscaler: Latent"
    )
    values, problems = restored(space, text)
    assert values.get("hires_scale") == scale and values["hires_strength"] == 0.5
    assert told in problems and bool(problems) == bool(told)


def test_noise_of_another_kind_is_told(space: Workspace) -> None:
    assert restored(space, f"a\n{PARAMETERS}, RNG: NV")[1] == "not taken over: RNG: NV"
    assert restored(space, f"a\n{PARAMETERS}, RNG: CPU")[1] == ""


def checkpoint(space: Workspace, name: str, kind: str = "sd1") -> str:
    """A checkpoint of that name; its hash in A1111's pictures."""
    path = space.models / f"{name}.safetensors"
    shutil.copy(tiny_checkpoints.checkpoint(kind), path)
    library = CheckpointLibrary(space)
    return library.hashed(library.find(name)).autov2


def test_the_model_of_a_picture_is_found_by_name_then_by_hash(space: Workspace) -> None:
    first, second = checkpoint(space, "anime_Merge"), checkpoint(space, "other", "sd2")
    for named, hash_, expected, problem in (
        ("anime_Merge", second, "anime_Merge", ""),  # never over a name
        ("anime merge.safetensors", "", "anime_Merge", ""),
        ("renamed", second, "other", f"'renamed' is 'other' here, by its hash {second}"),
        ("renamed", first[:8], "anime_Merge", "by its hash"),
        ("renamed", "0123456789", None, "'renamed' is not here"),
        ("renamed", "../x", None, "'renamed' is not here"),
        ("starter", second, "starter", ""),
    ):
        text = f"a cat\n{PARAMETERS}, Model: {named}, Model hash: {hash_}"
        values, problems = restored(space, text)
        assert values.get("model") == expected
        assert problem in problems if problem else not problems


def test_a_picture_with_a_hash_alone_chooses_its_model(space: Workspace) -> None:
    hash_ = checkpoint(space, "mine")
    values, problems = restored(space, f"a cat\n{PARAMETERS}, Model hash: {hash_}")
    assert values["model"] == "mine" and "by its hash" in problems
