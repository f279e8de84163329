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
Weighting = Literal["min_snr", "debiased", "flat"]
Density = Literal["uniform", "logit_normal"]
# What single groups of layers can have of their own, and the fields of older files that say it
_OF_A_GROUP = ("rank", "alpha", "learning_rate", "dropout")
_OWN_FIELD = {
    ("rank", "conv"): "conv_rank",
    ("learning_rate", TEXT_ENCODER): "text_encoder_learning_rate",
}


class AdapterSettings(Settings):
    """What learns."""

    adapter: AdapterName = Field(
        "lora",
        description="Kind of adapter; with conv among the targets lora is what others call LoCon",
    )
    rank: int = Field(
        16, ge=1, le=1024, description="Rank of the adapter: how much it can hold; of oft, the size"
        " of its blocks",
    )  # fmt: skip
    alpha: float = Field(
        16, gt=0, le=4096, description="Scale of the adapter is alpha / rank; of rslora, alpha / "
        "sqrt(rank)",
    )  # fmt: skip
    conv_rank: int = Field(8, ge=1, le=1024, description="Rank of the adapter on convolutions")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of adapter inputs dropped; of loha and lokr, of outputs"
    )
    targets: tuple[TargetGroup, ...] = Field(
        ("attention",),
        min_length=1,
        description="Layers of the UNet that learn; attention is self and cross attention and what "
        "stands around them",
    )
    train_unet: bool = Field(
        True, description="Let the UNet learn; without it, the text encoder alone does"
    )
    train_text_encoder: bool = Field(False, description="Let the text encoder learn as well")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Peak learning rate")
    text_encoder_learning_rate: float = Field(
        5e-5, gt=0, le=10, description="Peak learning rate of the text encoder's adapter"
    )
    group_rank: tuple[str, ...] = Field(
        (), description="Ranks of single groups of layers, such as cross_attention=8 conv=4"
    )
    group_alpha: tuple[str, ...] = Field(
        (), description="Alphas of single groups; without one a group's scale is that of all"
    )
    group_learning_rate: tuple[str, ...] = Field(
        (), description="Peak learning rates of single groups, such as self_attention=5e-5"
    )
    group_dropout: tuple[str, ...] = Field((), description="Dropout of single groups")
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=100, description="LoRA+: how many times faster the upper matrix learns"
    )
    lokr_factor: int | None = Field(
        None, ge=2, le=1024, description="Size of lokr's smaller half; empty: as even as can be"
    )
    dora_axis: DoraAxis = Field(
        "input",
        description="What dora has a magnitude for: each input, which every program with DoRA "
        "reads, or each output, as in peft, which ComfyUI, Forge, A1111 and InvokeAI misread",
    )
    max_norm: float = Field(
        0.0, ge=0, le=1000, description="No layer's change may become larger than this; 0: any size"
    )

    @field_validator(*(f"group_{name}" for name in _OF_A_GROUP))
    @classmethod
    def _can_be_read(cls, words: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        name = str(info.field_name)
        try:
            by_group(words, _reader(cls, name.removeprefix("group_")))
        except InvalidValue as error:
            why = error.message
            raise InvalidValue("{setting}: {why}", setting=Setting(name), why=why) from None
        return words

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
        by_groups = self._said(name).values() if name in _OF_A_GROUP else ()
        return bool(getattr(self, name)) or any(by_groups)

    @property
    def adapter_choice(self) -> AdapterChoice:
        """The row of the adapter type."""
        return ADAPTER_CHOICES[self.adapter]

    def of_group(self, name: str, group: str) -> Any:
        """`rank`, `learning_rate` or `dropout` of a group of layers."""
        general = getattr(self, _OWN_FIELD.get((name, group), name))
        return of_group(self._said(name), group, general)

    def scale(self, group: str) -> float:
        """alpha / rank of a group of layers: of all, unless the group has an alpha of its own."""
        alpha = of_group(self._said("alpha"), group, None)
        return self.alpha / self.rank if alpha is None else alpha / self.of_group("rank", group)

    def _said(self, name: str) -> dict[str, Any]:
        return by_group(getattr(self, f"group_{name}"), _reader(type(self), name))


class ObjectiveSettings(Settings):
    """What is taught: which noise, and what a wrong answer costs."""

    loss: Loss = Field(
        "l2", description="How an error counts: squared, plain, or squared only where it is small"
    )
    huber_threshold: float = Field(
        0.1, gt=0, le=10, description="Up to this size huber and smooth_l1 square an error"
    )
    huber_schedule: HuberSchedule = Field(
        "snr", description="How that size changes with the noise: not, exponentially, by the SNR"
    )
    loss_weighting: Weighting = Field(
        "min_snr", description="What noise levels count: min_snr and debiased even them out"
    )
    min_snr_gamma: float = Field(
        5.0, ge=0, le=100, description="Limit of min_snr; 0 weighs all the same"
    )
    zero_terminal_snr: bool = Field(
        False, description="Make the last noise level noise alone; for models that predict v"
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Noise of a whole channel, for darker and brighter pictures"
    )
    multires_noise: int = Field(
        0, ge=0, le=10, description="Coarser layers of noise added, for large shapes; 0: none"
    )
    multires_discount: float = Field(
        0.3, gt=0, le=1, description="Strength of each layer of noise by the one before it"
    )
    input_perturbation: float = Field(
        0.0, ge=0, le=1, description="Noise that the model is not told of; 0.1 is usual"
    )
    min_timestep: int = Field(0, ge=0, le=999, description="Least noise of 1000 levels")
    max_timestep: int = Field(1000, ge=1, le=1000, description="Most noise of 1000 levels")
    timestep_density: Density = Field(
        "uniform", description="Which noise levels are trained more often: none, or those about "
        "the middle",
    )  # fmt: skip
    timestep_mean: float = Field(
        0.0, ge=-5, le=5, description="Middle of logit_normal: below 0 less noise, above 0 more"
    )
    timestep_spread: float = Field(1.0, gt=0, le=5, description="Width of logit_normal")
    timestep_shift: float = Field(
        1.0, ge=0.05, le=20, description="Above 1 more noise is trained more often; 3 is usual"
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
    """What reads text as a value of the field `name`, within its bounds. ValueError."""
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
