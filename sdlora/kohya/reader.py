"""Reader of kohya's files as our settings, with a note on each setting not followed."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from sdlora.errors import SettingsError, did_you_mean
from sdlora.file_names import checked_name
from sdlora.kohya import gui
from sdlora.kohya.datasets import read_datasets
from sdlora.kohya.keys import ALWAYS, INSTEAD, KEYS, OURS, READ_TOGETHER
from sdlora.kohya.network import read_network
from sdlora.kohya.values import flag, number, text, word_list
from sdlora.messages import Message
from sdlora.settings.adapter_choices import ADAPTER_CHOICES
from sdlora.settings.train import TrainSettings

DEFAULT_RATE = 2e-6  # sd-scripts' learning_rate when no rate is given at all


@dataclass
class Imported:
    """Settings read from a file, and notes on keys that are not followed."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[Message] = field(default_factory=list)

    def note(self, template: str, **values: Any) -> None:
        """Add a note."""
        self.notes.append(Message(template, **values))


def read(path: Path) -> tuple[dict[str, Any], list[Message]]:
    """Read our settings from a TOML or JSON file of kohya's. SettingsError when it cannot be
    read."""
    tables = _load_file(path)
    result = Imported()
    if gui.is_preset(tables):
        flat = gui.to_sd_scripts(tables)
        datasets = read_datasets({})
    else:
        datasets = read_datasets({name: tables.get(name) for name in ("general", "datasets")})
        flat = _flatten_tables(tables) | datasets.flat
    if config := flat.get("dataset_config"):
        try:
            datasets = read_datasets(_load_file(_find_named_file(path, str(config))))
        except SettingsError as error:
            result.note("dataset_config is not used: {why}", why=error.message)
        flat |= datasets.flat
    result.notes += datasets.notes
    if flat.get("network_alpha") in (0, "0"):  # networks/lora.py: 0 means the rank
        flat["network_alpha"] = flat.get("network_dim") or KEYS["network_dim"].missing
    _read_keys(flat, result)
    result.values |= datasets.values
    _read_together(flat, result, path)
    result.notes += read_network(flat, result.values)
    _make_valid(result)
    notes = [Message("{file}: {note}", file=path.name, note=note) for note in result.notes]
    return result.values, notes


