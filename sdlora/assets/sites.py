"""Web sites of models: their addresses, and the tokens that belong to them.

A token is read from the environment when a request is made, or else from a file, and is kept
nowhere else. It is sent to the addresses of its own site alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from huggingface_hub import constants, get_token

from sdlora.errors import DownloadError, SettingsError

CIVITAI = "https://civitai.com"
CIVITAI_HOSTS = ("civitai.com", "civitai.red", "civitai.green")
HUGGING_FACE_HOSTS = ("huggingface.co", "hf.co")
MAX_TOKEN_FILE = 4096  # bytes
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address, the port always said. ValueError: it has
    none."""
    parts = urlsplit(url)
    scheme, port = parts.scheme.lower(), parts.port
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("no address of the web")
    return f"{scheme}://{parts.hostname.lower()}:{port or _DEFAULT_PORTS[scheme]}"


def host_of(url: str) -> str:
    """Return the host of an address, for messages."""
    return urlsplit(url).netloc.rpartition("@")[2]


@dataclass(frozen=True)
class Site:
    """A web site of models. `endpoint` is the address that requests begin with, `origins` are the
    hosts that its token may be sent to."""

    name: str
    endpoint: str
    origins: frozenset[str]
    variables: tuple[str, ...]
    token_file: Path
    token_page: str

    def owns(self, url: str) -> bool:
        """Return True if an address is of this site."""
        return origin_of(url) in self.origins

    def token(self) -> str:
        """Return the user's token; '' for none. SettingsError: it cannot be one."""
        for variable in self.variables:
            if token := os.environ.get(variable, "").strip():
                return _checked_token(token, variable)
        return _checked_token(self._token_on_disk(), str(self.token_file))

    def _token_on_disk(self) -> str:
        if self.name == "Hugging Face":  # where `hf auth login` leaves it
            return "" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token() or ""
        try:
            with self.token_file.open("rb") as file:
                lines = file.read(MAX_TOKEN_FILE).decode("utf-8-sig", "replace").split()
        except OSError:
            return ""
        return lines[0] if lines else ""


def _checked_token(token: str, place: str) -> str:
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):  # and the message does not repeat it
        raise SettingsError(
            "{place} holds something that is no token: a token has letters, digits and signs "
            "without a space between them; copy it anew",
            place=place,
        )
    return token


def hugging_face() -> Site:
    """Hugging Face, or the mirror that HF_ENDPOINT names."""
    endpoint = _endpoint("HF_ENDPOINT", constants.ENDPOINT)
    return Site(
        "Hugging Face",
        endpoint,
        frozenset({origin_of(endpoint), *_https(HUGGING_FACE_HOSTS)}),
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        Path(constants.HF_TOKEN_PATH),
        "https://huggingface.co/settings/tokens",
    )


def civitai() -> Site:
    """Civitai and its other hosts, or the mirror that CIVITAI_ENDPOINT names."""
    endpoint = _endpoint("CIVITAI_ENDPOINT", CIVITAI)
    return Site(
        "Civitai",
        endpoint,
        frozenset({origin_of(endpoint), *_https(CIVITAI_HOSTS)}),
        ("CIVITAI_API_TOKEN", "CIVITAI_TOKEN"),
        Path(platformdirs.user_config_dir("sdlora", appauthor=False)) / "civitai_token",
        "https://civitai.com/user/account",
    )


def check_online(site: Site) -> None:
    """Raise DownloadError where the user has switched Hugging Face off."""
    if site.name == "Hugging Face" and constants.HF_HUB_OFFLINE:
        raise DownloadError(
            "downloads from Hugging Face are switched off by HF_HUB_OFFLINE or "
            "TRANSFORMERS_OFFLINE; unset them to download this"
        )


def _https(hosts: tuple[str, ...]) -> list[str]:
    return [f"https://{prefix}{host}:443" for host in hosts for prefix in ("", "www.")]


def _endpoint(variable: str, default: str) -> str:
    endpoint = (os.environ.get(variable, "").strip() or default).rstrip("/")
    try:
        origin_of(endpoint)
    except ValueError:
        raise SettingsError(
            "{variable} has to be an address such as {example}",
            variable=variable, example=default,
        ) from None  # fmt: skip
    return endpoint
