"""Child processes: who they are, and that what a person waits for goes first."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from sdlora.jobs.processes import NICE, ROOT, alive, end, identity, lower_priority, start_detached


def _autogroup(pid: int | str = "self") -> str:
    """'/autogroup-123 nice 10'; '' without the feature, and in what never became a session."""
    file = Path(f"/proc/{pid}/autogroup")
    return file.read_text(encoding="ascii") if file.exists() else ""


def test_a_child_in_the_background_steps_back_with_its_whole_session(tmp_path: Path) -> None:
    child = start_detached(["-c", "import time; time.sleep(60)"], tmp_path / "log.txt")
    who = identity(child.pid)
    assert who and alive(who)
    try:
        lower_priority(child.pid)
        assert psutil.Process(child.pid).nice() == NICE
        group = _autogroup(child.pid)
        if not group:
            pytest.skip("this system gives no session a share of its own")
        assert group.split()[-1] == str(NICE)
        assert _autogroup() != group
    finally:
        end(who)
        child.wait(10)
    assert not alive(who)


def test_who_leads_no_session_leaves_the_others_in_it_alone() -> None:
    code = "from sdlora.jobs.processes import lower_priority; lower_priority()"
    before = _autogroup()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert _autogroup() == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_is_gone_cannot_be_taken_for_another(tmp_path: Path) -> None:
    child = start_detached(["-c", "pass"], tmp_path / "log.txt")
    who = identity(child.pid) or f"{child.pid}:gone"
    child.wait(30)
    assert not alive(who)
    end(who)


def test_a_killed_process_is_gone_when_its_end_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start_detached(["-c", "import time; time.sleep(60)"], tmp_path / "log.txt")
    who, kill = identity(child.pid) or "", psutil.Process.kill
    monkeypatch.setattr(psutil.Process, "terminate", lambda _: None)  # one that does not listen
    # a busy system takes a moment to do away with it
    late = lambda process: threading.Timer(0.3, kill, [process]).start()  # noqa: E731
    monkeypatch.setattr(psutil.Process, "kill", late)
    end(who, wait_s=1.0)
    assert not alive(who)
    child.wait(10)
