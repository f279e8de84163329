"""Child processes: who they are, and that what a person waits for goes first."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sdlora.processes import NICE, ROOT, alive, end, identity, start_detached, step_back


def test_a_child_in_the_background_steps_back_with_its_whole_session(tmp_path: Path) -> None:
    child = start_detached(["-c", "import time; time.sleep(60)"], tmp_path / "log.txt")
    who = identity(child.pid)
    assert who and alive(who)
    try:
        step_back(child.pid)
        assert psutil.Process(child.pid).nice() == NICE
        group = Path(f"/proc/{child.pid}/autogroup")
        if not group.exists():
            pytest.skip("this system has no autogroups")
        assert group.read_text(encoding="ascii").split()[-1] == str(NICE)
        assert Path("/proc/self/autogroup").read_text(encoding="ascii").split()[-1] != str(NICE)
    finally:
        end(who)
        child.wait(10)
    assert not alive(who)


def test_who_leads_no_session_leaves_the_others_in_it_alone() -> None:
    code = "from sdlora.processes import step_back; step_back()"
    group = Path("/proc/self/autogroup")
    before = group.read_text(encoding="ascii") if group.exists() else ""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (group.read_text(encoding="ascii") if group.exists() else "") == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_is_gone_cannot_be_taken_for_another(tmp_path: Path) -> None:
    child = start_detached(["-c", "pass"], tmp_path / "log.txt")
    who = identity(child.pid) or f"{child.pid}:gone"
    child.wait(30)
    assert not alive(who)
    end(who)
