"""The worker runs each job to an end that is written down, whoever is killed on the way."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fakes import fake_worker
from launch import ROOT
from sdlora.cli.main import main
from sdlora.events import Failed, RunState, Stopped
from sdlora.jobs import run_folder
from sdlora.jobs.control_files import Request, write_request
from sdlora.jobs.kinds import KINDS, MeasureSettings, kind_of
from sdlora.jobs.processes import alive, identity
from sdlora.jobs.queue import Queue
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.worker.tasks import WORK
from sdlora.worker.worker import JOB_PROCESSES
from sdlora.workspace import Workspace
from waiting import wait_until

posix_only = pytest.mark.skipif(os.name != "posix", reason="kills by signal")


def train(space: Workspace, queue: Queue, name: str = "neon", **values: object) -> Path:
    values = {"data": "sets/neon", "steps": 10, "sample_every": 5, **values}
    return run_folder.start(TrainSettings.from_values({"name": name, **values}), space, queue)


def images(space: Workspace, queue: Queue, prompt: str = "a ball", **values: object) -> Path:
    request = ImageRequest.from_values({"prompt": prompt, "steps": 3, "seed": 7, **values})
    return run_folder.start(request, space, queue)


def work(space: Workspace) -> None:
    """Let a worker do what waits, then end."""
    assert fake_worker(space.root, idle_s=0.1).run()


@contextmanager
def worker_process(space: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen([sys.executable, "-m", "fakes", str(space.root)], env=env) as process:
        yield process
        process.kill()


def test_jobs_run_in_order_and_leave_their_results(space: Workspace, queue: Queue) -> None:
    first, second = images(space, queue, count=2), train(space, queue)
    work(space)
    made, trained = run_folder.read(first), run_folder.read(second)
    assert (made.status, len(made.samples)) == ("done", 2)
    assert [sample.seed for sample in made.samples] == [7, 8]
    assert (trained.status, trained.step, len(trained.samples)) == ("done", 10, 2)
    assert made.started_at and trained.started_at and made.started_at < trained.started_at
    assert [job.status for job in (*queue.latest("generate"), *queue.latest("train"))] == [
        "done",
        "done",
    ]
    assert queue.holder("worker") is None and not queue.busy()


@pytest.mark.parametrize(
    ("prompt", "message", "advice"),
    [
        ("no model", "there is no model 'x'; put one into models/", ""),
        ("crash", "RuntimeError: <b>boom</b>", "log.txt"),
    ],
)
def test_a_failing_request_is_told_and_the_next_one_runs(
    space: Workspace, queue: Queue, prompt: str, message: str, advice: str
) -> None:
    failing, fine = images(space, queue, prompt), images(space, queue)
    work(space)
    state = run_folder.read(failing)
    assert (state.status, state.error) == ("failed", message)
    assert advice in state.advice
    assert run_folder.read(fine).status == "done"
    assert [job.status for job in queue.latest("generate")] == ["done", "failed"]


def test_damaged_settings_fail_their_job_only(space: Workspace, queue: Queue) -> None:
    broken, fine = images(space, queue), images(space, queue)
    (broken / run_folder.SETTINGS_FILE).write_text("{", encoding="utf-8")
    work(space)
    assert "cannot be read as settings" in run_folder.read(broken).error
    assert run_folder.read(fine).status == "done"


def test_stop_while_generating_ends_within_a_step(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue, "slow", steps=500)
    with worker_process(space):
        wait_until(lambda: run_folder.read(folder).step > 1)
        run_folder.cancel(folder, queue)
        wait_until(lambda: run_folder.read(folder).ended, within_s=5)
    assert run_folder.read(folder).status == "stopped"


def test_cancel_in_the_queue_is_at_once(space: Workspace, queue: Queue) -> None:
    folder = train(space, queue)
    run_folder.cancel(folder, queue)
    assert run_folder.read(folder).status == "stopped"
    work(space)
    assert run_folder.read(folder).step == 0, "it never ran"


@posix_only
def test_a_killed_training_names_the_signal_and_the_step(space: Workspace, queue: Queue) -> None:
    killed, fine = train(space, queue, trigger_word="kill"), images(space, queue)
    work(space)
    assert run_folder.read(killed).error == "the process died (signal 9) at step 3"
    assert run_folder.read(fine).status == "done"


@posix_only
@pytest.mark.parametrize(("words", "status"), [("kill once", "done"), ("kill", "failed")])
def test_a_killed_training_goes_on_from_its_checkpoint_by_itself_once(
    words: str, status: str, space: Workspace, queue: Queue
) -> None:
    folder, behind = train(space, queue, trigger_word=words), images(space, queue)
    write_request(folder, "save")
    work(space)
    state = run_folder.read(folder)
    assert state.status == status and (state.error != "") == (status == "failed")
    (told,) = [warned.message for warned in state.warnings]
    assert told == "the process died (signal 9) at step 3; it goes on from step 1 by itself"
    assert run_folder.read(behind).status == "done"
    assert [job.status for job in queue.latest("train")] == [status]


@posix_only
@pytest.mark.parametrize("wish", ["stop", "pause"])
def test_a_killed_training_that_was_asked_to_end_does_not_go_on(
    wish: Request, space: Workspace, queue: Queue
) -> None:
    folder = train(space, queue, trigger_word="stubborn", steps=5000)
    write_request(folder, "save")
    with worker_process(space):
        wait_until(lambda: run_folder.read(folder).checkpoint)
        pid = int((folder / run_folder.PID_FILE).read_text("utf-8").partition(":")[0])
        os.kill(pid, signal.SIGSTOP)
        write_request(folder, wish)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not queue.busy())
    assert run_folder.read(folder).status == "failed" and run_folder.read(folder).resumable


def test_a_training_that_cannot_even_start_fails(space: Workspace, queue: Queue) -> None:
    folder = train(space, queue)
    worker = fake_worker(space.root, idle_s=0.1)
    worker.command = lambda *_: ["-c", "import nothing_of_this_name"]
    worker.run()
    assert "died (exit code 1)" in run_folder.read(folder).error
    assert "nothing_of_this_name" in (folder / run_folder.LOG_FILE).read_text("utf-8")


def test_stop_now_ends_a_stubborn_training_and_keeps_what_it_saved(
    space: Workspace, queue: Queue
) -> None:
    folder = train(space, queue, trigger_word="stubborn", steps=5000)
    with worker_process(space):
        wait_until(lambda: run_folder.read(folder).result)
        run_folder.stop(folder, now=True)
        wait_until(lambda: run_folder.read(folder).ended, within_s=15)
        wait_until(lambda: not queue.busy())
    state = run_folder.read(folder)
    assert state.status == "stopped" and state.result.endswith("neon.safetensors")


@posix_only
def test_a_training_outlives_its_worker_and_is_adopted(space: Workspace, queue: Queue) -> None:
    folder, behind = train(space, queue, steps=150), images(space, queue)
    with worker_process(space) as first:
        wait_until(lambda: run_folder.read(folder).step > 2)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert run_folder.read(folder).status == "running", "the child goes on without its worker"
    work(space)
    state = run_folder.read(folder)
    assert (state.status, state.step) == ("done", 150)
    assert len({step for step, _ in state.losses}) == 150, "no step was done twice"
    later = run_folder.read(behind)
    assert later.status == "done" and later.started_at
    assert later.started_at > (folder / run_folder.EVENTS_FILE).stat().st_mtime - 0.5, "it waited"


@posix_only
def test_a_training_that_died_with_its_worker_is_told(space: Workspace, queue: Queue) -> None:
    folder = train(space, queue, steps=5000)
    with worker_process(space) as first:
        wait_until(lambda: run_folder.read(folder).step > 2)
        child = (folder / run_folder.PID_FILE).read_text("utf-8")
        first.send_signal(signal.SIGKILL)
        os.kill(int(child.partition(":")[0]), signal.SIGKILL)
    wait_until(lambda: not alive(child))
    work(space)
    assert (
        "the worker died, and the process of this work with it at step"
        in run_folder.read(folder).error
    )
    assert [job.status for job in queue.latest("train")] == ["failed"]


@posix_only
def test_a_request_that_kills_workers_is_given_up(space: Workspace, queue: Queue) -> None:
    killer, fine = images(space, queue, "kill"), images(space, queue)
    for _ in range(2):
        with worker_process(space) as process:
            assert process.wait() == -signal.SIGKILL
    work(space)
    assert run_folder.read(killer).error == (
        "the worker died or did not answer over this request, 2 times"
    )
    assert run_folder.read(fine).status == "done"


def test_every_kind_of_work_has_settings_of_its_own_and_a_way_to_be_done(space: Workspace) -> None:
    assert KINDS.keys() == JOB_PROCESSES.keys() and WORK.keys() == KINDS.keys() - {"generate"}
    assert len({row.settings for row in KINDS.values()}) == len(KINDS)
    settings = MeasureSettings.from_values({"name": "neon", "data": "x"})
    assert kind_of(settings) == "measure"
    assert run_folder.new_folder(settings, space).parent == space.jobs


def test_a_measurement_is_done_apart_and_can_be_stopped(space: Workspace, queue: Queue) -> None:
    values = {"name": "neon", "data": "sets/neon", "steps": 100}
    whole = run_folder.start(MeasureSettings.from_values(values), space, queue)
    slow = run_folder.start(
        MeasureSettings.from_values({**values, "trigger_word": "slow"}), space, queue
    )
    fine = images(space, queue)
    with worker_process(space):
        wait_until(lambda: run_folder.read(slow).phase_done)
        run_folder.cancel(slow, queue)
        wait_until(lambda: run_folder.read(fine).ended)
    state = run_folder.read(whole)
    assert state.status == "done" and state.measured and state.measured.training_s == 50
    assert (run_folder.read(slow).status, run_folder.read(slow).measured) == ("stopped", None)
    assert run_folder.read(fine).status == "done"
    assert not run_folder.run_folders(space.runs), "it is no training"


def test_a_comparison_is_left_to_the_worker_that_owns_the_device(
    space: Workspace, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(space, queue, steps=2, sample_every=0)
    line = ["runs", "grid", "neon", "--workspace", str(space.root), "--prompts", "a house"]
    with worker_process(space):
        wait_until(lambda: run_folder.read(folder).ended)
        assert main(line) == 0
        wait_until(lambda: not queue.busy())
    said = capsys.readouterr()
    assert "the page's worker draws it" in said.err
    (its,) = run_folder.run_folders(folder / "grids")
    assert said.out.strip() == str(its / "grid.png")
    assert [job.status for job in queue.latest("grid")] == ["done"]
    assert main(["runs", "show", "neon", "--workspace", str(space.root)]) == 0
    assert f"comparison: {its / 'grid.png'}" in capsys.readouterr().out


def test_one_worker_per_workspace(space: Workspace, queue: Queue) -> None:
    with worker_process(space) as process:
        wait_until(lambda: queue.holder("worker"))
        assert not fake_worker(space.root).run(), "there is one already"
        seat = queue.holder("worker")
        assert seat and seat.holder == identity(process.pid)


def test_an_idle_worker_waits_as_long_as_there_is_a_page(space: Workspace, queue: Queue) -> None:
    queue.acquire_lock("page", "http://127.0.0.1:1")
    thread = threading.Thread(target=fake_worker(space.root, idle_s=0.2).run)
    thread.start()
    thread.join(0.6)
    assert thread.is_alive()
    queue.release_lock("page")
    thread.join(5)
    assert not thread.is_alive()


def test_a_sudden_end_is_not_mistaken_for_one_with_words(space: Workspace, queue: Queue) -> None:
    folder = train(space, queue)
    (folder / run_folder.PID_FILE).write_text("1:0", encoding="utf-8")
    assert "ended without a word" in run_folder.read(folder).error
    run_folder.append_event(folder, Stopped("lora", 4))
    assert run_folder.read(folder) == RunState(status="stopped", result="lora")
    assert isinstance(run_folder.failure(MemoryError("x"), None, folder), Failed)
