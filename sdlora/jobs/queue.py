"""The durable queue: one SQLite file that the page, the command and the worker share.

A job is a kind of work and the folder that holds its settings and will hold its events. Each change
is one SQL statement, so it happens whole or not at all, whoever is killed meanwhile. *Seats* say
which process is the worker, which downloads and which is the page: one each per workspace, free
again when the process that holds it is gone. Downloads are a line of their own: the worker never
takes one, and the downloader nothing else.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sdlora.errors import BusyError, RunError, SettingsError
from sdlora.jobs.kinds import Kind, WorkerRole, role_of
from sdlora.jobs.processes import alive, identity
from sdlora.messages import PerSurface, readable
from sdlora.workspace import workspace_gone_error

Role = Literal["worker", "downloader", "page"]

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    folder TEXT NOT NULL UNIQUE,            -- relative to the workspace, so that it can be moved
    status TEXT NOT NULL DEFAULT 'queued',  -- running, then done, stopped, failed or cancelled
    worker TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 0,
    submitted_at REAL NOT NULL,
    process TEXT NOT NULL DEFAULT '',       -- that does it, where the worker started one
    reason TEXT NOT NULL DEFAULT ''         -- of its failure, also where its folder cannot hold it
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, id);
CREATE TABLE IF NOT EXISTS seats (role TEXT PRIMARY KEY, holder TEXT NOT NULL, note TEXT NOT NULL);
"""
_LATER_COLUMNS = ("process", "reason")  # that databases of earlier versions lack
WAITING = ("queued", "running")
_OF_ROLE: dict[WorkerRole, str] = {
    "worker": "kind != 'download'",
    "downloader": "kind = 'download'",
}


@dataclass(frozen=True)
class Job:
    """One piece of work. `id` orders the queue: clocks jump, ids do not."""

    id: int
    kind: str  # a `Kind`, or one of another version
    folder: Path
    status: str
    worker: str
    tries: int
    submitted_at: float
    process: str = ""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """True until the queue has decided how it ended."""
        return self.status in WAITING


@dataclass(frozen=True)
class ProcessLock:
    """Lock on a role (worker or page): the identity of the process that holds it, and a note for
    others, such as its address."""

    holder: str
    note: str


