"""A whole model in one file: written, and opened as it is, offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdlora.architectures import FAMILIES
from sdlora.errors import ModelError
from sdlora.messages import Setting
from sdlora.models.base import Conditioning, ModelFamily
from sdlora.models.checkpoint_configs import (
    FAMILY_CONFIGS,
    SCHEDULER,
    Config,
    resolution_of,
    scheduler_config,
)
from sdlora.models.checkpoint_facts import (
    TEXT_PREFIXES,
    CheckpointFacts,
    checkpoint_facts,
    number_format,
)
from sdlora.models.checkpoint_layout import checkpoint_layout, to_file
from sdlora.models.checkpoint_parts import (
    PART_TITLES,
    build_parts,
    checked_layout,
    load_parts,
    parts_of,
)
from sdlora.models.options import DEFAULT_OPTIONS, ModelOptions
from sdlora.models.other_parts import check_fit, chosen_parts, load_chosen_parts
from sdlora.models.tensor_source import TensorSource, open_tensors
from sdlora.prompt.clip_vocabulary import clip_merges, clip_vocabulary
from sdlora.workspace import STARTER_MODEL


def single_file(family: ModelFamily) -> dict[str, Tensor]:
    """Return every tensor of an open family by the name it has in a single file, on the CPU.

    ModelError for a family that has no such naming here.
    """
    if family.name not in TEXT_PREFIXES:
        raise ModelError("{model} is written as a diffusers folder only", model=family.title)
    parts = {"unet": family.denoiser, "vae": family.pipeline.vae}
    parts |= {family.text_encoder_names[key]: m for key, m in family.text_encoders.items()}
    states = {part: module.state_dict() for part, module in parts.items()}
    return {
        name: to_file(places, states).detach().cpu().contiguous()
        for name, places in checkpoint_layout(family.name, parts).items()
    }


def checked_names(source: TensorSource, facts: CheckpointFacts) -> dict[str, str]:
    """Return a checkpoint's tensors, by name -> the file's spelling of it. ModelError: a part of it
    is not complete, or of another shape; nothing is loaded."""
    return checked_layout(source, build_parts(source, facts), facts.family)[1]


def _chosen(facts: CheckpointFacts, options: ModelOptions) -> CheckpointFacts:
    """Return the facts with the user's choice of prediction in place of a guess."""
    if options.prediction == "auto":
        return facts
    return replace(facts, prediction=options.prediction, told_by="user")


def open_single_file(
    path: Path,
    family_class: type[ModelFamily],
    dtype: torch.dtype,
    device: torch.device,
    options: ModelOptions = DEFAULT_OPTIONS,
) -> ModelFamily:
    """Open the checkpoint at `path`, of the family that its header tells, in `dtype`. Parts that
    the user takes from elsewhere are not read.

    ModelError when a part is missing, damaged or of another shape.
    """
    diffusers.logging.set_verbosity_error()
    with open_tensors(path) as source:
        dequantized_from = number_format(source.header) if source.header.is_in_blocks else ""
        facts = _chosen(checkpoint_facts(source.header), options)
        elsewhere = sum(chosen_parts(facts.family, options).values(), [])
        modules = build_parts(source, facts, without=elsewhere)
        parts = load_parts(source, modules, facts.family, dtype, options.base_precision)
    parts |= load_chosen_parts(facts.family, options, dtype)
    missing = parts_of(facts.family) - parts.keys()
    if missing:
        raise _incomplete(path, sorted(missing))
    check_fit(parts, facts.family)
    pipeline = single_file_pipeline(facts.family, parts, scheduler_config(facts))
    for part in parts.values():
        _name(part, path)
    family = family_class(facts.family, pipeline, device, dtype, options.stream_blocks)
    family.dequantized_from = dequantized_from
    if facts.family == "sd2" and facts.told_by == "family":
        _settle_prediction(family, facts)
    return family


