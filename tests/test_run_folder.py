"""The run folder can be written, followed and stopped by different processes, at any moment."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launch import ROOT
from sdlora.errors import BusyError, DataError, RunError, SettingsError
from sdlora.events import (
    Checkpoint,
    Done,
    Event,
    Failed,
    Progress,
    Started,
    Step,
    Stopped,
    fold,
    to_line,
)
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import is_requested, write_request
from sdlora.jobs.processes import alive, identity
from sdlora.jobs.queue import Queue
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def record(folder: Path, *events: Event, error: Exception | None = None) -> list[Event]:
    def source() -> Iterator[Event]:
        yield from events
        if error:
            raise error

    return list(run_folder.record(source(), folder))


def test_what_is_recorded_is_what_is_read(folder: Path) -> None:
    events = [Started("x", 2), Step(1, 2, loss=0.5), Step(2, 2), Done("out", 1.0)]
    assert record(folder, *events) == events
    assert run_folder.read(folder) == fold(events)


def test_a_mistake_is_a_sentence_and_a_bug_has_its_traceback_in_the_log(folder: Path) -> None:
    *_, told = record(folder, Started("x", 2), error=DataError("no pictures in x"))
    assert told == Failed("no pictures in x", at=told.at)
    assert not (folder / run_folder.LOG_FILE).exists()
    *_, told = record(folder, error=ZeroDivisionError("oh"))
    assert isinstance(told, Failed) and told.message == "ZeroDivisionError: oh"
    assert "Traceback" in (folder / run_folder.LOG_FILE).read_text("utf-8")
    assert run_folder.read(folder).status == "failed"


def test_running_out_of_memory_comes_with_advice(folder: Path) -> None:
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    *_, told = record(folder, error=out_of_memory("CUDA out of memory"))
    assert isinstance(told, Failed) and "batch_size" in told.advice


def test_each_event_is_on_disk_before_it_is_passed_on(folder: Path) -> None:
    for count, _ in enumerate(run_folder.record(iter([Step(1, 9), Step(2, 9)]), folder), start=1):
        assert run_folder.read(folder).step == count


def test_a_follower_reads_each_line_once_and_waits_for_whole_ones(folder: Path) -> None:
    folder.mkdir()
    file, follower = folder / run_folder.EVENTS_FILE, run_folder.RunFollower(folder)
    assert follower.poll().status == "queued"
    line = to_line(Step(1, 9, loss=1.0)) + "\n"
    with file.open("a", encoding="utf-8") as out:
        out.write(line[:20])
        out.flush()
        assert follower.poll().step == 0, "half a line is no event yet"
        out.write(line[20:])
        out.flush()
        assert follower.poll().losses == ((1, 1.0),)
        assert follower.poll().losses == ((1, 1.0),)


def test_a_line_torn_by_a_kill_costs_that_line_only(folder: Path) -> None:
    folder.mkdir()
    torn = to_line(Step(1, 9)) + "\n" + to_line(Step(2, 9))[:25]
    (folder / run_folder.EVENTS_FILE).write_text(torn, encoding="utf-8")
    run_folder.append_event(folder, Stopped("kept", 1))
    state = run_folder.read(folder)
    assert (state.status, state.step, state.result) == ("stopped", 1, "kept")


def test_a_prompt_with_any_separator_is_one_line(folder: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\nf\rg"
    record(folder, Progress(text))
    assert run_folder.read(folder).phase == text


def test_a_process_that_died_without_a_word_is_a_failed_run(folder: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from sdlora.jobs import run_folder as runs; "
        "from sdlora.events import Started, Step\n"
        "for event in runs.record(iter([Started('x', 9), Step(3, 9), Step(4, 9)]), "
        "Path(sys.argv[1])):\n    getattr(event, 'step', 0) == 3 and os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT)
    state = run_folder.read(folder)
    assert (state.status, state.error) == (
        "failed",
        "the process ended without a word at step 3",
    )


def test_stop_is_a_file_and_now_is_what_it_says(folder: Path) -> None:
    folder.mkdir()
    assert not run_folder.stop_asked(folder) and not run_folder.stop_asked_now(folder)
    run_folder.stop(folder)
    assert run_folder.stop_asked(folder) and not run_folder.stop_asked_now(folder)
    run_folder.stop(folder, now=True)
    assert run_folder.stop_asked(folder) and run_folder.stop_asked_now(folder)


def test_start_never_takes_a_folder_that_is_there(workspace: Path) -> None:
    space = Workspace.open(workspace)
    queue = Queue(space.database)
    settings = TrainSettings.from_values({"name": "v1.0", "data": "x"})
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: run_folder.start(settings, space, queue), range(6)))
    assert sorted(f.name for f in folders) == ["v1.0", *(f"v1.0-{n}" for n in range(2, 7))]
    assert TrainSettings.load(folders[0] / run_folder.SETTINGS_FILE) == settings
    request = run_folder.start(ImageRequest.from_values({"prompt": "x"}), space, queue)
    assert request.parent == space.jobs
    assert [job.folder for job in queue.latest("generate")] == [request]


def test_runs_are_listed_newest_first_and_found_by_name_only(workspace: Path) -> None:
    for number, name in enumerate(("first", "second")):
        folder = workspace / name
        record(folder, Done())
        (folder / run_folder.SETTINGS_FILE).write_text("{}", encoding="utf-8")
        os.utime(folder / run_folder.SETTINGS_FILE, (number, number))
    (workspace / "no run").mkdir()
    assert list(run_folder.list_runs(workspace)) == ["second", "first"]
    assert run_folder.find_run(workspace, "first") == workspace / "first"
    for name in ("frist", "../first", str(workspace / "first"), ""):
        with pytest.raises(SettingsError, match="there is no run"):
            run_folder.find_run(workspace, name)
    with pytest.raises(SettingsError, match="Did you mean first"):
        run_folder.find_run(workspace, "frist")
    assert run_folder.list_runs(workspace / "nowhere") == {}


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = identity(os.getpid())
    assert me and alive(me) and me == identity(os.getpid())
    assert not alive(f"{os.getpid()}:another start")
    assert not alive("") and not alive("words") and not alive("999999999:1")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    assert identity(child.pid) is None


LOST = type("AcceleratorError", (RuntimeError,), {})


def ended_run(space: Workspace, *events: Event, name: str = "neon") -> Path:
    folder = run_folder.new_folder(TrainSettings.from_values({"name": name, "data": "x"}), space)
    record(folder, Started("x", 9), Step(4, 9), *events)
    return folder


def test_what_ended_before_its_time_goes_into_the_queue_again(workspace: Path) -> None:
    space = Workspace.open(workspace)
    queue = Queue(space.database)
    folder = ended_run(space, Checkpoint("c", 4), Failed("the process ended"))
    assert run_folder.read(folder).resumable
    for wish in ("stop", "pause"):
        write_request(folder, wish)
    run_folder.resume(folder, queue)
    state = run_folder.read(folder)
    assert (state.status, state.error, state.checkpoint) == ("queued", "", 4)
    assert not is_requested(folder, "stop") and not is_requested(folder, "pause")
    first = queue.job_of(folder)
    assert first and first.status == "queued"
    with pytest.raises(BusyError, match="nothing to resume"):
        run_folder.resume(folder, queue)
    queue.finish(first, "stopped")
    run_folder.append_event(folder, Stopped("kept", 4))
    behind = run_folder.start(
        TrainSettings.from_values({"name": "other", "data": "x"}), space, queue
    )
    run_folder.resume(folder, queue)
    claimed = [queue.claim("me"), queue.claim("me"), queue.claim("me")]
    assert [job and job.folder for job in claimed] == [behind, folder, None], "behind the others"


def test_a_finished_run_is_not_resumed_and_an_ended_one_not_asked(workspace: Path) -> None:
    space = Workspace.open(workspace)
    folder = ended_run(space, Done("zibo.safetensors"))
    with pytest.raises(RunError, match="is finished: its LoRA is zibo.safetensors"):
        run_folder.reopen(folder, Queue(space.database))
    with pytest.raises(RunError, match="is done: it cannot draw samples now"):
        run_folder.request(folder, "sample")
    assert not is_requested(folder, "sample")
    going = ended_run(space, name="going")
    run_folder.request(going, "sample")
    assert is_requested(going, "sample")


def test_a_run_killed_before_its_first_word_can_be_resumed(workspace: Path) -> None:
    space = Workspace.open(workspace)
    folder = run_folder.new_folder(TrainSettings.from_values({"name": "neon", "data": "x"}), space)
    (folder / run_folder.PID_FILE).write_text(identity(os.getpid()) or "", encoding="utf-8")
    with pytest.raises(BusyError):
        run_folder.resume(folder, Queue(space.database))
    (folder / run_folder.PID_FILE).unlink()
    run_folder.resume(folder, Queue(space.database))
    assert Queue(space.database).busy()


def test_resuming_waits_until_the_worker_has_noted_the_end(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause is told by the run's last event; its process ends a moment later."""
    space = Workspace.open(workspace)
    queue, folder = Queue(space.database), ended_run(space, Stopped(step=2), name="neon")
    queue.submit("train", folder)
    job = queue.claim("worker")
    assert job
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            queue.finish(job, "stopped")

    monkeypatch.setattr(run_folder.time, "sleep", nap)
    run_folder.resume(folder, queue)
    again = queue.claim("worker")
    assert len(naps) == 3 and again and again.folder == folder