class Queue:
    """First-in, first-out queue of jobs; each job is claimed once. Safe from any process and
    thread."""

    def __init__(self, database: Path) -> None:
        """SettingsError when the file is there and is not a database of ours."""
        self.database = database
        self.root = database.parent
        try:
            self._make_tables()
        except sqlite3.DatabaseError as error:
            raise SettingsError(
                "the queue {file} cannot be used ({why}); move the file away and start again, or "
                "choose another folder{how}",
                file=database,
                why=error,
                how=PerSurface(" with --workspace DIR", ""),
            ) from None

    def _make_tables(self) -> None:
        with closing(self._connect()) as connection:
            connection.executescript(_SCHEMA)
            columns = {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}
            for name in _LATER_COLUMNS:
                if name not in columns:
                    # another process may be doing the same at this moment
                    with suppress(sqlite3.OperationalError):
                        connection.execute(
                            f"ALTER TABLE jobs ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"
                        )

    def submit(self, kind: Kind, folder: Path) -> Job:
        """Put work at the end of the queue. `folder` is in the workspace, its settings written.
        Work that has ended may be put there again. BusyError: it waits or runs already."""
        place = self._place(folder)
        submitted = self._jobs(
            "INSERT OR REPLACE INTO jobs (kind, folder, submitted_at) SELECT ?, ?, ? WHERE NOT "
            "EXISTS (SELECT 1 FROM jobs WHERE folder = ? AND status IN ('queued', 'running')) "
            "RETURNING *",
            *(kind, place, time.time(), place),
        )
        if not submitted:
            raise BusyError("{run} waits in the queue or runs already", run=place)
        return submitted[0]

    def claim(self, worker: str, role: WorkerRole = "worker") -> Job | None:
        """The first job that waits for this role, now this worker's; None when nothing waits."""
        claimed = self._jobs(
            "UPDATE jobs SET status = 'running', worker = ?, tries = tries + 1 WHERE id = (SELECT "
            f"id FROM jobs WHERE status = 'queued' AND {_OF_ROLE[role]} ORDER BY id LIMIT 1) "
            "RETURNING *",
            worker,
        )
        return claimed[0] if claimed else None

    def started(self, job: Job, process: str) -> None:
        """Another process than the worker does it: its identity."""
        self._run("UPDATE jobs SET process = ? WHERE id = ?", process, job.id)

    def finish(self, job: Job, status: str, reason: str = "") -> None:
        """The work has ended, in the way `status` says; a failure for a `reason`."""
        sql = "UPDATE jobs SET status = ?, reason = ? WHERE id = ?"
        self._run(sql, status, readable(reason), job.id)

    def cancel(self, folder: Path) -> bool:
        """Take the folder's job out of the queue; False when it does not wait there any more."""
        return bool(
            self._run(
                "UPDATE jobs SET status = 'cancelled' "
                "WHERE folder = ? AND status = 'queued' RETURNING id",
                self._place(folder),
            )
        )

    def requeue(self, job: Job) -> None:
        """Let a job whose worker died wait again, at its old place."""
        sql = "UPDATE jobs SET status = 'queued', worker = '', process = '' WHERE id = ?"
        self._run(sql, job.id)

    def left_running_by_others(self, worker: str, role: WorkerRole = "worker") -> list[Job]:
        """Jobs of a role marked as running that are not this worker's."""
        running = f"SELECT * FROM jobs WHERE status = 'running' AND {_OF_ROLE[role]}"
        return self._jobs(f"{running} AND worker != ?", worker)

    def job_of(self, folder: Path) -> Job | None:
        """The job that a folder belongs to; None for a run that was started without the queue."""
        jobs = self._jobs("SELECT * FROM jobs WHERE folder = ?", self._place(folder))
        return jobs[0] if jobs else None

    def ahead(self, job: Job) -> int:
        """Return the number of jobs before this one, the running one included."""
        waiting = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running') AND id < ?"
        return int(self._run(f"{waiting} AND {_OF_ROLE[role_of(job.kind)]}", job.id)[0][0])

    def busy(self, role: WorkerRole = "worker") -> bool:
        """True while a job of a role waits or runs."""
        waiting = "SELECT 1 FROM jobs WHERE status IN ('queued', 'running')"
        return bool(self._run(f"{waiting} AND {_OF_ROLE[role]} LIMIT 1"))

    def latest(self, kind: Kind, limit: int = 20) -> list[Job]:
        """The newest jobs of a kind, newest first."""
        return self._jobs("SELECT * FROM jobs WHERE kind = ? ORDER BY id DESC LIMIT ?", kind, limit)

    def acquire_lock(self, role: Role, note: str = "") -> ProcessLock | None:
        """Make this process the workspace's worker or page. Returns None, or the lock of the living
        process that has the role already."""
        me = identity(os.getpid()) or ""
        while True:
            lock = self._lock(role)
            if lock and lock.holder != me and alive(lock.holder):
                return lock
            took = self._run(
                "INSERT INTO seats VALUES (?, ?, ?) ON CONFLICT (role) DO UPDATE "
                "SET holder = excluded.holder, note = excluded.note WHERE holder = ? RETURNING 1",
                *(role, me, note, lock.holder if lock else ""),
            )
            if took:
                return None

    def release_lock(self, role: Role) -> None:
        """Release the lock, if it is this process's."""
        me = identity(os.getpid()) or ""
        self._run("DELETE FROM seats WHERE role = ? AND holder = ?", role, me)

    def holder(self, role: Role) -> ProcessLock | None:
        """Return the lock of the living process in a role; None when it is free."""
        lock = self._lock(role)
        return lock if lock and alive(lock.holder) else None

    def _lock(self, role: Role) -> ProcessLock | None:
        rows = self._run("SELECT holder, note FROM seats WHERE role = ?", role)
        return ProcessLock(*rows[0]) if rows else None

    def _place(self, folder: Path) -> str:
        """Return a folder's path in the queue, below the workspace. RunError: it has none."""
        try:
            place = folder.relative_to(self.root).as_posix()
            place.encode()
        except ValueError:  # an encoding error is one too
            raise RunError(
                "{folder} cannot be in the queue of {root}: its folder has to lie there, under a "
                "name in UTF-8; rename it",
                folder=folder,
                root=self.root,
            ) from None
        return place

    def _jobs(self, sql: str, *values: Any) -> list[Job]:
        known = {field.name for field in fields(Job)}  # a newer version may have more columns
        rows = [dict(row) for row in self._run(sql, *values)]
        rows = [{name: value for name, value in row.items() if name in known} for row in rows]
        return [Job(**{**row, "folder": self.root / _text(row["folder"])}) for row in rows]

    def _run(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        try:
            return self._execute(sql, values)
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise self._unusable(error) from None
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None
        try:
            self._make_tables()  # somebody has deleted the file meanwhile
            return self._execute(sql, values)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with closing(self._connect()) as connection:
            return connection.execute(sql, values).fetchall()

    def _unusable(self, error: sqlite3.DatabaseError) -> RunError:
        if not self.root.is_dir():
            return workspace_gone_error(self.root)
        return RunError("the queue {file} cannot be used: {why}", file=self.database, why=error)

    def _connect(self) -> sqlite3.Connection:
        # No isolation level: a statement is its own transaction, on the disk when it returns.
        connection = sqlite3.connect(self.database, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        return connection


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