def _load_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes().decode("utf-8-sig")
        tables = json.loads(content) if path.suffix.lower() == ".json" else tomllib.loads(content)
    except FileNotFoundError:
        raise SettingsError("there is no file {file}", file=path) from None
    except (OSError, ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        message = "{file} cannot be read as {kind}: {why}"
        raise SettingsError(message, file=path, kind=kind, why=error) from None
    if not isinstance(tables, dict):
        raise SettingsError("{file} holds no settings, but a {kind}", file=path,
                            kind=type(tables).__name__)  # fmt: skip
    return tables


def _find_named_file(path: Path, named: str) -> Path:
    """Return the file that another file names: at its path, or in the other's folder."""
    own = Path(named).expanduser()
    return own if os.path.exists(own) else path.parent / own.name  # no error for a long name


def _flatten_tables(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of all tables in one, as sd-scripts reads them."""
    inner = {name: value for name, value in tables.items() if isinstance(value, dict)}
    apart = {"general", "datasets"}
    flat = {k: v for name, table in inner.items() if name not in apart for k, v in table.items()}
    return flat | {k: v for k, v in tables.items() if k not in inner and k not in apart}


def _read_keys(flat: dict[str, Any], result: Imported) -> None:
    """Read each key: used, always true here, done differently, or unknown."""
    always = {key: why for why, keys in ALWAYS.items() for key in keys}
    met: dict[str, list[str]] = {}
    for key, value in flat.items():
        if key in KEYS:
            _read_key(key, value, result)
        elif key in always:
            met.setdefault(always[key], []).append(key)
        elif key in INSTEAD:
            if value not in (False, None, "", 0, []):
                message = "{key} = {value} is not done: {instead}"
                result.note(message, key=key, value=_quoted_value(value), instead=INSTEAD[key])
        elif key not in READ_TOGETHER:
            near = did_you_mean(key, KEYS)
            message = "{key} = {value} is not known here and not used.{near}"
            result.note(message, key=key, value=_quoted_value(value), near=near)
    for why, keys in met.items():
        result.note("{keys}: {why}", keys=keys, why=why)
    result.values = {**_sd_scripts_defaults(), **result.values}
    if "epochs" in result.values:  # they win over steps (train_network.py)
        result.values.pop("steps")


def _sd_scripts_defaults() -> dict[str, Any]:
    """Return sd-scripts' defaults, as our settings, where they affect the LoRA."""
    return {row.ours: row.missing for row in KEYS.values() if row.missing is not OURS}


def _read_key(key: str, value: Any, result: Imported) -> None:
    row = KEYS[key]
    if value is None or value == "":
        return
    try:
        ours = _setting_validator(row.ours).validate_python(row.read(value))
        result.values[row.ours] = checked_name(ours) if row.ours == "name" else ours
    except ValidationError as error:
        why = error.errors()[0]["msg"]
        result.note(_NOT_USED, key=key, value=_quoted_value(value), why=why)
    except (ValueError, TypeError, SettingsError, OverflowError) as error:
        result.note(_NOT_USED, key=key, value=_quoted_value(value), why=error)


_NOT_USED = "{key} = {value} is not used: {why}"


@lru_cache
def _setting_validator(name: str) -> TypeAdapter[Any]:
    """Return the validator of a setting's type and bounds."""
    info = TrainSettings.model_fields[name]
    bounded: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(bounded)


def _read_together(flat: dict[str, Any], result: Imported, path: Path) -> None:
    """Read the settings that several keys determine together."""
    _read_rates(flat, result)
    _read_loss(flat, result)
    _read_pictures(flat, result)
    _read_optimizer(flat, result)
    _read_prompts(flat, result, path)
    values = result.values
    if values.get("schedule") == "constant" and flat.get("lr_scheduler") != "constant_with_warmup":
        if values["warmup_steps"]:
            result.note("lr_warmup_steps is not used: lr_scheduler = 'constant' has no warm-up")
        values["warmup_steps"] = 0.0


def _number_in(flat: dict[str, Any], key: str, result: Imported) -> float | None:
    value = flat.get(key)
    if isinstance(value, list) and value:
        if any(other != value[0] for other in value):
            message = "{key} = {value}: all text encoders learn at the first rate"
            result.note(message, key=key, value=_quoted_value(value))
        value = value[0]
    if value in (None, "", []):
        return None
    try:
        return number(value)
    except (ValueError, TypeError, OverflowError) as error:
        result.note(_NOT_USED, key=key, value=_quoted_value(value), why=error)
        return None


def _flag_in(flat: dict[str, Any], key: str, result: Imported) -> bool:
    value = flat.get(key)
    if value in (None, "", []):
        return False
    try:
        return flag(value)
    except ValueError as error:
        result.note(_NOT_USED, key=key, value=_quoted_value(value), why=error)
        return False


def _read_rates(flat: dict[str, Any], result: Imported) -> None:
    """Read the learning rates of UNet and text encoder: their own, else the common one. A part
    whose rate is 0 is not trained."""
    common = _number_in(flat, "learning_rate", result)
    common = DEFAULT_RATE if common is None else common
    unet, texts = (_number_in(flat, key, result) for key in ("unet_lr", "text_encoder_lr"))
    rates = {
        "learning_rate": common if unet is None else unet,
        "text_encoder_learning_rate": common if texts is None else texts,
    }
    values = result.values
    values["train_unet"] = not _flag_in(flat, "network_train_text_encoder_only", result)
    values["train_text_encoder"] = not _flag_in(flat, "network_train_unet_only", result)
    for name, part in zip(rates, ("train_unet", "train_text_encoder"), strict=True):
        if 0 < rates[name] <= 10:
            values[name] = rates[name]
        else:
            values[part] = False
            if rates[name]:
                key = {"train_unet": "unet_lr", "train_text_encoder": "text_encoder_lr"}[part]
                message = "{key} = {rate:g} is no learning rate: above 0, at most 10"
                result.note(message, key=key, rate=rates[name])
    if not (values["train_unet"] or values["train_text_encoder"]):
        values["train_unet"] = True
        result.note("nothing would learn: the UNet does, at our own rate")


def _read_loss(flat: dict[str, Any], result: Imported) -> None:
    """Read the loss weighting: min-SNR, debiased, or constant, which is sd-scripts' default."""
    gamma = _number_in(flat, "min_snr_gamma", result)
    debiased = _flag_in(flat, "debiased_estimation_loss", result)
    result.values["loss_weighting"] = "debiased" if debiased else "min_snr" if gamma else "flat"
    if gamma and 0 < gamma <= 100:
        result.values["min_snr_gamma"] = gamma
    if gamma and debiased:
        result.note("min_snr_gamma is not used beside debiased_estimation_loss")


def _read_pictures(flat: dict[str, Any], result: Imported) -> None:
    values = result.values
    values["upscale"] = not _flag_in(flat, "bucket_no_upscale", result)
    if not _flag_in(flat, "enable_bucket", result):
        result.note("enable_bucket is off or left out: pictures keep their shape all the same")
    if folder := flat.get("reg_data_dir"):
        values.setdefault("regularisation", [str(folder)])
    if _flag_in(flat, "color_aug", result):
        values["colour_jitter"] = 0.1
        result.note("color_aug is colour_jitter = 0.1 here")
    if _flag_in(flat, "random_crop", result):
        values["crop_jitter"] = 1.0
        result.note("random_crop is crop_jitter = 1 here")
    if _flag_in(flat, "alpha_mask", result):
        values["transparency"] = "mask"
    masks = flat.get("conditioning_data_dir")
    if isinstance(masks, str) and masks and _flag_in(flat, "masked_loss", result):
        values["masks"] = masks


def _read_optimizer(flat: dict[str, Any], result: Imported) -> None:
    """Read the optimizer from its old flags too, and the weight decay from its arguments."""
    for key, name in (("use_8bit_adam", "adamw8bit"), ("use_lion_optimizer", "lion")):
        if _flag_in(flat, key, result):
            result.values["optimizer"] = name
    try:
        arguments = word_list(flat.get("optimizer_args") or [])
    except (ValueError, TypeError) as error:
        value = _quoted_value(flat["optimizer_args"])
        result.note(_NOT_USED, key="optimizer_args", value=value, why=error)
        return
    for argument in arguments:
        key, _, value = argument.partition("=")
        try:
            if key.strip() != "weight_decay":
                raise ValueError("the optimizer runs with its own")
            result.values["weight_decay"] = _setting_validator("weight_decay").validate_python(
                number(value)
            )
        except ValueError as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            result.note("optimizer_args {argument!r} is not used: {why}", argument=argument,
                        why=why)  # fmt: skip


def _read_prompts(flat: dict[str, Any], result: Imported, path: Path) -> None:
    """Read the prompts of the file that sample_prompts names, without their options."""
    named = flat.get("sample_prompts")
    if not named:
        return
    try:
        lines = _find_named_file(path, text(named)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError, TypeError) as error:
        result.note(_NOT_USED, key="sample_prompts", value=_quoted_value(named), why=error)
        return
    given = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    prompts = [line.partition(" --")[0].strip() for line in given]
    result.values["sample_prompts"] = [prompt for prompt in prompts if prompt][:16]
    if any(" --" in line for line in given):
        result.note("options after -- in sample_prompts are not used: samples are made as usual")
    if len(prompts) > 16:
        result.note("of {count} sample_prompts the first 16 are used", count=len(prompts))


def _make_valid(result: Imported) -> None:
    """Correct combinations of settings that are each allowed but not together."""
    values = result.values
    if "steps" in values and values["warmup_steps"] > values["steps"]:
        result.note("lr_warmup_steps is more than all steps: it is all of them")
        values["warmup_steps"] = float(values["steps"])
    if values["min_timestep"] >= values["max_timestep"]:
        result.note("min_timestep is not below max_timestep: all noise levels are learnt")
        values["min_timestep"], values["max_timestep"] = 0, 1000
    choice = ADAPTER_CHOICES[values["adapter"]]
    if any(values[name] for name in choice.unsupported):
        result.note(
            "network_dropout and scale_weight_norms are not used: {adapter} adds nothing",
            adapter=values["adapter"],
        )
        values |= dict.fromkeys(choice.unsupported, 0.0)
    if not choice.has_up_matrix and values.pop("lora_plus_ratio", 1) != 1:
        result.note("LoRA+ is not used: {adapter} has no upper matrix", adapter=values["adapter"])
    for name in ("rank", "alpha", "conv_rank", "lora_plus_ratio", "lokr_factor", "dropout",
                 "group_alpha"):  # fmt: skip
        if name not in values:
            continue
        try:
            values[name] = _setting_validator(name).validate_python(values[name])
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            result.note(_NOT_USED, key=name, value=_quoted_value(values.pop(name)), why=why)


def _quoted_value(value: Any) -> str:
    return repr(value)[:80]
