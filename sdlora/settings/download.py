"""Settings of a download; no torch."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field, field_validator

from sdlora.file_names import checked_name
from sdlora.settings.base import InvalidValue, Settings, validated

AssetKind = Literal["checkpoint", "lora", "vae", "embedding", "upscaler"]
# parameters of an address that are passwords: they go into no file, and are sent in no address
_SECRETS = {"token", "access_token", "api_key", "apikey", "api_token", "auth", "authorization"}


class DownloadSettings(Settings):
    """Download a model from Hugging Face, Civitai or any address, checked and resumable."""

    source: str = Field(
        min_length=1,
        description="What to download: owner/name on Hugging Face, with @revision and "
        ":path/in/repository if need be; civitai:VERSION; or the address of a page or of a file",
    )
    file: str = Field("", description="Which file, where there are several: its name")
    output: str = Field("", title="Save as", description="Name to save under; empty: its own")
    kind: Literal["auto", "checkpoint", "lora", "vae", "embedding", "upscaler"] = Field(
        "auto",
        title="Kind of model",
        description="What it is; auto: as its page says, else a checkpoint",
    )
    revision: str = Field(
        "", description="Branch, tag or commit on Hugging Face; empty: the main branch"
    )
    variant: Literal["fp16", "full"] = Field(
        "fp16",
        title="Weights",
        description="Of a Hugging Face repository that has both: fp16, half the size, or full",
    )

    @property
    def chosen_kind(self) -> AssetKind | None:
        """The kind that the user says it is; None: nothing said."""
        return None if self.kind == "auto" else self.kind

    @field_validator("source")
    @classmethod
    def _without_secrets(cls, source: str) -> str:
        return without_secrets(source.strip())

    @field_validator("output")
    @classmethod
    def _is_a_name(cls, output: str) -> str:
        return str(validated(checked_name, output)) if output else ""


def without_secrets(source: str) -> str:
    """Return a source as it may be written down: an address without a token in it. InvalidValue: it
    has a password before its host, or cannot be read as an address."""
    if not re.match(r"https?:", source, re.IGNORECASE):
        return source
    try:
        parts = urlsplit(source)
        has_login = parts.username is not None or parts.password is not None
    except ValueError:
        raise InvalidValue("this is no address of a web page; copy it anew") from None
    if has_login:
        raise InvalidValue(
            "the address has a name or a password in it, which would be written down; leave it out"
        )
    rows = parse_qsl(parts.query, keep_blank_values=True)
    open_rows = [row for row in rows if row[0].lower() not in _SECRETS]
    query = parts.query if open_rows == rows else urlencode(open_rows)
    return urlunsplit((parts.scheme.lower(), parts.netloc, parts.path, query, ""))
