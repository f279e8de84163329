"""Image request from a picture's metadata, with messages about missing parts; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdlora.assets.checkpoints import STARTER, CheckpointLibrary
from sdlora.errors import LoraFileError, SettingsError
from sdlora.image_metadata.a1111 import ImageMetadata, read_json
from sdlora.image_metadata.civitai import civitai_resources
from sdlora.image_metadata.infotext import hashed_name
from sdlora.image_metadata.other_programs import file_stem
from sdlora.image_metadata.reader import rename_loras
from sdlora.image_metadata.sampler_names import FROM_NOISE, NOISE_SCHEDULE, sampler_of
from sdlora.lora.format.hashes import is_hash
from sdlora.lora.library.library import Library, LoraEntry
from sdlora.messages import Message
from sdlora.model_files import model_called, readable_names
from sdlora.prompt.resources import PromptResources
from sdlora.prompt.tags import from_rules_1, parse_prompt
from sdlora.settings.image_request import ImageRequest
from sdlora.upscalers.files import default_upscaler
from sdlora.workspace import Workspace

# A1111's field -> our setting, where the value is the same
_SAME_VALUE = {
    "Steps": "steps",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Clip skip": "clip_skip",
    "Hires upscale": "hires_scale",
    "Hires steps": "hires_steps",
}
# Fields without effect here, or read elsewhere
_KNOWN = {
    *("Sampler", "Schedule type", "Size", "Denoising strength", "Hires upscaler", "Emphasis"),
    *("Model", "Model hash", "Lora hashes", "TI hashes", "Version", "User", "VAE hash", "VAE"),
    *(NOISE_SCHEDULE, "Hires resize", "Civitai metadata", "Created Date"),
    *("Postprocess upscaler", "Postprocess upscale by"),
}
_OWN_VAE = ("Automatic", "None", "")  # A1111's words for the model's own
_SHORTENED = 80  # letters of a picture's text that are shown in a message
_SAME_RATIO = 0.02  # by which the sides of a second pass may differ: A1111 rounds them
_EMPHASIS = {"Original": "original", "No norm": "no_norm"}
# Program -> its syntax for a textual inversion in a prompt; A1111 uses the bare name
_EMBEDDINGS = {
    "ComfyUI": re.compile(r"\bembedding:([\w./\\-]*\w)", re.IGNORECASE),
    "SwarmUI": re.compile(r"<embed(?:ding)?:([^<>]+)>", re.IGNORECASE),
    "InvokeAI": re.compile(r"<([\w.-]+)>"),
}


def request_of(
    recalled: ImageMetadata, library: Library, workspace: Workspace
) -> tuple[dict[str, Any], list[str]]:
    """Return (values, problems): an ImageRequest's values that make the picture again, and a
    message for each thing that is missing or cannot be taken over.

    Values are only those that the picture has; other settings stay. A LoRA that has another name
    here is found by its hash, and its tags are renamed. Never raises, whatever the metadata.
    """
    problems: list[str] = list(recalled.problems)
    request = recalled.details.get("request")
    if isinstance(request, dict):
        values = _own_request(request, recalled.details, workspace, problems)
    else:
        values = _values_of_fields(recalled, problems)
        values |= _upscaler(recalled, workspace, problems)
        problems += civitai_resources(recalled.fields.get("Civitai resources", ""), library)
    values = _accepted_values(values, problems)
    _check_model(values, recalled.fields.get("Model hash", ""), workspace, problems)
    _check_vae(values, workspace, problems)
    hashes = recalled.lora_hashes
    renames = _renames(hashes, library, problems)
    moved = {name: name for name in renames}
    for setting in ("prompt", "negative_prompt"):
        if setting in values:
            values[setting] = rename_loras(values[setting], moved, renames.get)
            _check_tags(values[setting], hashes, library, problems)
    _check_embeddings(recalled, values, workspace, problems)
    return values, problems


def _own_request(
    request: dict[str, Any], details: Mapping[str, Any], workspace: Workspace, problems: list[str]
) -> dict[str, Any]:
    """Return the request stored in one of our pictures, reduced to this image of the batch."""
    image = details.get("image")
    image = image if isinstance(image, dict) else {}
    # pictures of before there was an upscaler do not name one
    values = {"upscaler": "none", **request, "count": 1}
    if "seed" in image:
        values["seed"] = image["seed"]
    drawn = {name: image.get(name) for name in ("prompt", "negative_prompt")}
    fresh = _accepted_values(values, [])
    if all(isinstance(text, str) for text in drawn.values()) and "seed" in fresh:
        texts = PromptResources.for_workspace(workspace).expand(
            fresh.get("prompt", ""), fresh.get("negative_prompt", ""), fresh["seed"],
            fresh.get("styles", ()),
        )  # fmt: skip
        if [text.text for text in texts] != list(drawn.values()):
            text = "styles or wildcards have changed since; the prompts drawn then are used"
            problems.append(Message(text))
            values = {**values, **drawn, "styles": ()}
    # pictures store `prompt_rules` since rules 2
    return values if "prompt_rules" in details else _with_current_rules(values)


def _with_current_rules(values: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the prompts of a picture made by rules 1 to the current rules."""
    texts = {name: values.get(name) for name in ("prompt", "negative_prompt")}
    same = {name: from_rules_1(text) for name, text in texts.items() if isinstance(text, str)}
    return values | same