def test_a_dead_run_says_from_where_it_goes_on(workspace: Path) -> None:
    folder = ended_run(Workspace.open(workspace), Checkpoint("c", 4))
    (folder / run_folder.PID_FILE).write_text("1:0", encoding="utf-8")
    state = run_folder.read(folder)
    assert state.status == "failed" and state.resumable
    assert "goes on from step 4" in state.advice


@pytest.mark.parametrize(
    ("error", "message", "advice"),
    [
        (OSError(errno.ENOSPC, "no room", "x"), "the disk is full: x", "make room"),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
            "the device failed: cuDNN error",
            "goes on",
        ),
        (
            type("AcceleratorError", (RuntimeError,), {})("lost"),
            "the device failed: lost",
            "goes on",
        ),
    ],
)
def test_what_disk_and_device_do_is_named(
    error: Exception, message: str, advice: str, folder: Path
) -> None:
    *_, told = record(folder, error=error)
    assert isinstance(told, Failed) and message in told.message and advice in told.advice


def test_a_full_disk_loses_no_line_of_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many it did not take; of one it took a part."""

    class Full(io.FileIO):
        full = False

        def write(self, block: Any) -> int:
            if Full.full and len(block) % 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block[:7] if Full.full else block)

    monkeypatch.setattr(
        run_folder, "_open_events", lambda at: Full(at / run_folder.EVENTS_FILE, "a")
    )
    for event in run_folder.record(iter([Step(n, 400, loss=1.0) for n in range(1, 401)]), folder):
        Full.full = isinstance(event, Step) and 2 <= event.step < 399
    assert [step for step, _ in run_folder.read(folder).losses] == [*range(1, 401)]
