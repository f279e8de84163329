"""A download in a test: a clock that takes no time, and the events of what was downloaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from model_server import ModelServer, safetensors_bytes
from sdlora.assets.download import download
from sdlora.assets.download_clock import DownloadClock
from sdlora.assets.http_client import HttpClient
from sdlora.assets.transfer import DownloadSession
from sdlora.errors import SdloraError
from sdlora.events import Done, Event, Warned, to_line
from sdlora.settings.download import DownloadSettings
from sdlora.workspace import Workspace

FILE = "/files/ink.safetensors"
CONTENT = safetensors_bytes()
CDN = "/cdn/ink"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CIVITAI_API_TOKEN", "CIVITAI_TOKEN")


def use_server(server: ModelServer, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a local server be both sites, without a token and without a proxy."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in (*TOKENS, *proxies, *map(str.lower, proxies)):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    patch.setenv("HF_ENDPOINT", server.hub)
    patch.setenv("CIVITAI_ENDPOINT", server.civitai)


class FakeClock(DownloadClock):
    """A clock that stands still but for the waits, which take no time."""

    def __init__(self) -> None:
        self.at, self.waits = 0.0, 0.0
        super().__init__(lambda: False, self._tick, self._skip)

    def _tick(self) -> float:
        self.at += 0.01
        return self.at

    def _skip(self, seconds: float) -> None:
        self.at += seconds
        self.waits += seconds


class Downloader:
    """Downloads in a workspace, with the events of the last one."""

    def __init__(self, space: Workspace) -> None:
        self.space, self.clock = space, FakeClock()
        self.events: list[Event] = []
        self.free = 2**50

    def get(self, source: str, **values: Any) -> Path:
        """The path of what was downloaded."""
        self.events = []
        settings = DownloadSettings.from_values({"source": source, **values})
        with HttpClient(plain_http=True) as client:
            session = DownloadSession(client, self.clock, lambda folder: self.free)
            for event in download(settings, self.space, session):
                self.events.append(event)
        last = self.events[-1]
        return Path(last.path) if isinstance(last, Done) else Path()

    def refused(self, source: str, **values: Any) -> str:
        """The sentence of a download that cannot be."""
        with pytest.raises(SdloraError) as caught:
            self.get(source, **values)
        return str(caught.value)

    def text(self) -> str:
        return "\n".join(map(to_line, self.events))

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]


def source_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.with_name(f"{path.stem}.source.json").read_text("utf-8")))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