def _values_of_fields(recalled: ImageMetadata, problems: list[str]) -> dict[str, Any]:
    """Return unchecked settings from another program's fields."""
    fields = recalled.fields
    values: dict[str, Any] = {"prompt": recalled.prompt, "negative_prompt": recalled.negative}
    values |= {setting: fields[name] for name, setting in _SAME_VALUE.items() if name in fields}
    if fields:
        values["count"] = 1
    if sampler := fields.get("Sampler"):
        setting, problem = sampler_of(sampler, fields.get("Schedule type", ""), recalled.program)
        values |= {"sampler": setting} if setting else {}
        problems += [problem] if problem else []
    width, cross, height = fields.get("Size", "").partition("x")
    values |= {"width": width, "height": height} if cross else {}
    values |= {"model": fields["Model"]} if fields.get("Model") else {}
    values |= {"vae": fields["VAE"]} if fields.get("VAE", "Automatic") not in _OWN_VAE else {}
    if fields.get(NOISE_SCHEDULE) == FROM_NOISE:
        values["zero_terminal_snr"] = True
    if fields.keys() & {"Hires upscale", "Hires resize"}:
        values |= _hires(fields, problems)
    elif "Denoising strength" in fields:
        problems.append(
            Message(
                "it was made with img2img from another picture, which the file does not contain"
            )
        )
    if emphasis := fields.get("Emphasis"):
        values |= {"emphasis": _EMPHASIS[emphasis]} if emphasis in _EMPHASIS else {}
        if emphasis not in _EMPHASIS:
            problems.append(Message("emphasis {name!r} is not known here", name=_short(emphasis)))
    problems += _not_taken_over(fields)
    return values


def _not_taken_over(fields: Mapping[str, str]) -> Iterator[Message]:
    """Yield a message that names the fields not read here."""
    read = _KNOWN | _SAME_VALUE.keys()
    read |= {name for name in ("Hashes", "Civitai resources") if read_json(fields.get(name, ""))}
    read |= {"RNG"} if fields.get("RNG") == "CPU" else set()
    lost = [_short(f"{name}: {value}") for name, value in fields.items() if name not in read]
    if lost:
        yield Message("not taken over: {fields}", fields=lost)


def _short(text: str) -> str:
    return text[:_SHORTENED]


