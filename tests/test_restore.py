"""From a picture back to a request: values, LoRAs found by hash, and what is missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recorded import A1111, COMFY, FOOOCUS, INVOKE, SWARM
from sdlora.lora.adapter import Adapter
from sdlora.lora.file import LoraFile, write_lora
from sdlora.lora.library import Library
from sdlora.prompt import Recalled, parse_infotext, request_of
from sdlora.prompt.samplers import SAMPLER_TITLES, sampler_of
from sdlora.settings import ImageRequest
from sdlora.workspace import Workspace

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def space(workspace: Path) -> Workspace:
    return Workspace.open(workspace)


def lora(space: Workspace, name: str, seed: int = 0) -> str:
    """A LoRA file of that name; its hash."""
    rng = torch.Generator().manual_seed(seed)
    halves = torch.randn(1, 32, generator=rng), torch.randn(32, 1, generator=rng)
    write_lora(LoraFile({LAYER: Adapter.lora(*halves, 1.0)}), space.loras / f"{name}.safetensors")
    library = Library.of(space)
    return library.hashes(library.find(name)).autov3


def restored(space: Workspace, said: str | dict[str, Any]) -> tuple[dict[str, Any], str]:
    text = said if isinstance(said, str) else json.dumps(said)
    values, problems = request_of(parse_infotext(text), Library.of(space), space)
    ImageRequest.of(values)
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
        (COMFY, "euler", (512, 768), "seed must be less than 4294967296"),
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
        "not taken over: VAE: x",
        "there is no LoRA 'soft'. Its hash is 0123456789ab.",
        "there is no LoRA 'oli'. Did you mean oil?",
    ]
    _, problems = restored(space, text.format(neon, "f" * 12, neon))
    assert f"'oil' is another file here: its hash was {'f' * 12}" in problems


def test_a_picture_never_chooses_a_model_that_is_not_here(space: Workspace) -> None:
    (space.models / "mine").mkdir()
    line = "a\nSteps: 1, Seed: 2, Size: 64x64, Model: "
    assert restored(space, line + "mine")[0]["model"] == "mine"
    for model in ("someone/model", "/etc", "../mine"):
        values, problems = restored(space, line + model)
        assert "model" not in values and "is not here" in problems


def own(request: dict[str, Any], **image: Any) -> Recalled:
    return replace(Recalled(), program="sdlora", details={"request": request, "image": image})


def test_our_own_picture_is_its_whole_request(space: Workspace) -> None:
    asked = {
        "prompt": "{a|b|c|d} \n Steps: 1, b: 2, c: 3", "negative_prompt": "x", "steps": 3,
        "seed": 7, "count": 4, "sampler": "euler_a", "hires_scale": 1.5, "future": 1,
        "height": 63,
    }  # fmt: skip
    values, problems = request_of(own(asked, seed=9, index=2), Library.of(space), space)
    kept = {key: asked[key] for key in ("prompt", "negative_prompt", "steps", "hires_scale")}
    assert values == {**kept, "sampler": "euler_a", "seed": 9, "count": 1}
    assert "no setting 'future'" in problems[0] and "height must be a multiple of 8" in problems[1]


def test_what_was_drawn_wins_where_the_lists_are_others(space: Workspace) -> None:
    asked = {"prompt": "a __pet__", "seed": 1, "styles": ["oil"]}
    drawn = {"prompt": "oil of a cat", "negative_prompt": "", "seed": 1}
    values, problems = request_of(own(asked, **drawn), Library.of(space), space)
    assert (values["prompt"], values["styles"]) == ("oil of a cat", ())
    assert "are others here" in problems[0]
    space.wildcards.mkdir()
    (space.wildcards / "pet.txt").write_text("cat\n")
    space.styles.write_text("name,prompt,negative_prompt\noil,oil of {prompt},\n")
    values, problems = request_of(own(asked, **drawn), Library.of(space), space)
    assert (values["prompt"], values["styles"], problems) == ("a __pet__", ("oil",), [])


@pytest.mark.parametrize(
    "details",
    [
        {"request": {"prompt": 3}},
        {"request": [], "image": 4},
        {"request": {"seed": "x"}, "image": {"seed": []}},
    ],
)
def test_damaged_records_are_no_crash(space: Workspace, details: dict[str, Any]) -> None:
    request_of(Recalled(details=details), Library.of(space), space)


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
