"""Settings of what learns and what it is taught: the adapter, its layers and rates, and the loss.

Parts of `TrainSettings`; apart only because a page holds no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sdlora.messages import Setting
from sdlora.settings.adapter_choices import (
    ADAPTER_CHOICES,
    WITH_UP_MATRIX,
    AdapterChoice,
    AdapterName,
    DoraAxis,
)
from sdlora.settings.base import InvalidValue, Settings, accepted
from sdlora.settings.layer_groups import TEXT_ENCODER, TargetGroup, by_group, of_group

Loss = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
Weighting = Literal["min_snr", "debiased", "flat", "sigma_sqrt", "cosmap"]
Density = Literal["uniform", "logit_normal"]
# What single groups of layers can have of their own, and the fields of older files that say it
_OF_A_GROUP = ("rank", "alpha", "learning_rate", "dropout")
_OWN_FIELD = {
    ("rank", "conv"): "conv_rank",
    ("learning_rate", TEXT_ENCODER): "text_encoder_learning_rate",
}


class AdapterSettings(Settings):
    """Settings of the adapter: its type, size, layers and dropout."""

    adapter: AdapterName = Field(
        "lora",
        title="Adapter type",
        description="Adapter type; lora with conv among the targets is also called LoCon",
    )
    rank: int = Field(
        16, ge=1, le=1024, description="Rank (dimension) of the adapter; for oft, its block size"
    )
    alpha: float = Field(
        16,
        gt=0,
        le=4096,
        description="The adapter is scaled by alpha / rank; for rslora, by alpha / sqrt(rank)",
    )
    conv_rank: int = Field(
        8, ge=1, le=1024, description="Rank of the adapter on convolution layers"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout rate of the adapter's inputs; for loha and lokr, of its outputs",
    )
    targets: tuple[TargetGroup, ...] = Field(
        ("attention",),
        min_length=1,
        title="Target layers",
        description="UNet layers to train; attention is self and cross attention with their "
        "projections",
    )
    train_unet: bool = Field(
        True,
        title="Train the UNet",
        description="Train the UNet; without it, only the text encoder is trained",
    )
    train_text_encoder: bool = Field(
        False, title="Train the text encoder", description="Train the text encoder as well"
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Peak learning rate")
    text_encoder_learning_rate: float = Field(
        5e-5, gt=0, le=10, description="Peak learning rate of the text encoder"
    )
    group_rank: tuple[str, ...] = Field(
        (),
        title="Rank per layer group",
        description="Rank per layer group, such as cross_attention=8 conv=4",
    )
    group_alpha: tuple[str, ...] = Field(
        (),
        title="Alpha per layer group",
        description="Alpha per layer group; a group without one is scaled like the rest",
    )
    group_learning_rate: tuple[str, ...] = Field(
        (),
        title="Learning rate per layer group",
        description="Peak learning rate per layer group, such as self_attention=5e-5",
    )
    group_dropout: tuple[str, ...] = Field(
        (), title="Dropout per layer group", description="Dropout per layer group, such as conv=0.1"
    )
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        le=100,
        title="LoRA+ ratio",
        description="LoRA+: learning rate of the up matrix (B) as a multiple of the down "
        "matrix's (A)",
    )
    lokr_factor: int | None = Field(
        None,
        ge=2,
        le=1024,
        title="LoKr factor",
        description="LoKr factor: size of the smaller Kronecker block; empty: as close to "
        "square as possible",
    )
    dora_axis: DoraAxis = Field(
        "input",
        title="DoRA axis",
        description="DoRA: one magnitude per input, which every program with DoRA reads, or per "
        "output as in peft, which ComfyUI, Forge, A1111 and InvokeAI load wrongly",
    )
    max_norm: float = Field(
        0.0,
        ge=0,
        le=1000,
        title="Max weight norm",
        description="Scale down a layer's weight change to at most this norm; 0: no limit",
    )

    @field_validator(*(f"group_{name}" for name in _OF_A_GROUP))
    @classmethod
    def _can_be_read(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        name = str(info.field_name)
        try:
            by_group(texts, _reader(cls, name.removeprefix("group_")))
        except InvalidValue as error:
            why = error.message
            raise InvalidValue("{setting}: {why}", setting=Setting(name), why=why) from None
        return texts

    @model_validator(mode="after")
    def _kind_can(self) -> Self:
        if self.lora_plus_ratio != 1 and not self.adapter_choice.has_up_matrix:
            raise InvalidValue(
                "{setting} is for {kinds}; {adapter} has no upper matrix: leave it at 1",
                setting=Setting("lora_plus_ratio"), kinds=WITH_UP_MATRIX, adapter=self.adapter,
            )  # fmt: skip
        if not (self.train_unet or self.train_text_encoder):
            raise InvalidValue(
                "nothing learns: turn {unet} or {text_encoder} on",
                unet=Setting("train_unet"), text_encoder=Setting("train_text_encoder"),
            )  # fmt: skip
        if any(map(self._is_set, self.adapter_choice.unsupported)):
            why = self.adapter_choice.why_unsupported
            raise InvalidValue(why.template, **why.values)
        return self

    @model_validator(mode="after")
    def _record_axis(self) -> Self:
        # a record that lacks it is one of before there was a choice, see `from_record`
        self.model_fields_set.update(self.adapter_choice.before)
        return self

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values that a run or a LoRA was recorded with, completed with what a setting that they
        lack was before it existed: dora was per output."""
        choice = ADAPTER_CHOICES.get(str(values.get("adapter")))
        before = choice.before if choice else {}
        return {**before, **values}

    def _is_set(self, name: str) -> bool:
        """Return whether a setting is not 0, of all layers or of a group."""
        by_groups = self._group_values(name).values() if name in _OF_A_GROUP else ()
        return bool(getattr(self, name)) or any(by_groups)

    @property
    def adapter_choice(self) -> AdapterChoice:
        """The row of the adapter type."""
        return ADAPTER_CHOICES[self.adapter]

    def of_group(self, name: str, group: str) -> Any:
        """`rank`, `learning_rate` or `dropout` of a group of layers."""
        general = getattr(self, _OWN_FIELD.get((name, group), name))
        return of_group(self._group_values(name), group, general)

    def scale(self, group: str) -> float:
        """alpha / rank of a group of layers: of all, unless the group has an alpha of its own."""
        alpha = of_group(self._group_values("alpha"), group, None)
        return self.alpha / self.rank if alpha is None else alpha / self.of_group("rank", group)

    def _group_values(self, name: str) -> dict[str, Any]:
        return by_group(getattr(self, f"group_{name}"), _reader(type(self), name))


