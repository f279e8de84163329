"""From a picture to the request that makes it again, and what of it is not here; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.errors import LoraFileError, SettingsError
from sdlora.lora.library import Library, LoraEntry
from sdlora.prompt.infotext import hashed_name
from sdlora.prompt.recall import rename_loras
from sdlora.prompt.recalled import Recalled, read_hashes
from sdlora.prompt.samplers import FROM_NOISE, NOISE_SCHEDULE, sampler_of
from sdlora.prompt.tags import as_read_before, parse_prompt
from sdlora.prompt.wordbook import Wordbook
from sdlora.settings import ImageRequest
from sdlora.workspace import Workspace

# A1111's field -> our setting, where the value is the same
_SAME = {
    "Steps": "steps",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Clip skip": "clip_skip",
    "Hires upscale": "hires_scale",
    "Hires steps": "hires_steps",
}
# What changes nothing here, or is read elsewhere
_KNOWN = {
    *("Sampler", "Schedule type", "Size", "Denoising strength", "Hires upscaler", "Emphasis"),
    *("Model", "Model hash", "Lora hashes", "TI hashes", "Version", "User", "VAE hash", "RNG"),
    *(NOISE_SCHEDULE, "Civitai resources", "Civitai metadata", "Created Date"),
}
_EMPHASIS = {"Original": "original", "No norm": "no_norm"}


def request_of(
    recalled: Recalled, library: Library, workspace: Workspace
) -> tuple[dict[str, Any], list[str]]:
    """(values, problems): an ImageRequest's values that make the picture again, as far as it says,
    and a sentence for each thing that is missing or cannot be taken over.

    Values hold only what the picture says: the rest stays as it is set. A LoRA of another name
    here is found by its hash, and its tags are renamed. Never raises, whatever the picture says.
    """
    problems: list[str] = []
    said = recalled.details.get("request")
    if isinstance(said, dict):
        values = _own(said, recalled.details, workspace, problems)
    else:
        values = _foreign(recalled, problems)
    values = _accepted(values, problems)
    _check_model(values, workspace, problems)
    renames = _renames(recalled.lora_hashes, library, problems)
    for name in ("prompt", "negative_prompt"):
        if name in values:
            text = rename_loras(values[name], recalled.lora_hashes, renames.get)
            values[name] = text
            _check_tags(text, recalled.lora_hashes, library, problems)
    known = Wordbook.of(workspace).embedding_names()
    for name, its_hash in read_hashes(recalled.fields.get("TI hashes", "")).items():
        if name.lower() not in known:
            problems.append(f"the textual inversion {name[:80]!r} (hash {its_hash}) is not here")
    return values, problems


def _own(
    said: dict[str, Any], details: Mapping[str, Any], workspace: Workspace, problems: list[str]
) -> dict[str, Any]:
    """The request of a picture of ours, for this one image of it."""
    image = details.get("image")
    image = image if isinstance(image, dict) else {}
    values = {**said, "count": 1}
    if "seed" in image:
        values["seed"] = image["seed"]
    drawn = {name: image.get(name) for name in ("prompt", "negative_prompt")}
    fresh = _accepted(values, [])
    if all(isinstance(text, str) for text in drawn.values()) and "seed" in fresh:
        texts = Wordbook.of(workspace).expand(
            fresh.get("prompt", ""), fresh.get("negative_prompt", ""), fresh["seed"],
            fresh.get("styles", ()),
        )  # fmt: skip
        if [text.text for text in texts] != list(drawn.values()):
            problems.append("styles or wildcards are others here; the prompts are as drawn then")
            values = {**values, **drawn, "styles": ()}
    # pictures have told their rules since there are second ones
    return values if "prompt_rules" in details else _by_todays_rules(values)


def _by_todays_rules(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a picture made by the first rules of prompts, so that it has the same words."""
    texts = {name: values.get(name) for name in ("prompt", "negative_prompt")}
    same = {name: as_read_before(text) for name, text in texts.items() if isinstance(text, str)}
    return values | same


