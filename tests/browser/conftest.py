"""A browser, and a server whose worker needs no model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from driving import CHROMIUM_FLAGS, process, site
from sdlora import runs


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield started
        started.close()


@pytest.fixture
def fake_site(workspace: Path) -> Iterator[str]:
    with process("-m", "fakes", str(workspace)), site(workspace) as address:
        yield address
        for folder in runs.run_folders(workspace / "runs"):
            runs.stop(folder)  # a training would outlive its worker, as it is meant to
