"""A process that does not answer is noticed, ended and replaced; one that is only slow is not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import FAST, FakeEngine
from launch import ROOT
from sdlora.cli.runs import say_run
from sdlora.events import RunState, Step
from sdlora.jobs import heartbeat, run_folder
from sdlora.jobs.heartbeat import Beat, Heart, Times, Watch, read_beat, silence_and_idleness
from sdlora.jobs.processes import alive, end, identity, release, start_detached
from sdlora.jobs.queue import Queue
from sdlora.jobs.supervise import WorkerKeeper, end_now
from sdlora.settings.train import TrainSettings
from sdlora.worker.worker import Worker
from sdlora.workspace import Workspace
from waiting import wait_until

posix_only = pytest.mark.skipif(os.name != "posix", reason="stops by signal")
QUICK = replace(FAST, silence=0.5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def write_beat(path: Path, count: int, progress: int = 0) -> None:
    beat = Beat("1:x", count, progress, float(count), float(progress))
    path.write_text(json.dumps(vars(beat)), encoding="utf-8")


def watch(path: Path, clock: Clock) -> Watch:
    return Watch(path, Times(beat=5, silence=60, start=120), clock)


def test_a_minute_of_silence_is_no_answer(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "heartbeat"
    write_beat(path, 1)
    watched = watch(path, clock)
    for _ in range(11):
        clock.now += 5
        assert watched.look()
    clock.now += 5
    assert not watched.look() and watched.silent_s == 60
    write_beat(path, 2)
    assert watched.look() and watched.silent_s == 0


def test_time_in_which_the_machine_sleeps_is_not_held_against_it(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "heartbeat"
    write_beat(path, 1)
    watched = watch(path, clock)
    clock.now += 8 * 3600
    assert watched.look() and watched.silent_s == 5


def test_beating_without_progress_never_ends_anything(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "heartbeat"
    write_beat(path, 1, progress=7)
    watched = watch(path, clock)
    for count in range(2, 1000):
        clock.now += 5
        write_beat(path, count, progress=7)
        assert watched.look()
    assert watched.idle_s == 5 * 998
    write_beat(path, 1001, progress=8)
    assert watched.look() and watched.idle_s == 0


def test_what_is_being_loaded_has_longer_for_its_first_beat(tmp_path: Path) -> None:
    clock = Clock()
    watched = watch(tmp_path / "heartbeat", clock)
    for _ in range(23):
        clock.now += 5
        assert watched.look()
    clock.now += 5
    assert not watched.look()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"count": "x"}', b"[" * 99999])
def test_a_damaged_beat_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_bytes(content)
    assert read_beat(tmp_path / "heartbeat") is None
    assert silence_and_idleness(tmp_path / "heartbeat", "1:x") == (0.0, 0.0)


def test_a_heart_beats_by_itself_and_counts_progress(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    with Heart(path, beat_s=0.01) as heart:
        wait_until(lambda: (beat := read_beat(path)) and beat.count > 2)
        heart.advance()
        wait_until(lambda: (beat := read_beat(path)) and beat.progress == 1)
    time.sleep(0.05)
    last = read_beat(path)
    time.sleep(0.05)
    assert read_beat(path) == last, "it has ended"
    assert last and last.process == identity(os.getpid())


def test_a_full_disk_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, path = Clock(), tmp_path / "heartbeat"
    write_beat(path, 1)
    watched = watch(path, clock)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat.os, "write", full)
    for number in range(30):
        clock.now += 5
        os.utime(path, (number, number))
        Heart(path)._write(number)
        assert watched.look()


def test_a_heart_without_its_folder_beats_on_in_silence(tmp_path: Path) -> None:
    with Heart(tmp_path / "gone" / "heartbeat", beat_s=0.01):
        time.sleep(0.03)
    assert not (tmp_path / "gone").exists()


BEATING = """
import os, signal, sys, time
from pathlib import Path
from sdlora.jobs import run_folder as runs
from sdlora.events import Done, Step
def events(folder):
    yield Step(1, 9)
    if not (folder / 'once').exists() or 'always' in sys.argv:
        (folder / 'once').touch()
        while not (folder / runs.HEARTBEAT_FILE).exists():  # else it would have longer
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSTOP)
    yield Done('x')
folder = Path(sys.argv[1])
for _ in runs.record(events(folder), folder, 0.05): pass
"""


def child_worker(space: Workspace, *more: str) -> Worker:
    def command(kind: str, folder: Path, workspace: Workspace) -> list[str]:
        return ["-c", BEATING, str(folder), *more]

    return Worker(
        space, make_engine=FakeEngine, command=command, idle_s=0.05, poll_s=0.02, times=QUICK
    )


def train(space: Workspace, queue: Queue) -> Path:
    return run_folder.start(TrainSettings.from_values({"name": "neon", "data": "x"}), space, queue)


@posix_only
@pytest.mark.parametrize(("more", "status"), [((), "done"), (("always",), "failed")])
def test_a_stopped_child_is_ended_and_begun_anew_once(
    more: tuple[str, ...], status: str, space: Workspace, queue: Queue
) -> None:
    folder = train(space, queue)
    child_worker(space, *more).run()
    state = run_folder.read(folder, queue)
    assert state.status == status
    assert any("did not answer" in warned.message for warned in state.warnings)
    assert ("did not answer" in state.error) == (status == "failed")
    assert [job.status for job in queue.latest("train")] == [status]


@contextmanager
def stopped_process(code: str, *arguments: str) -> Iterator[str]:
    """The identity of a process that stands still once it has said so."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        yield identity(process.pid) or ""
        process.kill()


