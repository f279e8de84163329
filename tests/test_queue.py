"""The queue hands each job out once, in order, whoever asks and whoever dies."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import ROOT
from sdlora.errors import SettingsError
from sdlora.jobs.queue import Job, Queue

CLAIM_ALL = """
import sys
from pathlib import Path
from sdlora.jobs.queue import Queue
queue = Queue(Path(sys.argv[1]))
while job := queue.claim(sys.argv[2]):
    print(job.id)
"""


@pytest.fixture
def queue(workspace: Path) -> Queue:
    return Queue(workspace / "jobs.db")


def submit(queue: Queue, count: int) -> list[Job]:
    return [queue.submit("generate", queue.root / f"jobs/{n}") for n in range(count)]


def claim_in_processes(queue: Queue, processes: int) -> list[list[int]]:
    """What each of several processes got, all of them claiming until nothing is left."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_ALL, str(queue.database), f"worker {n}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(processes)
    ]
    return [[int(n) for n in process.communicate()[0].split()] for process in started]


def test_first_in_first_out(queue: Queue) -> None:
    first, second, third = submit(queue, 3)
    assert [queue.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    claimed = queue.claim("me")
    assert claimed and (claimed.id, claimed.status, claimed.tries) == (first.id, "running", 1)
    assert queue.ahead(second) == 1, "the running job is still ahead"
    queue.finish(first, "done")
    assert queue.ahead(second) == 0
    assert [job.id for job in queue.latest("generate")] == [third.id, second.id, first.id]
    assert not queue.latest("train")


def test_several_processes_claim_each_job_once(queue: Queue) -> None:
    jobs = submit(queue, 60)
    got = claim_in_processes(queue, 3)
    assert sorted(n for one in got for n in one) == [job.id for job in jobs]
    assert all(one == sorted(one) for one in got), "each saw its jobs in the order of the queue"
    assert queue.claim("late") is None


def test_threads_submit_and_open_together(workspace: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: Queue(workspace / "jobs.db"), range(8)))
        ids = list(pool.map(lambda n: opened[n % 8].submit("train", workspace / f"{n}"), range(40)))
    assert len({job.id for job in ids}) == 40
    assert opened[0].busy()


def test_cancel_takes_only_what_waits(queue: Queue) -> None:
    first, second = submit(queue, 2)
    queue.claim("me")
    assert not queue.cancel(first.folder), "it runs already"
    assert queue.cancel(second.folder)
    assert not queue.cancel(second.folder), "it is gone already"
    assert queue.claim("me") is None
    again = queue.job_of(second.folder)
    assert again and again.status == "cancelled"
    assert not queue.cancel(queue.root / "never submitted")


def test_work_of_a_dead_worker_is_found_and_requeued_in_place(queue: Queue) -> None:
    first, second = submit(queue, 2)
    queue.claim("dead")
    assert queue.left_running_by_others("dead") == []
    (lost,) = queue.left_running_by_others("me")
    queue.requeue(lost)
    again = queue.claim("me")
    assert again and (again.id, again.tries) == (first.id, 2), "before the one that came later"


def test_a_seat_has_one_holder_until_it_dies(queue: Queue) -> None:
    assert queue.holder("worker") is None
    assert queue.acquire_lock("worker", "here") is None
    assert queue.acquire_lock("worker", "moved") is None, "mine stays mine"
    code = "import sys; from pathlib import Path; from sdlora.jobs.queue import Queue; "
    code += "print(Queue(Path(sys.argv[1])).acquire_lock(sys.argv[2], 'http://there'))"

    def other_takes(role: str) -> str:
        command = [sys.executable, "-c", code, str(queue.database), role]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    assert str(os.getpid()) in other_takes("worker") and "moved" in other_takes("worker")
    queue.release_lock("worker")
    assert other_takes("worker") == "None", "free, so the other got it"
    assert queue.holder("worker") is None, "the other is dead by now"
    assert queue.acquire_lock("worker") is None


def test_folder_moves_with_its_workspace(workspace: Path) -> None:
    Queue(workspace / "jobs.db").submit("train", workspace / "runs" / "neon")
    moved = workspace.rename(workspace.with_name("moved there"))
    (job,) = Queue(moved / "jobs.db").latest("train")
    assert job.folder == moved / "runs" / "neon"


def test_a_file_that_is_no_queue_is_named(workspace: Path) -> None:
    (workspace / "jobs.db").write_text("not a database " * 100, encoding="utf-8")
    with pytest.raises(SettingsError, match="jobs.db cannot be used"):
        Queue(workspace / "jobs.db")
