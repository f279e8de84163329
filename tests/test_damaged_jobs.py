"""A damaged job fails alone, with its reason in the queue, and the next one is done."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fakes import FAST, FakeEngine, fake_command, fake_worker
from sdlora.errors import RunError
from sdlora.events import Done, Event, Failed, SampleReady, Step
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Job, Queue
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.worker.worker import Worker
from sdlora.workspace import Workspace

Damage = Callable[[Path, Queue], None]


def in_the_queue(column: str, value: object) -> Damage:
    def damage(folder: Path, queue: Queue) -> None:
        with closing(sqlite3.connect(queue.database)) as connection, connection:
            sql = f"UPDATE jobs SET {column} = ? WHERE folder = ?"
            connection.execute(sql, (value, folder.relative_to(queue.root).as_posix()))

    return damage


def as_folder(name: str) -> Damage:
    def damage(folder: Path, queue: Queue) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def as_endless_link(name: str) -> Damage:
    """Nobody can read or write it, also where permissions are not asked for."""

    def damage(folder: Path, queue: Queue) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return damage


def holding(name: str, content: bytes) -> Damage:
    def damage(folder: Path, queue: Queue) -> None:
        (folder / name).write_bytes(content)

    return damage


def a_file_instead(folder: Path, queue: Queue) -> None:
    shutil.rmtree(folder)
    folder.write_text("x", encoding="utf-8")


# Damage; the reason that the queue tells for a job that waits; '' where it can be done all the same
DAMAGES: dict[str, tuple[Damage, str]] = {
    "folder deleted": (lambda folder, queue: shutil.rmtree(folder), "is gone"),
    "folder is a file": (a_file_instead, "is gone"),
    "events are a folder": (as_folder(run_folder.EVENTS_FILE), "events.jsonl"),
    "events cannot be opened": (as_endless_link(run_folder.EVENTS_FILE), "events.jsonl"),
    "events are no events": (
        holding(run_folder.EVENTS_FILE, b"\xff\xfe\n[[[\n{}\n" + b"[" * 99999),
        "",
    ),
    "pid is a folder": (as_folder(run_folder.PID_FILE), "pid"),
    "pid is not UTF-8": (holding(run_folder.PID_FILE, b"\xff"), ""),
    "pid is an odd number": (holding(run_folder.PID_FILE, "²:1".encode()), ""),
    "stop is not UTF-8": (holding("stop", b"\xff\xff"), ""),
    "log is a folder": (as_folder(run_folder.LOG_FILE), ""),
    "settings deleted": (lambda folder, queue: (folder / "settings.json").unlink(), "settings"),
    "settings garbled": (holding("settings.json", b"\xff{"), "settings"),
    "settings are a folder": (as_folder("settings.json"), "settings"),
    "kind of a later version": (in_the_queue("kind", "dream"), "dream"),
    "kind is no text": (in_the_queue("kind", b"\xff"), "kind"),
    "folder elsewhere": (in_the_queue("folder", "/nowhere/at/all"), "is gone"),
    "folder without a name": (in_the_queue("folder", "jobs/\0"), "gone"),
    "folder is no text": (in_the_queue("folder", b"\xff\xfe"), "is gone"),
}


def images(space: Workspace, queue: Queue, prompt: str = "a ball") -> Path:
    return run_folder.start(
        ImageRequest.from_values({"prompt": prompt, "steps": 2, "seed": 7}), space, queue
    )


def rows(queue: Queue) -> list[Job]:
    return queue._jobs("SELECT * FROM jobs ORDER BY id")


def assert_failed_alone(queue: Queue, fine: Path, reason: str) -> None:
    damaged, after = rows(queue)
    assert (after.folder, after.status) == (fine, "done")
    assert run_folder.read(fine).status == "done"
    if reason:
        assert damaged.status == "failed" and reason in damaged.reason
    else:
        assert not damaged.waits


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_job_that_waits_fails_alone(space: Workspace, queue: Queue, name: str) -> None:
    damage, reason = DAMAGES[name]
    folder, fine = images(space, queue), images(space, queue)
    damage(folder, queue)
    assert fake_worker(space.root, idle_s=0).run() and fake_worker(space.root, idle_s=0.05).run()
    assert_failed_alone(queue, fine, reason)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_job_damaged_while_it_runs_fails_alone(space: Workspace, queue: Queue, name: str) -> None:
    folder, fine = images(space, queue, "first"), images(space, queue)

    class DamagingEngine(FakeEngine):
        def generate(
            self, request: ImageRequest, should_stop: Callable[[], bool] = lambda: False
        ) -> Iterator[Event]:
            if request.prompt == "first":
                yield Step(1, 2)
                DAMAGES[name][0](folder, queue)
                raise RuntimeError("it broke \ud800")
            yield from super().generate(request, should_stop)

    Worker(
        space,
        make_engine=DamagingEngine,
        command=fake_command,
        idle_s=0.05,
        poll_s=0.01,
        times=FAST,
    ).run()
    assert_failed_alone(queue, fine, "")
    assert rows(queue)[0].status == "failed" and rows(queue)[0].reason


@pytest.mark.parametrize("kind", ["generate", "train"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_job_of_a_dead_worker_fails_alone(
    space: Workspace, queue: Queue, name: str, kind: str
) -> None:
    settings = {"name": "neon", "data": "x", "steps": 3}
    folder = (
        images(space, queue)
        if kind == "generate"
        else run_folder.start(TrainSettings.from_values(settings), space, queue)
    )
    job = queue.claim("1:dead")
    assert job
    run_folder.append_event(folder, Step(1, 3))
    (folder / run_folder.PID_FILE).write_text("1:dead", encoding="utf-8")
    fine = images(space, queue)
    DAMAGES[name][0](folder, queue)
    assert fake_worker(space.root, idle_s=0.05).run()
    assert_failed_alone(queue, fine, "")


def test_the_queue_tells_why_where_the_folder_cannot(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    shutil.rmtree(folder)
    fake_worker(space.root, idle_s=0.05).run()
    state = run_folder.read(folder, queue)
    assert state.status == "failed" and "is gone" in state.error


def test_a_request_that_is_done_is_not_made_again(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    queue.claim("1:dead")
    list(run_folder.record([SampleReady("a.png", 0, "a ball", 7), Done("a.png")], folder))
    before = (folder / run_folder.EVENTS_FILE).read_bytes()
    fake_worker(space.root, idle_s=0.05).run()
    assert (folder / run_folder.EVENTS_FILE).read_bytes() == before
    assert [job.status for job in rows(queue)] == ["done"]


def test_a_request_that_was_cancelled_is_not_made_again(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    queue.claim("1:dead")
    run_folder.cancel(folder, queue)
    fake_worker(space.root, idle_s=0.05).run()
    assert run_folder.read(folder).status == "stopped" and not queue.busy()


def test_an_end_is_told_only_once_the_queue_has_decided(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    job = queue.claim("1:dead")
    assert job
    run_folder.append_event(folder, Step(1, 3))
    (folder / run_folder.PID_FILE).write_text("1:dead", encoding="utf-8")
    assert run_folder.read(folder).status == "failed", "nobody else knows of it"
    assert not run_folder.read(folder, queue).ended, "the queue may try again"
    queue.requeue(job)
    assert run_folder.read(folder, queue).status == "queued"
    queue.finish(job, "failed", "it was tried twice")
    assert run_folder.read(folder, queue).error == "it was tried twice"


def test_advice_names_only_a_log_that_says_something(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    (folder / run_folder.PID_FILE).write_text("1:dead", encoding="utf-8")
    assert "log.txt" not in run_folder.read(folder).advice
    (folder / run_folder.LOG_FILE).write_text("Traceback", encoding="utf-8")
    assert "log.txt" in run_folder.read(folder).advice


def test_work_of_a_deleted_queue_is_told_and_can_go_back(space: Workspace, queue: Queue) -> None:
    settings = TrainSettings.from_values({"name": "neon", "data": "x"})
    folder = run_folder.start(settings, space, queue)
    for file in space.root.glob("jobs.db*"):
        file.unlink()
    state = run_folder.read(folder, queue)
    assert state.status == "failed" and "not in the queue" in state.error
    run_folder.resume(folder, queue)
    assert run_folder.read(folder, queue).status == "queued"


def test_a_moved_workspace_is_not_begun_anew_at_its_old_place(
    space: Workspace, queue: Queue
) -> None:
    folder = run_folder.start(
        TrainSettings.from_values({"name": "neon", "data": "x"}), space, queue
    )
    picture = space.outputs / "1.png"
    picture.write_bytes(b"x")
    run_folder.append_event(folder, SampleReady(str(picture), 1, "a", 7))
    moved = space.root.rename(space.root.with_name("moved"))
    (sample,) = run_folder.read(moved / "runs" / "neon").samples
    assert sample.path == str(moved / "outputs" / "1.png")
    with pytest.raises(RunError, match="is gone: it was moved"):
        images(space, queue)
    assert not space.root.exists()


def test_paths_of_earlier_versions_are_found_in_a_moved_workspace(space: Workspace) -> None:
    folder = space.runs / "neon"
    folder.mkdir()
    (space.outputs / "1.png").write_bytes(b"x")
    line = '{"event": "SampleReady", "path": "/old/place/outputs/1.png", "step": 1, "prompt": "a", '
    (folder / run_folder.EVENTS_FILE).write_text(line + '"seed": 7}\n', encoding="utf-8")
    assert run_folder.read(folder).samples[0].path == str(space.outputs / "1.png")


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_what_lost_its_folder_can_be_cancelled(state: str, space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    if state == "running":
        queue.claim("1:dead")
    shutil.rmtree(folder)
    if state == "running":
        with pytest.raises(RunError, match="does not take the request"):
            run_folder.cancel(folder, queue)
        return
    run_folder.cancel(folder, queue)
    assert run_folder.read(folder, queue).status == "stopped"


def test_a_full_disk_is_a_sentence(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomically", full)
    with pytest.raises(RunError, match="No space left on device; make room"):
        run_folder.new_folder(ImageRequest.from_values({"prompt": "x"}), space)


def test_a_failure_names_a_file_that_is_no_text(space: Workspace, queue: Queue) -> None:
    folder = images(space, queue)
    *_, failed = run_folder.record(iter([Failed("a \udcff byte")]), folder)
    assert isinstance(failed, Failed)
    assert run_folder.read(folder).error == "a \xff byte"


def test_a_name_whose_waiting_folder_was_deleted_can_be_taken(
    space: Workspace, queue: Queue
) -> None:
    settings = TrainSettings.from_values({"name": "neon", "data": "x"})
    shutil.rmtree(run_folder.start(settings, space, queue))
    folder = run_folder.start(settings, space, queue)
    assert [job.folder for job in rows(queue) if job.waits] == [folder]
