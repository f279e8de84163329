"""A model's folder from the Hugging Face hub, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    (HFValidationError, "{0!r} is neither in models/, nor a folder, nor an id such as owner/name"),
    (GatedRepoError, "{0} wants you to agree to its terms on huggingface.co; do so, set HF_TOKEN"),
    (RepositoryNotFoundError, "there is no model {0} on huggingface.co; check the spelling"),
    (OfflineModeIsEnabled, "{0} is not on this computer and the hub is switched off; " + _LOCALLY),
    (
        LocalEntryNotFoundError,
        "{0} is not on this computer and huggingface.co cannot be reached; " + _LOCALLY,
    ),
    (EntryNotFoundError, "{0} on huggingface.co is not a diffusers model: it has no {1}"),
    (HfHubHTTPError, "huggingface.co did not give {0}: {2}"),
    (OSError, "{0} cannot be downloaded: {2}"),
)


def index_of(repository: str, file: str) -> Path:
    """The path of the model's index, downloaded if need be. ModelError says why not."""
    return Path(_asked(repository, file, lambda: hf_hub_download(repository, file)))


def whole_model(
    repository: str, index: Path, pipeline_class: Any, no_parts: dict[str, Any]
) -> Path:
    """The folder of the whole model, of the very commit whose index was judged."""

    def download() -> str:
        return str(
            pipeline_class.download(
                repository, revision=index.parent.name, use_safetensors=True, **no_parts
            )
        )

    return Path(_asked(repository, index.name, download))


def _asked(repository: str, file: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except tuple(kind for kind, _ in _SENTENCES) as error:
        sentence = next(text for kind, text in _SENTENCES if isinstance(error, kind))
        reason = str(error).strip().split("\n")[0]
        raise ModelError(sentence.format(repository, file, reason)) from None