class ObjectiveSettings(Settings):
    """Settings of the loss: noise, timesteps and weighting."""

    loss: Loss = Field(
        "l2", description="Loss function: l2 (mean squared error), l1, huber or smooth_l1"
    )
    huber_threshold: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Huber threshold: smaller errors are squared, larger ones count linearly",
    )
    huber_schedule: HuberSchedule = Field(
        "snr",
        description="Change of the Huber threshold with the noise level: constant, exponential, "
        "or by the SNR",
    )
    loss_weighting: Weighting = Field(
        "min_snr",
        description="Weight of each noise level in the loss: min_snr (Min-SNR), debiased, or "
        "flat (all equal)",
    )
    min_snr_gamma: float = Field(
        5.0,
        ge=0,
        le=100,
        title="Min-SNR gamma",
        description="Min-SNR gamma; 5 is usual, 0 weighs all noise levels the same",
    )
    zero_terminal_snr: bool = Field(
        False,
        title="Zero terminal SNR",
        description="Rescale the noise schedule to zero terminal SNR; for v-prediction models",
    )
    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Noise offset: noise added per channel, for darker and brighter pictures",
    )
    multires_noise: int = Field(
        0,
        ge=0,
        le=10,
        title="Multires noise iterations",
        description="Multi-resolution noise: number of coarser noise layers added; 0: none",
    )
    multires_discount: float = Field(
        0.3,
        gt=0,
        le=1,
        title="Multires noise discount",
        description="Multi-resolution noise: strength of each layer relative to the one before",
    )
    input_perturbation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Input perturbation: extra noise on the model's input that the target "
        "leaves out; 0.1 is usual",
    )
    min_timestep: int = Field(0, ge=0, le=999, description="Lowest timestep to train, of 1000")
    max_timestep: int = Field(1000, ge=1, le=1000, description="Highest timestep to train, of 1000")
    timestep_density: Density = Field(
        "uniform",
        title="Timestep sampling",
        description="Distribution of the sampled timesteps: uniform, or logit_normal, which "
        "favours the middle",
    )
    timestep_mean: float = Field(
        0.0,
        ge=-5,
        le=5,
        description="Mean of logit_normal: below 0 favours less noise, above 0 more",
    )
    timestep_spread: float = Field(
        1.0,
        gt=0,
        le=5,
        title="Timestep standard deviation",
        description="Standard deviation of logit_normal",
    )
    timestep_shift: float = Field(
        1.0,
        ge=0.05,
        le=20,
        description="Timestep shift: above 1 favours noisier timesteps; 3 is usual",
    )

    @model_validator(mode="after")
    def _levels_in_order(self) -> Self:
        if self.min_timestep >= self.max_timestep:
            raise InvalidValue(
                "{least} = {min} must be below {most} = {max}",
                least=Setting("min_timestep"), min=self.min_timestep,
                most=Setting("max_timestep"), max=self.max_timestep,
            )  # fmt: skip
        return self


@lru_cache
def _reader(settings: type[AdapterSettings], name: str) -> Any:
    """Return a reader of text as a value of the field `name`. ValueError: out of bounds."""
    field = settings.model_fields[name]
    bounded: Any = Annotated[field.annotation, *field.metadata]
    adapter: TypeAdapter[Any] = TypeAdapter(bounded)

    def read(text: str) -> Any:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            why = accepted(error.errors()[0])
            raise InvalidValue("{text!r} {why}", text=text, why=why) from None

    return read