def _foreign(recalled: Recalled, problems: list[str]) -> dict[str, Any]:
    """The values of another program's fields, still unchecked."""
    fields = recalled.fields
    values: dict[str, Any] = {"prompt": recalled.prompt, "negative_prompt": recalled.negative}
    values |= {setting: fields[name] for name, setting in _SAME.items() if name in fields}
    if fields:
        values["count"] = 1
    if sampler := fields.get("Sampler"):
        setting, told = sampler_of(sampler, fields.get("Schedule type", ""), recalled.program)
        values |= {"sampler": setting} if setting else {}
        problems += [told] if told else []
    width, cross, height = fields.get("Size", "").partition("x")
    values |= {"width": width, "height": height} if cross else {}
    values |= {"model": fields["Model"]} if fields.get("Model") else {}
    if fields.get(NOISE_SCHEDULE) == FROM_NOISE:
        values["zero_terminal_snr"] = True
    if "Hires upscale" in fields:
        values |= _hires(fields, problems)
    elif "Denoising strength" in fields:
        problems.append("it was made from another picture, which it does not hold")
    if emphasis := fields.get("Emphasis"):
        values |= {"emphasis": _EMPHASIS[emphasis]} if emphasis in _EMPHASIS else {}
        problems += [f"emphasis {emphasis[:80]!r} is not known here"] * (emphasis not in _EMPHASIS)
    lost = [f"{k}: {v}"[:80] for k, v in fields.items() if k not in _KNOWN and k not in _SAME]
    problems += [f"not taken over: {', '.join(lost)}"] if lost else []
    return values


def _hires(fields: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    upscaler = fields.get("Hires upscaler", "Latent")
    is_latent = upscaler.startswith("Latent")
    if not is_latent and upscaler != "Lanczos":
        problems.append(f"the upscaler {upscaler[:80]!r} is not known here; Lanczos is taken")
    values: dict[str, Any] = {"hires_upscaler": "latent" if is_latent else "lanczos"}
    if "Denoising strength" in fields:
        values["hires_strength"] = fields["Denoising strength"]
    return values


def _accepted(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The values that the settings accept, in their types; a sentence for each of the others."""
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            accepted[name] = getattr(ImageRequest.of({name: value}), name)
        except SettingsError as error:
            problems.append(f"not taken over: {str(error)[:300]}")
    return accepted


def _check_model(values: dict[str, Any], workspace: Workspace, problems: list[str]) -> None:
    """A picture never chooses what is downloaded or opened: only a model that is on offer here."""
    model = values.pop("model", "")
    if model in workspace.model_names():
        values["model"] = model
    elif model:
        problems.append(f"the model {model[:80]!r} is not here; another one makes another picture")


def _renames(hashes: Mapping[str, str], library: Library, problems: list[str]) -> dict[str, str]:
    """Hash -> name here, of the LoRAs that their names do not find."""
    renames: dict[str, str] = {}
    for name, its_hash in hashes.items():
        entry = _found(name, library)
        if entry and _is(entry, its_hash, library):
            continue
        if by_hash := _found(its_hash, library):
            renames[its_hash] = by_hash.full_name
        elif entry:
            problems.append(f"{name[:80]!r} is another file here: its hash was {its_hash[:80]}")
    return renames


def _is(entry: LoraEntry, its_hash: str, library: Library) -> bool:
    try:
        return library.hashes(entry).fit(its_hash.lower())
    except LoraFileError:  # it may be gone by now
        return False


def _check_tags(
    text: str, hashes: Mapping[str, str], library: Library, problems: list[str]
) -> None:
    for name in dict.fromkeys(tag.name for tag in parse_prompt(text).loras):
        try:
            library.find(name)
        except LoraFileError as error:
            its_hash = hashes.get(hashed_name(name))
            problems.append(f"{error}" + (f" Its hash is {its_hash[:80]}." if its_hash else ""))


def _found(name: str, library: Library) -> LoraEntry | None:
    try:
        return library.find(name)
    except LoraFileError:
        return None
