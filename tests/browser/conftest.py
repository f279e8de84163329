"""A browser, and a server whose worker needs no model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from chromium_page import CHROMIUM_FLAGS, process, site
from sdlora.jobs import run_folder


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=20_000)  # of a busy machine; it costs time only where a test fails
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield started
        started.close()


@contextmanager
def fakes_at(workspace: Path) -> Iterator[str]:
    """The address of a server over this workspace, with the stand-ins' worker."""
    with process("-m", "fakes", str(workspace)), site(workspace) as address:
        yield address
        for folder in run_folder.run_folders(workspace / "runs"):
            run_folder.stop(folder)  # a training would outlive its worker, as it is meant to


@pytest.fixture
def fake_site(workspace: Path) -> Iterator[str]:
    with fakes_at(workspace) as address:
        yield address


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace for tests that do not mind what others leave in it."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def shared_site(shared_workspace: Path) -> Iterator[str]:
    """One server for all of them, for its start takes longer than most of what they do."""
    with fakes_at(shared_workspace) as address:
        yield address