def open_single_file_like(path: Path, like: ModelFamily) -> ModelFamily:
    """Open the checkpoint at `path`, built as `like` is, whatever its widths; in its number format.
    ModelError: it is another model's, or damaged."""
    pipeline: Any = like.pipeline
    built = {}
    with torch.device("meta"):
        for part in parts_of(like.name):
            config = getattr(pipeline, part).config
            kind = type(getattr(pipeline, part))
            built[part] = kind.from_config(config) if part in ("unet", "vae") else kind(config)
    with open_tensors(path) as source:
        parts = load_parts(source, built, like.name, like.dtype)
    again = type(pipeline)(**{**pipeline.components, **parts}, **_without_checker(like.name))
    return type(like)(like.name, again, like.device, like.dtype)


def _settle_prediction(family: ModelFamily, facts: CheckpointFacts) -> None:
    """Ask a Stable Diffusion 2 of which nothing tells what it predicts: 512 px models predict the
    noise, those of 768 px v, and both have the same shapes."""
    if not predicts_noise(family):
        return
    family.pipeline.scheduler.register_to_config(prediction_type="epsilon")
    cells = resolution_of(replace(facts, prediction="epsilon")) // family.cell
    family.denoiser.register_to_config(sample_size=cells)
    family.noise = family.noise_schedule().to(family.device)


@torch.no_grad()
def predicts_noise(family: ModelFamily) -> bool:
    """Return True if the denoiser's prediction for noise alone is that noise. Predictions of v are
    nearly the negative picture there, which has nothing in common with it."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, family.latent_channels, 16, 16, generator=rng)
    width = family.spec.width
    empty = Conditioning({"context": torch.zeros(1, 77, width, dtype=family.dtype)})
    with family.autocast():
        given = family.predict(noise, torch.tensor([999]), empty.to(family.device))
    return bool(torch.cosine_similarity(given.float().cpu().flatten(), noise.flatten(), 0) > 0.5)


def apply_options(pipeline: Any, family: str, options: ModelOptions, dtype: torch.dtype) -> None:
    """Change an open pipeline to a user's choices. ModelError: they have no meaning for it."""
    if options.prediction != "auto":
        if "prediction_type" not in pipeline.scheduler.config:
            raise ModelError(
                "{model} has one prediction type only; leave {setting} at auto",
                model=FAMILIES[family].title, setting=Setting("prediction"),
            )  # fmt: skip
        pipeline.scheduler.register_to_config(prediction_type=options.prediction)
    if parts := load_chosen_parts(family, options, dtype):
        check_fit({**pipeline.components, **parts}, family)
        for part, module in parts.items():
            setattr(pipeline, part, module)


def _incomplete(path: Path, missing: list[str]) -> ModelError:
    setting = "vae" if missing == ["vae"] else "text_encoder"
    return ModelError(
        "{file} holds no {parts}: it is meant to be used with another file's. Name a file or a "
        "model that has one with {setting}",
        file=path, parts=" and no ".join(PART_TITLES[part] for part in missing),
        setting=Setting(setting),
    )  # fmt: skip


def single_file_pipeline(
    family: str, parts: Mapping[str, nn.Module], noise: Config = SCHEDULER
) -> Any:
    """Return the stock pipeline of a family's parts, with tokenizers of CLIP's vocabulary."""
    scheduler = DDIMScheduler.from_config(noise)
    kind = getattr(diffusers, FAMILIES[family].pipeline_class)
    none = {} if family == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    more = {**none, **_without_checker(family)}
    return kind(**parts, **_tokenizers(family), scheduler=scheduler, **more)


def _without_checker(family: str) -> dict[str, Any]:
    return {"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}


def _tokenizers(family: str) -> dict[str, CLIPTokenizer]:
    if family == "starter":
        return {"tokenizer": CLIPTokenizer.from_pretrained(STARTER_MODEL / "tokenizer")}
    names = ("tokenizer", "tokenizer_2")
    return dict(zip(names, map(clip_tokenizer, FAMILY_CONFIGS[family].pad_tokens), strict=False))


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Return CLIP's tokenizer, equal to the published one."""
    return CLIPTokenizer(
        vocab=clip_vocabulary(), merges=clip_merges(), model_max_length=77, pad_token=pad_token
    )


def _name(part: Any, path: Path) -> None:
    if hasattr(part, "register_to_config"):
        part.register_to_config(_name_or_path=str(path))
    else:
        part.config._name_or_path = str(path)
