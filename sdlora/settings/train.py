"""Settings of a training, each written once: its default, its bounds and its description.

Validation, command-line flags, the page's form and the docs are all made from these fields. An
unknown name is an error with a suggestion. Defaults of a goal and a model family are in
`preset_values/`; a value that the user set is never overridden.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdlora.messages import Setting
from sdlora.settings.adapter_and_loss import AdapterSettings, ObjectiveSettings
from sdlora.settings.base import InvalidValue, validated

MOST_STEPS = 200_000
Goal = Literal["style", "character", "object"]
Effort = Literal["fast", "balanced", "quality"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["constant", "linear", "cosine", "cosine_restarts", "polynomial", "rex"]
MissingCaptions = Literal["folder", "trigger", "file_name", "leave_out", "refuse"]
CaptionLines = Literal["joined", "first", "random"]
Transparency = Literal["white", "black", "mask"]


class TrainSettings(AdapterSettings, ObjectiveSettings):
    """A training, from a folder of captioned pictures to a LoRA file."""

    GROUPS = {
        "What to learn": ("data", "name", "model", "goal", "effort", "trigger_word"),
        "Steps": ("steps", "epochs", "batch_size", "gradient_accumulation", "seed"),
        "Learning": (
            *("learning_rate", "text_encoder_learning_rate", "group_learning_rate"),
            *("lora_plus_ratio", "optimizer", "schedule", "schedule_cycles", "schedule_power"),
            *("warmup_steps", "weight_decay", "max_grad_norm", "ema_decay"),
        ),
        "Adapter": (
            *("adapter", "rank", "alpha", "conv_rank", "dropout", "targets"),
            *("train_unet", "train_text_encoder", "group_rank", "group_alpha", "group_dropout"),
            *("lokr_factor", "dora_axis", "max_norm"),
        ),
        "Objective": (
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
        "Machine": ("precision", "gradient_checkpointing", "compile_blocks", "offload"),
    }
    data: str = Field(
        min_length=1, description="Folder or zip of pictures with captions to learn from"
    )
    name: str = Field(min_length=1, description="Name of the LoRA, and of its tag in prompts")
    model: str = Field("starter", description="Base model: starter, a name in models/, or a hub id")
    goal: Goal = Field("style", description="What the pictures have in common")
    effort: Effort = Field(
        "balanced",
        description="Length of the training: fast for a first look, quality for the best result",
    )
    trigger_word: str = Field(
        "", description="Trigger word of the LoRA in prompts; empty: what all captions begin with"
    )
    steps: int = Field(1000, ge=1, le=MOST_STEPS, description="Optimizer steps to take")
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="Times through all pictures and their repeats, in place"
        " of steps; empty: as many as the steps make",
    )  # fmt: skip
    batch_size: int = Field(2, ge=1, le=256, description="Pictures per step")
    gradient_accumulation: int = Field(
        1, ge=1, le=256, description="Batches added up per optimizer step"
    )
    resolution: int | None = Field(
        None, ge=64, le=4096, description="Pixels a side; empty: what the model was made for"
    )
    more_data: tuple[str, ...] = Field(
        (),
        max_length=32,
        description="Further folders or zips; 3*FOLDER counts thrice",
    )
    regularisation: tuple[str, ...] = Field(
        (),
        max_length=32,
        description="Folders of other pictures of the same kind, to keep the model as it was",
    )
    regularisation_weight: float = Field(
        1.0, ge=0, le=10, description="Weight of the loss on regularisation pictures"
    )
    masks: str = Field(
        "", description="Folder of masks, named as their pictures; empty: NAME-masklabel.png"
    )
    unmasked_weight: float = Field(
        0.0, ge=0, le=1, description="Weight of the loss where a mask is black"
    )
    transparency: Transparency = Field(
        "white", description="See-through parts: on white, on black, or a mask that hides them"
    )
    missing_captions: MissingCaptions = Field(
        "folder",
        description="Pictures without a caption: the words of a folder such as 10_zibo, the "
        "trigger word alone, the file's name, leave them out, or refuse to train",
    )
    caption_lines: CaptionLines = Field(
        "joined", description="Captions of several lines: joined, the first, or one drawn per step"
    )
    caption_prefix: str = Field("", description="Text before every caption")
    caption_suffix: str = Field("", description="Text after every caption")
    clip_skip: int = Field(
        1, ge=1, le=12, description="Layer of the text encoder that captions are read from, counted"
        " from the last; 2 for models that were made so",
    )  # fmt: skip
    caption_dropout: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of captions replaced by an empty one, for classifier-free guidance",
    )
    shuffle_tags: bool = Field(
        False, description="Shuffle what stands between commas in captions, anew in every step"
    )
    keep_tags: int = Field(
        1, ge=0, le=100, description="First tags that are neither shuffled nor left out"
    )
    tag_dropout: float = Field(0.0, ge=0, le=1, description="Share of the other tags left out")
    caption_wildcards: bool = Field(
        False,
        description="Draw one of {a|b} and, for __name__, a line of wildcards/name.txt in "
        "captions, anew in every step",
    )
    caption_variants: int = Field(
        8,
        ge=0,
        le=1000,
        description="Augmented texts cached per caption; 0: a new one in every step",
    )
    upscale: bool = Field(False, description="Scale small pictures up to the whole resolution")
    flip: bool = Field(False, description="Mirror half of the pictures, left to right")
    crop_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Random crop: how far it may move off the middle; 1: to the edges",
    )
    colour_jitter: float = Field(
        0.0, ge=0, le=1, description="How far brightness, contrast and colour may change"
    )
    picture_variants: int = Field(
        4, ge=1, le=64, description="Augmented crops and colours cached per picture"
    )
    cache_gib: float = Field(
        20.0, ge=0, le=10_000, description="Disk space for encoded pictures and captions; 0: none"
    )
    optimizer: str = Field("adamw", description="Optimizer, such as adamw, lion or prodigy")
    schedule: Schedule = Field(
        "cosine", description="Learning-rate scheduler: the change of the rate over the steps"
    )
    schedule_cycles: int = Field(
        3, ge=1, le=1000, description="Times that cosine_restarts begins at the peak"
    )
    schedule_power: float = Field(2.0, gt=0, le=10, description="Power of the schedule polynomial")
    warmup_steps: float = Field(
        20, ge=0, le=10_000, description="Steps over which the rate rises; below 1, a share of all"
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Weight decay of the adapter")
    max_grad_norm: float = Field(
        1.0, ge=0, le=1000, description="Gradients are clipped to this norm; 0: never"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="EMA of the adapter's weights, such as 0.99; 0: none"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Same seed, same LoRA")
    sample_every: int | None = Field(
        None, ge=0, le=100_000, description="Steps between samples, the last step included; 0: "
        "none; empty: about four times in a run",
    )  # fmt: skip
    sample_every_epochs: int | None = Field(
        None, ge=1, le=100_000, description="Epochs between samples, in place of steps"
    )
    sample_prompts: tuple[str, ...] = Field(
        (), max_length=16, description="Prompts to sample with; empty: from the captions"
    )
    save_every: int | None = Field(
        None, ge=0, le=100_000, description="Steps between checkpoints, the last step included; 0: "
        "only when it ends early; empty: about eight times in a run, every 100 steps at least",
    )  # fmt: skip
    save_every_epochs: int | None = Field(
        None, ge=1, le=100_000, description="Epochs between checkpoints, in place of steps"
    )
    keep_checkpoints: int = Field(
        3, ge=1, le=1000, description="Newest checkpoints to keep, beside the best"
    )
    validate_every: int | None = Field(
        None, ge=0, le=100_000, description="Steps between validations, the last step included; 0: "
        "none; empty: about eight times in a run",
    )  # fmt: skip
    validate_every_epochs: int | None = Field(
        None, ge=1, le=100_000, description="Epochs between validations, in place of steps"
    )
    validation_share: float = Field(
        0.0, ge=0, le=0.5, description="Validation split: share of the pictures that are held out"
    )
    validation_data: str = Field(
        "", description="Folder of further pictures to validate with, in place of a share"
    )
    patience: int = Field(
        0,
        ge=0,
        le=1000,
        description="Early stopping: validations without a new best loss to end after; 0: never",
    )
    measure_drift: bool = Field(
        True,
        description="Measure with every validation how far pictures of other things move from "
        "what the base model makes of them",
    )
    drift_prompts: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Prompts of such other things; empty: three everyday ones, where pictures are "
        "held out",
    )
    precision: Precision = Field("auto", description="Number format; auto fits the device")
    gradient_checkpointing: bool = Field(
        False, description="Trade a fifth of the speed for much less memory"
    )
    compile_blocks: bool = Field(
        False, description="Compile the UNet's blocks: a slow start, then faster steps on a GPU"
    )
    offload: bool = Field(
        False, description="Keep activations in main memory: slow, for small GPUs"
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
        """Number of warm-up steps; a share is of all steps, rounded."""
        share = self.warmup_steps < 1
        return min(round(self.warmup_steps * (self.steps if share else 1)), self.steps)
