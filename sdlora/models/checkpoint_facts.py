"""Facts of a checkpoint file, read from its header alone; no torch, no library's guess.

Family by the denoiser's shapes, prediction type by the marks that programs leave (empty tensors
`v_pred` and `ztsnr` of NoobAI and OneTrainer; `modelspec.prediction_type` of sd-scripts), else by
the file's name, else by what the family usually is. A mark that is missing cannot be told from the
shapes, so the user's choice wins over all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from sdlora.errors import ModelError
from sdlora.models.checkpoint_header import CheckpointHeader, Shape

DENOISER = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."
# text encoder of a family -> where it stands in a file
TEXT_PREFIXES: dict[str, dict[str, str]] = {
    "starter": {"text_encoder": "cond_stage_model.transformer."},
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
_CROSS = re.compile(r"(?:.*\.)?attn2\.to_k\.weight")
_CONV_IN = "input_blocks.0.0.weight"
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 128: "starter"}
_V_WORDS = re.compile(r"v[-_ ]?pred|(?<![a-z0-9])vpred|768[-_]?v", re.IGNORECASE)
_FEW_STEPS = re.compile(
    r"lightning|turbo|hyper[-_ ]?sd|dmd2?|[1248]step"
    r"|(?<![a-z])(hyper|lcm)(?![a-z])",
    re.IGNORECASE,
)

# what told: the user, a mark in the file, its name, the family
Source = Literal["user", "file", "name", "family"]


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint's family, prediction type and parts; `told_by` says what told the prediction."""

    family: str  # a key of FAMILIES
    prediction: Literal["epsilon", "v_prediction"]
    told_by: Source
    zero_terminal_snr: bool
    in_channels: int  # of the denoiser: 4; 9 of an inpainting model
    components: frozenset[str]  # of the pipeline's, those inside
    dtype: str  # safetensors' word, or ggml's, for most of the denoiser's numbers
    has_ema: bool = False
    few_steps: bool = False  # distilled for few steps, as its name says

    @property
    def is_inpainting(self) -> bool:
        """True when the denoiser reads a mask and a masked picture as well."""
        return self.in_channels == 9


def checkpoint_facts(header: CheckpointHeader) -> CheckpointFacts:
    """Recognise a checkpoint. ModelError: it is none, or of a kind that cannot be used."""
    shapes = denoiser_shapes(header)
    _refuse_other_kinds(header, shapes)
    family = _family(header, shapes)
    prediction, told_by = _prediction(header, family)
    in_channels = shapes[_CONV_IN][1] if len(shapes[_CONV_IN]) > 1 else 0
    if family != "starter" and in_channels not in (4, 9):
        raise ModelError(
            "the denoiser in {file} reads {count} channels; those of text-to-image models (4) and "
            "of inpainting models (9) can be used",
            file=header.file, count=in_channels,
        )  # fmt: skip
    return CheckpointFacts(
        family, prediction, told_by,
        zero_terminal_snr="ztsnr" in header or _says_zero_terminal_snr(header),
        in_channels=in_channels, components=_components(header, family),
        dtype=number_format(header), has_ema=any(name.startswith(EMA) for name in header.shapes),
        few_steps=bool(_FEW_STEPS.search(_name(header))),
    )  # fmt: skip


def with_name_and_metadata(facts: CheckpointFacts, header: CheckpointHeader) -> CheckpointFacts:
    """Return the facts of another file with the same tensors, as its own name and metadata tell
    them."""
    prediction, told_by = _prediction(header, facts.family)
    return replace(
        facts, prediction=prediction, told_by=told_by,
        zero_terminal_snr="ztsnr" in header or _says_zero_terminal_snr(header),
        few_steps=bool(_FEW_STEPS.search(_name(header))),
    )  # fmt: skip


def denoiser_shapes(header: CheckpointHeader) -> dict[str, Shape]:
    """Return the denoiser's shapes by name without prefix; files of a denoiser alone have none."""
    shapes = {
        name.removeprefix(DENOISER): shape
        for name, shape in header.shapes.items()
        if name.startswith(DENOISER)
    }
    if shapes:
        return shapes
    return dict(header.shapes) if _CONV_IN in header else {}


