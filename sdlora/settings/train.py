"""Settings of a training, each written once: its default, its bounds and its sentence.

Checks, command-line flags, the page's form and the docs are all read from these fields. An unknown
name is an error with a suggestion. What a goal and a model family want different from the defaults
stands in `preset_values/`; what the user set is never overridden.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora.messages import Setting
from sdlora.settings.adapter_and_loss import AdapterSettings, ObjectiveSettings
from sdlora.settings.base import InvalidValue, validated
from sdlora.settings.model import ModelSettings

MOST_STEPS = 200_000
Goal = Literal["style", "character", "object"]
Effort = Literal["fast", "balanced", "quality"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MemoryLevel = Literal["auto", "high", "medium", "low", "lowest"]
# Fields that a memory plan decides where the user has not
PLANNED = {"gradient_checkpointing", "optimizer", "base_precision", "stream_blocks"}
Schedule = Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial", "rex"]
MissingCaptions = Literal["folder", "trigger", "file_name", "leave_out", "refuse"]
CaptionLines = Literal["joined", "first", "random"]
Transparency = Literal["white", "black", "mask"]


class TrainSettings(ModelSettings, AdapterSettings, ObjectiveSettings):
    """A training, from a folder of captioned pictures to a LoRA file."""

    GROUPS = {
        "Basics": ("data", "name", "model", "goal", "effort", "trigger_word"),
        "Steps": ("steps", "epochs", "batch_size", "gradient_accumulation", "seed"),
        "Optimizer": (
            *("learning_rate", "text_encoder_learning_rate", "group_learning_rate"),
            *("lora_plus_ratio", "optimizer", "schedule", "schedule_cycles", "schedule_power"),
            *("warmup_steps", "weight_decay", "max_grad_norm", "ema_decay"),
        ),
        "Adapter": (
            *("adapter", "rank", "alpha", "conv_rank", "dropout", "targets"),
            *("train_unet", "train_text_encoder", "group_rank", "group_alpha", "group_dropout"),
            *("lokr_factor", "dora_axis", "max_norm"),
        ),
        "Loss and noise": (
            *("loss", "loss_weighting", "min_snr_gamma", "huber_threshold", "huber_schedule"),
            *("noise_offset", "multires_noise", "multires_discount", "input_perturbation"),
            *("zero_terminal_snr", "min_timestep", "max_timestep", "timestep_density"),
            *("timestep_mean", "timestep_spread", "timestep_shift"),
        ),
        "Pictures": (
            *("resolution", "upscale", "flip", "crop_jitter", "colour_jitter", "picture_variants"),
            *("more_data", "regularisation", "regularisation_weight"),
            *("transparency", "masks", "unmasked_weight", "cache_gib"),
        ),
        "Captions": (
            *("missing_captions", "caption_lines", "caption_prefix", "caption_suffix", "clip_skip"),
            *("caption_dropout", "shuffle_tags", "keep_tags", "tag_dropout"),
            *("caption_wildcards", "caption_variants"),
        ),
        "Samples": ("sample_every", "sample_every_epochs", "sample_prompts"),
        "Checkpoints": ("save_every", "save_every_epochs", "keep_checkpoints"),
        "Validation": (
            *("validate_every", "validate_every_epochs", "validation_share", "validation_data"),
            *("patience", "measure_drift", "drift_prompts"),
        ),
        "Model": ("prediction", "vae", "text_encoder", "base_precision", "stream_blocks"),
        "Machine": (
            *("memory", "precision", "gradient_checkpointing", "compile_blocks", "offload"),
        ),
    }
    data: str = Field(min_length=1, description="Folder or zip of captioned pictures to train on")
    name: str = Field(min_length=1, description="Name of the LoRA, and of its tag in prompts")
    goal: Goal = Field(
        "style",
        description="Subject of the pictures: style, character or object; selects the preset",
    )
    effort: Effort = Field(
        "balanced",
        description="Length of the preset: fast for a first look, quality for the best result",
    )
    trigger_word: str = Field(
        "",
        description="Trigger word: words that activate the LoRA in a prompt; empty: the words "
        "that all captions begin with",
    )
    steps: int = Field(1000, ge=1, le=MOST_STEPS, description="Optimizer steps")
    epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Epochs: passes through all pictures and their repeats, in place of steps; "
        "empty: train for the given steps",
    )
    batch_size: int = Field(2, ge=1, le=256, description="Pictures per step")
    gradient_accumulation: int = Field(
        1, ge=1, le=256, description="Batches whose gradients are added up for one optimizer step"
    )
    resolution: int | None = Field(
        None,
        ge=64,
        le=4096,
        description="Training resolution in pixels per side; empty: the model's own",
    )
    more_data: tuple[str, ...] = Field(
        (),
        max_length=32,
        title="More pictures",
        description="Additional folders or zips; 3*FOLDER repeats one three times",
    )
    regularisation: tuple[str, ...] = Field(
        (),
        max_length=32,
        title="Regularisation pictures",
        description="Folders of regularisation pictures: the same class without the subject, so "
        "that the model keeps it",
    )
    regularisation_weight: float = Field(
        1.0, ge=0, le=10, description="Weight of the loss on regularisation pictures"
    )
    masks: str = Field(
        "",
        description="Folder of loss masks with the names of their pictures; empty: "
        "NAME-masklabel.png beside each",
    )
    unmasked_weight: float = Field(
        0.0, ge=0, le=1, description="Weight of the loss where the mask is black"
    )
    transparency: Transparency = Field(
        "white", description="Transparent areas: filled white, filled black, or used as a loss mask"
    )
    missing_captions: MissingCaptions = Field(
        "folder",
        description="Pictures without a caption: use the words of a folder name such as "
        "10_zibo, the trigger word alone, or the file name; leave them out; or "
        "refuse to train",
    )
    caption_lines: CaptionLines = Field(
        "joined",
        title="Multi-line captions",
        description="Captions of several lines: joined, the first line, or a random line per step",
    )
    caption_prefix: str = Field("", description="Text before every caption")
    caption_suffix: str = Field("", description="Text after every caption")
    clip_skip: int = Field(
        1,
        ge=1,
        le=12,
        title="CLIP skip",
        description="CLIP skip: text encoder layer to use, counted from the last; 2 for models "
        "trained so",
    )
    caption_dropout: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of captions replaced by an empty one, so that classifier-free "
        "guidance keeps working",
    )
    shuffle_tags: bool = Field(
        False, description="Shuffle the comma-separated tags of a caption at every step"
    )
    keep_tags: int = Field(
        1, ge=0, le=100, description="Number of leading tags that are neither shuffled nor dropped"
    )
    tag_dropout: float = Field(
        0.0, ge=0, le=1, description="Probability that each other tag is dropped"
    )
    caption_wildcards: bool = Field(
        False,
        description="Wildcards in captions, as in prompts: of {a|b}, and of the lines of a list in "
        "wildcards/, one is drawn at every step",
    )
    caption_variants: int = Field(
        8,
        ge=0,
        le=1000,
        title="Cached variants per caption",
        description="Cached variants per caption that changes between steps; 0: a new one at "
        "every step, uncached",
    )
    upscale: bool = Field(
        False,
        title="Upscale small pictures",
        description="Upscale pictures that are smaller than the resolution",
    )
    flip: bool = Field(
        False,
        title="Random flip",
        description="Mirror pictures horizontally at random, half of the time",
    )
    crop_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Random crop",
        description="Random crop offset from the centre; 1: up to the edges",
    )
    colour_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Colour jitter",
        description="Strength of random changes of brightness, contrast and saturation",
    )
    picture_variants: int = Field(
        4,
        ge=1,
        le=64,
        title="Cached variants per picture",
        description="Cached variants per picture with random crops and colours",
    )
    cache_gib: float = Field(
        20.0,
        ge=0,
        le=10_000,
        title="Cache size (GiB)",
        description="Disk space in GiB for cached latents and prompt embeddings; 0: no cache",
    )
    optimizer: str = Field("adamw", description="Optimizer, such as adamw, lion or prodigy")
    schedule: Schedule = Field(
        "cosine",
        title="Learning rate scheduler",
        description="Learning rate scheduler: course of the learning rate over the steps",
    )
    schedule_cycles: int = Field(
        3, ge=1, le=1000, title="Scheduler cycles", description="Cycles of cosine_restarts"
    )
    schedule_power: float = Field(
        2.0, gt=0, le=10, title="Scheduler power", description="Power of the polynomial scheduler"
    )
    warmup_steps: float = Field(
        20,
        ge=0,
        le=10_000,
        description="Warmup steps of the learning rate; below 1, a share of all steps",
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Weight decay of the optimizer")
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        le=1000,
        title="Max gradient norm",
        description="Clip gradients to this norm; 0: no clipping",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        title="EMA decay",
        description="Decay of the exponential moving average of the weights, such as 0.99; 0: none",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Random seed; the same seed gives the same LoRA"
    )
    sample_every: int | None = Field(
        None,
        ge=0,
        le=100_000,
        title="Sample every N steps",
        description="Steps between sample images, the last step included; 0: none; empty: about "
        "four times in a run",
    )
    sample_every_epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        title="Sample every N epochs",
        description="Epochs between sample images, in place of steps",
    )
    sample_prompts: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Prompts of the sample images; empty: taken from the captions",
    )
    save_every: int | None = Field(
        None,
        ge=0,
        le=100_000,
        title="Save every N steps",
        description="Steps between checkpoints, the last step included; 0: only when the run "
        "ends early; empty: about eight times in a run, at least every 100 steps",
    )
    save_every_epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        title="Save every N epochs",
        description="Epochs between checkpoints, in place of steps",
    )
    keep_checkpoints: int = Field(
        3,
        ge=1,
        le=1000,
        title="Checkpoints to keep",
        description="Number of newest checkpoints to keep, in addition to the best",
    )
    validate_every: int | None = Field(
        None,
        ge=0,
        le=100_000,
        title="Validate every N steps",
        description="Steps between validations, the last step included; 0: none; empty: about "
        "eight times in a run",
    )
    validate_every_epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        title="Validate every N epochs",
        description="Epochs between validations, in place of steps",
    )
    validation_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        title="Validation split",
        description="Validation split: share of the pictures kept out of training to measure "
        "the validation loss",
    )
    validation_data: str = Field(
        "",
        title="Validation pictures",
        description="Folder of separate pictures for the validation loss, in place of a "
        "validation split",
    )
    patience: int = Field(
        0,
        ge=0,
        le=1000,
        title="Early stopping patience",
        description="Early stopping: end the run after so many validations without a new best; "
        "0: off",
    )
    measure_drift: bool = Field(
        True,
        description="With every validation, measure drift: the change of images with unrelated "
        "prompts against the base model",
    )
    drift_prompts: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Unrelated prompts for measuring drift; empty: three everyday ones, where "
        "there is a validation split",
    )
    memory: MemoryLevel = Field(
        "auto",
        description="Memory to use. high: all that is needed; medium: compute activations twice, "
        "AdamW in 8 bits; low: the base model in int8, too; lowest: its blocks streamed, too; "
        "auto: the first that fits. Settings beside it win",
    )
    precision: Precision = Field(
        "auto", description="Number format; auto: the best that the device supports"
    )
    gradient_checkpointing: bool = Field(
        False, description="Use much less memory for about a fifth of the speed"
    )
    compile_blocks: bool = Field(
        False,
        title="Compile UNet blocks",
        description="Compile the UNet's blocks with torch.compile: a slow start, then faster "
        "steps; on a GPU only",
    )
    offload: bool = Field(
        False,
        title="Offload activations",
        description="Keep activations in main memory (RAM): slow, for GPUs with little memory",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        from sdlora.file_names import checked_name

        return str(validated(checked_name, name))

    @model_validator(mode="before")
    @classmethod
    def _short_runs_warm_up_less(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "warmup_steps" in values:
            return values
        steps, warmup = values.get("steps"), cls.model_fields["warmup_steps"].default
        if not isinstance(steps, int) or steps >= warmup:
            return values
        return {**values, "warmup_steps": max(steps, 0)}

    @field_validator("warmup_steps")
    @classmethod
    def _share_or_whole_steps(cls, steps: float) -> float:
        if steps >= 1 and steps != int(steps):
            raise InvalidValue(
                "{setting} must be a whole number of steps, or a share of all below 1; {given:g} "
                "was given", setting=Setting("warmup_steps"), given=steps,
            )  # fmt: skip
        return steps

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.epochs is None and self.warmup_steps > self.steps:
            raise InvalidValue(
                "{warmup} = {few:g} is more than {steps} = {all}",
                warmup=Setting("warmup_steps"), few=self.warmup_steps,
                steps=Setting("steps"), all=self.steps,
            )  # fmt: skip
        return self

    @property
    def warmup(self) -> int:
        """Steps of the warm-up; a share of the steps is rounded, and all of them are the most."""
        share = self.warmup_steps < 1
        return min(round(self.warmup_steps * (self.steps if share else 1)), self.steps)