def _upscaler(recalled: ImageMetadata, workspace: Workspace, problems: list[str]) -> dict[str, str]:
    """Return the setting of a picture's last step: `auto` where its upscaler is the one that comes
    with its model. Pictures of other programs that name none leave the setting as it is."""
    name = recalled.fields.get("Postprocess upscaler")
    if not name:
        return {"upscaler": "none"} if recalled.program == "sdlora" else {}
    model = recalled.fields.get("Model", "")
    known = model in workspace.model_names()
    path = default_upscaler(Path(workspace.model_source(model))) if known else None
    if path and path.stem == name:
        return {"upscaler": "auto"}
    text = "the upscaler {name!r} is not known here; the picture keeps the size that it has before"
    problems.append(Message(text, name=_short(name)))
    return {"upscaler": "none"}


def _hires(fields: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    upscaler = fields.get("Hires upscaler", "Latent")
    is_latent = upscaler.startswith("Latent")
    if not is_latent and upscaler != "Lanczos":
        problems.append(
            Message(
                "the upscaler {name!r} is not known here; Lanczos is taken", name=_short(upscaler)
            )
        )
    values: dict[str, Any] = {"hires_upscaler": "latent" if is_latent else "lanczos"}
    if "Denoising strength" in fields:
        values["hires_strength"] = fields["Denoising strength"]
    if "Hires upscale" not in fields:
        values |= _resized(fields, problems)
    return values


def _resized(fields: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """Return the scale of a second pass from its size; a side of 0 follows the other."""
    size, target = (_sides(fields.get(name, "")) for name in ("Size", "Hires resize"))
    scales = [to / side for side, to in zip(size, target, strict=False) if side and to]
    shown = {"target": _short(fields["Hires resize"]), "size": _short(fields.get("Size", ""))}
    if not scales or max(scales) == 1:
        why = "the size is the same" if scales else "it gives no scale"
        problems.append(Message("the second pass to {target} is left out: {why}", **shown, why=why))
        return {}
    scale = round(max(scales), 4)
    if max(scales) - min(scales) > _SAME_RATIO:
        text = (
            "the second pass from {size} to {target} cropped the picture; here it is {scale} times"
        )
        problems.append(Message(text + " the size, not cropped", **shown, scale=scale))
    return {"hires_scale": scale}


def _sides(size: str) -> list[int]:
    return [int(side) for side in re.findall(r"[0-9]{1,6}", size)[:2]]


def _accepted_values(values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the values that the settings accept, in their types; add a problem for each other."""
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            accepted[name] = getattr(ImageRequest.from_values({name: value}), name)
        except SettingsError as error:
            problems.append(Message("not taken over: {why}", why=_reason(error)))
    return accepted


def _reason(error: SettingsError) -> Message | str:
    message = error.message
    return message if len(message) <= 300 else message[:300]


def _check_model(
    values: dict[str, Any], hash_: str, workspace: Workspace, problems: list[str]
) -> None:
    """Keep the model only if the library has it, by its name, else by its hash: a picture must not
    cause a download."""
    model = values.pop("model", "")
    named = STARTER if model == STARTER else ""
    if model and not named:
        entry = model_called(_below_root(model), workspace.model_files())
        named = next(iter(readable_names([entry])), "") if entry else ""
    if named:
        values["model"] = named
        return
    by_hash, is_claimed = (
        CheckpointLibrary(workspace).find_by_hash(hash_) if hash_ else (None, False)
    )
    shown = {"name": _short(model or hash_), "hash": _short(hash_)}
    if by_hash:
        values["model"] = by_hash.name
        text = "the model {name!r} is {taken!r} here, by its hash {hash}"
        text += ", as {file} claims it" if is_claimed else ""
        file = by_hash.info.claims.by
        problems.append(Message(text, **shown, taken=by_hash.name, file=file))
    elif model:
        text = "the model {name!r} is not here; another one makes another picture"
        problems.append(Message(text, **shown))


def _check_vae(values: dict[str, Any], workspace: Workspace, problems: list[str]) -> None:
    """Keep parts of other models only if the workspace has them; a picture names no paths."""
    if vae := values.get("vae"):
        name = file_stem(vae).rpartition("/")[2]
        values["vae"] = name
        if workspace.vae_source(name) == name:
            values.pop("vae")
            text = "the VAE {name!r} is not here; the model's own is used"
            problems.append(Message(text, name=_short(vae)))
    other = values.get("text_encoder")
    if other and other not in workspace.model_names():
        values.pop("text_encoder")
        text = "the model {name!r}, for its text encoder, is not here; the model's own is used"
        problems.append(Message(text, name=_short(other)))


def _below_root(model: str) -> str:
    """Return a model's name without a leading folder sign."""
    return model.strip().replace("\\", "/").lstrip("/")


def _renames(hashes: Mapping[str, str], library: Library, problems: list[str]) -> dict[str, str]:
    """Return name in the picture -> name here, of LoRAs found by hash only. A file of exactly the
    tag's name wins over the hash: hashes in pictures and files may be stale."""
    renames: dict[str, str] = {}
    for name, hash_ in hashes.items():
        entry = _find_entry(name, library)
        if entry and _has_hash(entry, hash_, library):
            continue
        by_hash = _find_entry(hash_, library) if is_hash(hash_.lower()) else None
        is_exact = entry and hashed_name(name) in map(hashed_name, (entry.name, entry.full_name))
        shown = {"name": _short(name), "hash": _short(hash_)}
        if by_hash and not is_exact:
            renames[name] = by_hash.full_name
            if by_hash.also:
                text = "several files have the hash {hash} of {name!r}; {taken!r} is taken"
                problems.append(Message(text, **shown, taken=by_hash.full_name))
        elif by_hash:
            text = "{name!r} is another file here: its hash was {hash}, which {other!r} has; "
            text += "for that, write its name into the tag"
            problems.append(Message(text, **shown, other=by_hash.full_name))
        elif entry:
            problems.append(Message("{name!r} is another file here: its hash was {hash}", **shown))
    return renames


def _has_hash(entry: LoraEntry, hash_: str, library: Library) -> bool:
    """True if a file has this hash, or its metadata claims it."""
    if is_hash(start := hash_.lower()) and entry.facts.claimed_hash.startswith(start):
        return True
    try:
        return library.hashes(entry).matches(start)
    except LoraFileError:  # it may be gone by now
        return False


def _check_tags(
    text: str, hashes: Mapping[str, str], library: Library, problems: list[str]
) -> None:
    for name in dict.fromkeys(tag.name for tag in parse_prompt(text).loras):
        try:
            library.find(name)
        except LoraFileError as error:
            hash_ = hashes.get(hashed_name(name))
            message = Message(
                "{why} Its hash is {hash}.", why=error.message, hash=_short(hash_ or "")
            )
            problems.append(message if hash_ else error.message)


def _check_embeddings(
    recalled: ImageMetadata, values: Mapping[str, Any], workspace: Workspace, problems: list[str]
) -> None:
    """Add a problem for each textual inversion of the picture that the workspace lacks."""
    known = PromptResources.for_workspace(workspace).embedding_names()
    named = dict(recalled.embedding_hashes)
    if pattern := _EMBEDDINGS.get(recalled.program):
        texts = (str(values.get(setting, "")) for setting in ("prompt", "negative_prompt"))
        for match in pattern.finditer("\n".join(texts)):
            named.setdefault(file_stem(match[1]).rpartition("/")[2], "")
    for name, hash_ in named.items():
        if name.lower() not in known:
            text = "the textual inversion {name!r} " + ("(hash {hash}) " if hash_ else "")
            problems.append(Message(text + "is not here", name=_short(name), hash=_short(hash_)))


def _find_entry(name: str, library: Library) -> LoraEntry | None:
    try:
        return library.find(name)
    except LoraFileError:
        return None
