"""Downloads are jobs beside those of the device: neither line waits for the other."""

import os
import signal
import threading
from pathlib import Path

import pytest

from downloader import CONTENT
from model_server import COMMIT, TOKEN, ModelServer, safetensors_bytes
from sdlora.jobs import run_folder
from sdlora.jobs.kinds import role_of
from sdlora.jobs.queue import Queue
from sdlora.jobs.supervise import WorkerKeeper
from sdlora.settings.download import DownloadSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.worker.tasks import WORK
from sdlora.worker.worker import JOB_PROCESSES, Worker
from sdlora.workspace import Workspace
from waiting import wait_until

INK = f"/me/ink/resolve/{COMMIT}/ink.safetensors"


def submit(space: Workspace, queue: Queue, source: str = "me/ink") -> Path:
    return run_folder.start(DownloadSettings.from_values({"source": source}), space, queue)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the child processes of the test download from its server."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def downloader(space: Workspace) -> Worker:
    return Worker(space, idle_s=0.1, poll_s=0.02, role="downloader")


def test_both_lines_have_their_own_order(space: Workspace, queue: Queue) -> None:
    image = run_folder.start(ImageRequest(prompt="a ball"), space, queue)
    first, second = submit(space, queue), submit(space, queue)
    jobs = [queue.job_of(folder) for folder in (image, first, second)]
    assert [queue.ahead(job) for job in jobs if job] == [0, 0, 1]
    assert queue.busy() and queue.busy("downloader")
    claimed = queue.claim("me", "downloader")
    assert claimed and claimed.folder == first
    assert queue.left_running_by_others("another", "downloader") == [claimed]
    assert queue.left_running_by_others("another") == []
    drawn = queue.claim("me")
    assert drawn and drawn.folder == image and queue.claim("me") is None
    assert queue.acquire_lock("downloader") is None and queue.holder("worker") is None
    assert role_of("download") == "downloader" and role_of("of another version") == "worker"
    assert "download" in WORK and "download" in JOB_PROCESSES


@pytest.mark.usefixtures("online")
def test_a_download_does_not_wait_for_the_device(
    space: Workspace, queue: Queue, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    server.files[INK].token = TOKEN
    image = run_folder.start(ImageRequest(prompt="a ball"), space, queue)
    assert (job := queue.claim("1:busy")) and job.folder == image
    folder, missing = submit(space, queue), submit(space, queue, "me/none")
    assert downloader(space).run()
    state = run_folder.read(folder, queue)
    assert state.status == "done" and Path(state.result).read_bytes() == CONTENT
    failed = run_folder.read(missing, queue)
    assert failed.status == "failed" and "there is no me/none" in failed.error
    assert (job := queue.job_of(image)) and job.status == "running"
    for path in space.root.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
@pytest.mark.usefixtures("online")
def test_a_killed_download_goes_on_by_itself(
    space: Workspace, queue: Queue, server: ModelServer
) -> None:
    content = safetensors_bytes(3_000_000)
    server.add_repository("me/ink", {"ink.safetensors": content})
    hold = threading.Event()
    server.on_chunk = lambda at: None if at < 1_500_000 else (hold.wait(60), None)[1]
    folder = submit(space, queue)
    thread = threading.Thread(target=downloader(space).run)
    thread.start()
    part = space.models / "ink.safetensors.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    os.kill(int(run_folder.owner(folder).partition(":")[0]), signal.SIGKILL)
    hold.set()
    thread.join(60)
    state = run_folder.read(folder, queue)
    assert state.status == "done" and Path(state.result).read_bytes() == content
    assert any("begins anew" in warned.message for warned in state.warnings)
    assert server.ranges(INK)[-1].startswith("bytes=1"), "from what was there"


@pytest.mark.usefixtures("online")
def test_a_download_is_cancelled_and_asked_for_again(
    space: Workspace, queue: Queue, server: ModelServer
) -> None:
    content = safetensors_bytes(3_000_000)
    server.add_repository("me/ink", {"ink.safetensors": content})
    folder = submit(space, queue)
    slow = threading.Event()

    def wait_after_a_megabyte(at: int) -> None:
        if at > 1_000_000:
            slow.wait(0.2)

    server.on_chunk = wait_after_a_megabyte
    thread = threading.Thread(target=downloader(space).run)
    thread.start()
    part = space.models / "ink.safetensors.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 500_000)
    run_folder.cancel(folder, queue)
    thread.join(60)
    slow.set()
    assert run_folder.read(folder, queue).status == "stopped" and part.exists()
    again = submit(space, queue)
    assert downloader(space).run()
    state = run_folder.read(again, queue)
    assert state.status == "done" and Path(state.result).read_bytes() == content


@pytest.mark.usefixtures("online")
def test_the_page_starts_a_downloader(space: Workspace, queue: Queue, server: ModelServer) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    folder = submit(space, queue)
    keeper = WorkerKeeper(space, queue, role="downloader")
    keeper.wake()
    try:
        wait_until(lambda: run_folder.read(folder, queue).ended)
        lock = queue.holder("downloader")
        assert lock and queue.holder("worker") is None
        assert run_folder.read(folder, queue).status == "done"
        assert space.heartbeat_of("downloader").exists()
    finally:
        if lock := queue.holder("downloader"):
            os.kill(int(lock.holder.partition(":")[0]), signal.SIGTERM)
