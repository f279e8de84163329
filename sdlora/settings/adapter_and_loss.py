"""Settings of the adapter, its layers and learning rates, and of the loss.

They are parts of `TrainSettings`, in a file of their own because of their number.
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
from sdlora.settings.base import InvalidValue, Settings, accepted
from sdlora.settings.layer_groups import TEXT_ENCODER, TargetGroup, by_group, of_group

AdapterKind = Literal["lora", "dora", "rslora", "pissa", "loha", "lokr", "oft"]
DoraAxis = Literal["input", "output"]
Loss = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
Weighting = Literal["min_snr", "debiased", "flat"]
Density = Literal["uniform", "logit_normal"]
TWO_MATRICES: tuple[AdapterKind, ...] = ("lora", "dora", "rslora", "pissa")  # up · down
# Settings that a single group of layers can have, and the fields of older files for the same
_OF_A_GROUP = ("rank", "alpha", "learning_rate", "dropout")
_OWN_FIELD = {
    ("rank", "conv"): "conv_rank",
    ("learning_rate", TEXT_ENCODER): "text_encoder_learning_rate",
}


class AdapterSettings(Settings):
    """Settings of the adapter: its type, rank, layers and learning rates."""

    adapter: AdapterKind = Field(
        "lora",
        description="Adapter type; lora with conv among the targets is also called LoCon",
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
        description="Layers of the UNet to train; attention is self and cross attention with "
        "the projections around them",
    )
    train_unet: bool = Field(
        True, description="Train the UNet; without it, the text encoder alone is trained"
    )
    train_text_encoder: bool = Field(False, description="Train the text encoder as well")
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
        1.0,
        ge=1,
        le=100,
        description="LoRA+: learning rate of the up matrix, as a multiple of the down matrix's",
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
        0.0, ge=0, le=1000, description="Limit of the norm of a layer's change; 0: none"
    )

    @field_validator(*(f"group_{name}" for name in _OF_A_GROUP))
    @classmethod
    def _can_be_read(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        name = str(info.field_name)
        try:
            by_group(entries, _reader(cls, name.removeprefix("group_")))
        except InvalidValue as error:
            why = error.message
            raise InvalidValue("{setting}: {why}", setting=Setting(name), why=why) from None
        return entries

    @model_validator(mode="after")
    def _kind_can(self) -> Self:
        if self.lora_plus_ratio != 1 and self.adapter not in TWO_MATRICES:
            raise InvalidValue(
                "{setting} is for {kinds}; {adapter} has no upper matrix: leave it at 1",
                setting=Setting("lora_plus_ratio"), kinds=TWO_MATRICES, adapter=self.adapter,
            )  # fmt: skip
        if not (self.train_unet or self.train_text_encoder):
            raise InvalidValue(
                "nothing learns: turn {unet} or {text_encoder} on",
                unet=Setting("train_unet"), text_encoder=Setting("train_text_encoder"),
            )  # fmt: skip
        drops = self.dropout or any(self._group_values("dropout").values())
        if self.adapter == "oft" and (self.max_norm or drops):
            raise InvalidValue(
                "oft turns weights and adds nothing: set {dropout} and {max_norm} to 0",
                dropout=Setting("dropout"), max_norm=Setting("max_norm"),
            )  # fmt: skip
        if self.adapter == "pissa" and self.max_norm:
            raise InvalidValue(
                "{setting} is not for pissa, whose matrices begin large: leave it at 0",
                setting=Setting("max_norm"),
            )
        return self

    @model_validator(mode="after")
    def _record_axis(self) -> Self:
        # a record without it is from before there was a choice, see `from_record`
        if self.adapter == "dora":
            self.model_fields_set.add("dora_axis")
        return self

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return recorded values of a run or a LoRA with their meaning at the time: dora was per
        output before there was a choice."""
        before = {"dora_axis": "output"} if values.get("adapter") == "dora" else {}
        return {**before, **values}

    def of_group(self, name: str, group: str) -> Any:
        """Return `rank`, `learning_rate` or `dropout` of a group of layers."""
        general = getattr(self, _OWN_FIELD.get((name, group), name))
        return of_group(self._group_values(name), group, general)

    def scale(self, group: str) -> float:
        """Return alpha / rank of a group of layers: the general one, unless the group has its own
        alpha."""
        alpha = of_group(self._group_values("alpha"), group, None)
        return self.alpha / self.rank if alpha is None else alpha / self.of_group("rank", group)

    def _group_values(self, name: str) -> dict[str, Any]:
        return by_group(getattr(self, f"group_{name}"), _reader(type(self), name))


class ObjectiveSettings(Settings):
    """Settings of the loss: noise, timesteps and weighting."""

    loss: Loss = Field(
        "l2",
        description="Loss function: squared, absolute, or squared only where the error is small",
    )
    huber_threshold: float = Field(
        0.1, gt=0, le=10, description="Errors up to this size are squared by huber and smooth_l1"
    )
    huber_schedule: HuberSchedule = Field(
        "snr", description="Change of that size over the timesteps: none, exponential, by the SNR"
    )
    loss_weighting: Weighting = Field(
        "min_snr",
        description="Loss weight per timestep; min_snr and debiased even the noise levels out",
    )
    min_snr_gamma: float = Field(
        5.0, ge=0, le=100, description="Gamma of min_snr; 0: the same weight for all timesteps"
    )
    zero_terminal_snr: bool = Field(
        False,
        description="Zero terminal SNR: the last timestep is pure noise; for models that predict v",
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
        0.0,
        ge=0,
        le=1,
        description="Extra noise on the input that is not in the target; 0.1 is usual",
    )
    min_timestep: int = Field(0, ge=0, le=999, description="Lowest timestep to train, of 1000")
    max_timestep: int = Field(1000, ge=1, le=1000, description="Highest timestep to train, of 1000")
    timestep_density: Density = Field(
        "uniform", description="Which noise levels are trained more often: none, or those about "
        "the middle",
    )  # fmt: skip
    timestep_mean: float = Field(
        0.0, ge=-5, le=5, description="Middle of logit_normal: below 0 less noise, above 0 more"
    )
    timestep_spread: float = Field(1.0, gt=0, le=5, description="Width of logit_normal")
    timestep_shift: float = Field(
        1.0,
        ge=0.05,
        le=20,
        description="Above 1, noisier timesteps are trained more often; 3 is usual",
    )

    @model_validator(mode="after")
    def _levels_in_order(self) -> Self:
        if self.min_timestep >= self.max_timestep:
            raise InvalidValue(
                "{low} = {min} must be below {high} = {max}",
                low=Setting("min_timestep"), min=self.min_timestep,
                high=Setting("max_timestep"), max=self.max_timestep,
            )  # fmt: skip
        return self


@lru_cache
def _reader(settings: type[AdapterSettings], name: str) -> Any:
    """Return a parser of text as a value of the field `name`, within its bounds. The parser raises
    ValueError."""
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