def without_prefix(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    """Return the entries below a prefix, without it."""
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


# name in the file -> why it cannot be used
_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    ("edm_mean", "is a Playground 2.5 model, whose noise schedule (EDM) is not supported"),
    ("edm_vpred.sigma_max", "predicts v on an EDM noise schedule (CosXL), which is not supported"),
    (
        DENOISER + "time_embed.cond_proj.weight",
        "has its guidance distilled into it (LCM); such models are not supported",
    ),
)


def _refuse_other_kinds(header: CheckpointHeader, shapes: Mapping[str, Shape]) -> None:
    for name, why in _OTHER_KINDS:
        if name in header:
            raise ModelError("{file} {why}", file=header.file, why=why)
    if any("lora_" in name for name in header.shapes) and not shapes:
        raise ModelError("{file} is a LoRA, not a base model; put it into loras/", file=header.file)
    if "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight" in header:
        raise ModelError(
            "{file} is the refiner of Stable Diffusion XL, a second model for the last steps; it "
            "is not supported. Take the base model",
            file=header.file,
        )
    if shapes:
        return
    if any(name.startswith(("encoder.", VAE)) for name in header.shapes):
        raise ModelError(
            "{file} holds a VAE and no denoiser; name it as the VAE, beside a model",
            file=header.file,
        )
    if kind := header.metadata.get("general.architecture", ""):  # a GGUF file says it
        raise ModelError(
            "{file} is a model of the architecture {kind!r}; GGUF files of Stable Diffusion 1, 2 "
            "and XL with the names of its first code can be used",
            file=header.file, kind=kind[:40],
        )  # fmt: skip
    raise ModelError(
        "{file} is not a checkpoint of Stable Diffusion 1, 2 or XL: its tensors are named as in "
        "{key!r}",
        file=header.file, key=min(header.shapes)[:80],
    )  # fmt: skip


def _family(header: CheckpointHeader, shapes: Mapping[str, Shape]) -> str:
    widths = Counter(s[1] for n, s in shapes.items() if _CROSS.fullmatch(n) and len(s) == 2)
    for width, _ in widths.most_common():
        if width in _WIDTHS:
            return _WIDTHS[width]
    raise ModelError(
        "the denoiser in {file} reads texts of width {width}; those of Stable Diffusion 1 (768), 2 "
        "(1024) and XL (2048) are known",
        file=header.file, width=", ".join(map(str, widths)) or "none",
    )  # fmt: skip


def _prediction(
    header: CheckpointHeader, family: str
) -> tuple[Literal["epsilon", "v_prediction"], Source]:
    if "v_pred" in header:
        return "v_prediction", "file"
    word = header.metadata.get("modelspec.prediction_type", "").lower()
    if word in ("v", "v_prediction", "v-prediction"):
        return "v_prediction", "file"
    if word in ("epsilon", "eps"):
        return "epsilon", "file"
    if _V_WORDS.search(_name(header)):
        return "v_prediction", "name"
    return ("v_prediction" if family == "sd2" else "epsilon"), "family"


def _says_zero_terminal_snr(header: CheckpointHeader) -> bool:
    return header.metadata.get("ss_zero_terminal_snr", "").lower() in ("true", "1")


def _name(header: CheckpointHeader) -> str:
    return f"{header.file.stem} {header.metadata.get('modelspec.title', '')}"


def _components(header: CheckpointHeader, family: str) -> frozenset[str]:
    prefixes = {"unet": "", "vae": VAE, **TEXT_PREFIXES[family]}
    names = header.shapes.keys()
    return frozenset(
        part for part, prefix in prefixes.items() if any(name.startswith(prefix) for name in names)
    )


def number_format(header: CheckpointHeader) -> str:
    """Return safetensors' word, or ggml's, for most of the numbers of a denoiser, in a checkpoint
    or alone."""
    prefix = DENOISER if any(name.startswith(DENOISER) for name in header.shapes) else ""
    counts = Counter(
        dtype for name, dtype in header.dtypes.items()
        if name.startswith(prefix) and len(header.shapes[name]) > 1
    )  # fmt: skip
    return counts.most_common(1)[0][0] if counts else "F32"
