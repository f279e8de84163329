"""Names of samplers in pictures' metadata, ours and other programs'; no torch."""

from __future__ import annotations

from sdlora.messages import Message

# Setting -> A1111's Sampler and Schedule type. Automatic is Karras there for DPM++ 2M (1.9 and
# later, modules/sd_samplers_kdiffusion.py), so that the plain one has to be said.
SAMPLER_TITLES = {
    "ddim": ("DDIM", "Automatic"),
    "euler": ("Euler", "Automatic"),
    "euler_a": ("Euler a", "Automatic"),
    "dpm++_2m": ("DPM++ 2M", "Uniform"),
    "dpm++_2m_karras": ("DPM++ 2M", "Karras"),
    "dpm++_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "unipc": ("UniPC", "Automatic"),
}
NOISE_SCHEDULE, FROM_NOISE = "Noise Schedule", "Zero Terminal SNR"  # A1111's words, 1.8 and later
_KARRAS = "karras"
_PLAIN = {"", "automatic", "uniform", "normal", "simple", "ddim_uniform", "native"}
_BY_NAME = {
    "ddim": "ddim", "euler": "euler", "eulera": "euler_a", "eulerancestral": "euler_a",
    "dpm++2m": "dpm++_2m", "dpm++2msde": "dpm++_2m_sde", "unipc": "unipc", "unipcbh2": "unipc",
}  # fmt: skip


def sampler_of(name: str, schedule: str = "", program: str = "A1111") -> tuple[str, str]:
    """Return (setting, problem) for a sampler's name in a picture of `program`: A1111's 'DPM++ 2M
    Karras', ComfyUI's dpmpp_2m, InvokeAI's dpmpp_2m_k, NovelAI's k_dpmpp_2m. The setting is empty
    for an unknown sampler."""
    plain = "".join(name.lower().replace("pp", "++").split()).replace("_", "").removesuffix("gpu")
    plain = plain[1:] if plain.startswith("k") and plain[1:] in _BY_NAME else plain
    when = schedule.strip().lower()
    for ending in (_KARRAS, "k"):
        if plain.endswith(ending) and plain.removesuffix(ending) in _BY_NAME:
            plain, when = plain.removesuffix(ending), _KARRAS
    setting = _BY_NAME.get(plain, "")
    if not setting:
        return "", Message("the sampler {name!r} is not known here", name=name[:80])
    if setting == "dpm++_2m" and when == "automatic" and program in ("A1111", "Forge"):
        when = _KARRAS
    if f"{setting}_{when}" in SAMPLER_TITLES:
        return f"{setting}_{when}", ""
    if when in _PLAIN:
        return setting, ""
    text = "{name} has no schedule {schedule!r} here"
    return setting, Message(text, name=name[:80], schedule=when[:80])
