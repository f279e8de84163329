"""What every test stands on: a quiet offline environment, and a repository left as it was found."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(tempfile.gettempdir()) / "sdlora-hypothesis"),
}
os.environ.update(QUIET)  # before anything below imports the libraries that read it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers already share the cores

import hypothesis  # noqa: E402
import pytest  # noqa: E402

import lanes  # noqa: E402
import launch  # noqa: E402
from sdlora.jobs.queue import Queue  # noqa: E402
from sdlora.workspace import Workspace  # noqa: E402

# No example database and no clock: the same run every time, on a busy machine too.
hypothesis.settings.register_profile("repo", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("repo")

LEFT_BEHIND = pytest.StashKey[set[str]]()


def repository_entries(root: Path) -> set[str]:
    """The repository's top level, and what git calls changed or untracked where there is a git."""
    entries = {path.name for path in root.iterdir()} - {"__pycache__"}
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=root, capture_output=True, encoding="utf-8"
        )
    except FileNotFoundError:
        return entries
    return entries | set(status.stdout.splitlines())


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the fast lane; see lanes.py."""
    group = parser.getgroup("lanes")
    group.addoption("--fast", action="store_true", help="leave out what slow_tests.txt names")
    group.addoption("--write-slow-tests", action="store_true", help="write slow_tests.txt anew")


def pytest_configure(config: pytest.Config) -> None:
    """Let the lanes select the tests, and measure them."""
    config.pluginmanager.register(lanes.Lanes(config))


def is_worker(session: pytest.Session) -> bool:
    """Whether this is one of xdist's processes: what they do is seen from the one that waits."""
    return hasattr(session.config, "workerinput")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what the repository holds before the first test."""
    if not is_worker(session):
        session.config.stash[LEFT_BEHIND] = repository_entries(launch.ROOT)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name what the tests left there. Only CI fails on it: elsewhere somebody may be editing."""
    if is_worker(session):
        return
    left = sorted(repository_entries(launch.ROOT) - session.config.stash[LEFT_BEHIND])
    if not left:
        return
    print(f"\nNew in the repository since the tests began: {', '.join(left)}")
    if os.environ.get("CI") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium to drive; without one the test is skipped, in CI it fails."""
    path = launch.find_chromium()
    if not path:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("no Chromium found; `python launch.py test` says how to get one")
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty folder for the program's files, gone after the test."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six small captioned pictures."""
    import random

    from sdlora.starter.draw import draw, random_scene

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        draw(random_scene(random.Random(number))).resize((64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zibo, picture {number}", encoding="utf-8")
    return folder


@pytest.fixture
def space(workspace: Path) -> Workspace:
    """An open workspace of a test's own."""
    return Workspace.open(workspace)


@pytest.fixture
def queue(space: Workspace) -> Queue:
    """The queue of that workspace."""
    return Queue(space.database)


@pytest.fixture
def run(pictures: Path, space: Workspace, tmp_path: Path) -> object:
    """A `training_runs.Run` over those pictures."""
    from training_runs import Run

    return Run(pictures, space, tmp_path)


@pytest.fixture
def engine(space: Workspace) -> Iterator[object]:
    """A `generate.Engine` over the test's workspace."""
    import torch

    from sdlora.inference.engine import Engine

    engine = Engine(space, torch.device("cpu"), torch.float32)
    yield engine
    engine.close()


@pytest.fixture
def browser(studio: object) -> object:
    """A `page_client.Browser` on the page of the test's own `studio`, opened."""
    from page_client import Browser

    browser = Browser(studio)
    browser.open()
    return browser


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """A `model_server.ModelServer` that Hugging Face and Civitai are for the test."""
    from downloader import use_server
    from model_server import model_server

    with model_server() as server:
        use_server(server, monkeypatch, tmp_path)
        yield server


@pytest.fixture
def downloads(space: Workspace, server: object) -> object:
    """A `downloader.Downloader` into the test's workspace, from that server."""
    from downloader import Downloader

    return Downloader(space)
