"""The server binds first, says what is taken, and leaves the device to the worker."""

import errno
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch import ROOT
from sdlora.errors import BusyError, SettingsError
from sdlora.jobs.queue import Queue
from sdlora.workspace import Workspace
from webui import server


def test_the_page_never_loads_torch(workspace: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from webui import server; "
        "from sdlora.workspace import Workspace; from webui.app_state import AppState; "
        f"server.make_app(AppState(Workspace.open({str(workspace)!r}))); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_taken_port_is_named_and_so_is_a_free_one() -> None:
    taken = server.bind(None)
    port = taken.getsockname()[1]
    with pytest.raises(BusyError, match=rf"port {port} is taken .* is free: --port \d+"):
        server.bind(port)
    other = server.bind(None)
    assert other.getsockname()[1] > port
    for listener in (taken, other):
        listener.close()


@pytest.mark.parametrize("port", [-1, 0, 65_536, 99_999, 2**40])
def test_what_is_no_port_is_not_called_taken(port: int) -> None:
    with pytest.raises(
        SettingsError, match=rf"port {port} is not a port number; use 1024 to 65535"
    ):
        server.bind(port)


def test_a_port_that_this_user_may_not_have_is_not_called_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(SettingsError, match="port 80 is not permitted to this user"):
        server.bind(80)


def test_serve_ends_with_3_when_its_fixed_port_is_taken(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = server.bind(None)
    with taken:
        code = server.serve(Workspace.open(workspace), taken.getsockname()[1])
    assert code == server.PORT_TAKEN == 3
    assert "is taken by another program" in capsys.readouterr().err


def test_two_pages_one_workspace(workspace: Path) -> None:
    """The real command: the second start names the address of the first; Ctrl+C ends the first."""
    code = (
        "import sys; from sdlora.workspace import Workspace; from webui import app_state, server; "
        "app_state.AppState.wake = lambda self: None; "
        f"sys.exit(server.serve(Workspace.open({str(workspace)!r})))"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout
        address = first.stdout.readline().split()[-1]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (second.returncode, address in second.stdout) == (0, True)
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(30) == 0
    assert Queue(Workspace(workspace).database).holder("page") is None
    uploads = Workspace(workspace).uploads
    assert uploads.stat().st_mode & 0o777 == 0o700