WORKER = """
import sys, time
from pathlib import Path
from sdlora.jobs.heartbeat import Heart
from sdlora.jobs.queue import Queue
from sdlora.workspace import Workspace
space = Workspace.open(sys.argv[1])
Queue(space.database).acquire_lock('worker')
with Heart(space.worker_heartbeat, 0.05):
    time.sleep(0.2)
    print('ready', flush=True)
    time.sleep(600)
"""


class RecordingKeeper(WorkerKeeper):
    started = 0

    def _start(self) -> None:
        self.started += 1


@posix_only
def test_a_stopped_worker_is_ended_and_replaced(space: Workspace, queue: Queue) -> None:
    keeper = RecordingKeeper(space, queue, QUICK)
    with stopped_process(WORKER, str(space.root)) as worker:
        keeper.wake()
        assert alive(worker) and not keeper.started, "one look ends nothing"
        wait_until(lambda: keeper.wake() or keeper.started)
        assert not alive(worker)


@posix_only
def test_a_command_ends_a_stopped_worker_too(space: Workspace, queue: Queue) -> None:
    keeper = RecordingKeeper(space, queue, QUICK)
    with stopped_process(WORKER, str(space.root)) as worker:
        wait_until(lambda: silence_and_idleness(space.worker_heartbeat, worker)[0] > 0.5)
        assert keeper.replace_silent() and keeper.started == 1 and not alive(worker)


@posix_only
def test_the_second_stop_ends_a_process_that_stands_still(space: Workspace, queue: Queue) -> None:
    folder = train(space, queue)
    queue.cancel(folder)
    with stopped_process("import time; print('ready', flush=True); time.sleep(600)") as process:
        (folder / run_folder.PID_FILE).write_text(process, encoding="utf-8")
        run_folder.append_event(folder, Step(3, 9))
        end_now(folder, queue, QUICK)
        assert not alive(process)
    assert run_folder.read(folder, queue).status == "stopped"


def test_silence_and_want_of_progress_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    from webui.markup import status_line

    going = RunState(status="running", step=3, total=9, seconds_left=3.0)
    for state, words in (
        (replace(going, idle_s=240.0), "no progress for 4 min"),
        (replace(going, silent_s=30.0), "o answer for 30 s"),
    ):
        say_run("neon", state, as_json=False)
        assert words in capsys.readouterr().out and words in status_line(state)
        assert "left" not in status_line(state)


@posix_only
def test_a_run_tells_of_the_silence_of_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in run_folder.record(iter([Step(1, 9)]), folder, 0.01):
        wait_until(lambda: read_beat(folder / run_folder.HEARTBEAT_FILE))
    time.sleep(0.1)
    assert run_folder.read(folder).silent_s > 0.05


@posix_only
def test_a_child_whose_parent_died_before_it_was_known_does_nothing(tmp_path: Path) -> None:
    child = (
        "import sys; from pathlib import Path; from sdlora.jobs.processes import wait_for_release\n"
        "wait_for_release(); Path(sys.argv[1]).touch()"
    )
    parent = (
        "import os, sys; from pathlib import Path; from sdlora.jobs.processes import *\n"
        f"print(start_detached(['-c', {child!r}, sys.argv[1]], Path(sys.argv[2]), held=True).pid)\n"
        "sys.stdout.flush(); os._exit(1)"
    )
    command = [sys.executable, "-c", parent, str(tmp_path / "did"), str(tmp_path / "log")]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    process = identity(int(started.stdout)) or ""
    wait_until(lambda: not alive(process))
    assert not (tmp_path / "did").exists()
    released = start_detached(["-c", child, str(tmp_path / "did")], tmp_path / "log", held=True)
    release(released)
    assert released.wait(60) == 0 and (tmp_path / "did").exists()


@posix_only
def test_a_child_whose_pid_file_is_damaged_is_still_the_owner(
    space: Workspace, queue: Queue
) -> None:
    folder = train(space, queue)
    job = queue.claim("1:dead")
    assert job
    child = start_detached(["-c", "import time; time.sleep(0.5)"], folder / run_folder.LOG_FILE)
    process = identity(child.pid) or ""
    queue.started(job, process)
    (folder / run_folder.PID_FILE).write_bytes(b"\xff")
    try:
        child_worker(space).run()
        assert not alive(process), "it was waited for"
    finally:
        end(process)
        child.wait()
    assert "the process of this work with it" in run_folder.read(folder, queue).error


def test_pictures_are_made_at_the_usual_priority() -> None:
    from sdlora.worker.worker import JOB_PROCESSES

    assert [kind for kind, way in JOB_PROCESSES.items() if way.in_background] == [
        "train",
        "measure",
    ]
