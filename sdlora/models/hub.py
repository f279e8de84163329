"""A model's folder from the Hugging Face hub, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from sdlora.errors import ModelError

_LOCALLY = "connect, or put the model's folder into models/"
# Each error's sentence; the first row that fits counts
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (
        HFValidationError,
        "{model!r} is neither in models/, nor a folder, nor an id such as owner/name",
    ),
    (
        GatedRepoError,
        "{model} wants you to agree to its terms on huggingface.co; do so, set HF_TOKEN",
    ),
    (RepositoryNotFoundError, "there is no model {model} on huggingface.co; check the spelling"),
    (
        OfflineModeIsEnabled,
        "{model} is not on this computer and the hub is switched off; " + _LOCALLY,
    ),
    (
        LocalEntryNotFoundError,
        "{model} is not on this computer and huggingface.co cannot be reached; " + _LOCALLY,
    ),
    (EntryNotFoundError, "{model} on huggingface.co is not a diffusers model: it has no {file}"),
    (HfHubHTTPError, "huggingface.co did not give {model}: {why}"),
    (OSError, "{model} cannot be downloaded: {why}"),
)


def index_of(repository: str, file: str) -> Path:
    """The path of the model's index, downloaded if need be. ModelError says why not."""
    return Path(_asked(repository, file, lambda: hf_hub_download(repository, file)))


def whole_model(
    repository: str, index: Path, pipeline_class: str, skipped: Mapping[str, Any]
) -> Path:
    """Download the whole model, of the very commit whose index was judged; return its folder."""

    def download() -> str:
        return str(
            getattr(diffusers, pipeline_class).download(
                repository, revision=index.parent.name, use_safetensors=True, **skipped
            )
        )

    return Path(_asked(repository, index.name, download))


def _asked(repository: str, file: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except tuple(kind for kind, _ in _SENTENCES) as error:
        sentence = next(text for kind, text in _SENTENCES if isinstance(error, kind))
        reason = str(error).strip().split("\n")[0]
        raise ModelError(sentence, model=repository, file=file, why=reason) from None
