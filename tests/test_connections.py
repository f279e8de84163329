"""Requests that never come to their end, and uploads, against the server as it is served."""

import asyncio
import http.client
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn

from page_client import StudioWithoutWorker
from sdlora.workspace import Workspace
from webui import connections, guards, server, uploads
from webui.uploads import MIB, discard, empty_uploads, sweep_uploads, waiting_bytes


@pytest.fixture
def space(workspace: Path) -> Workspace:
    space = Workspace.open(workspace)
    empty_uploads(space.uploads)
    return space


@pytest.fixture
def port(space: Workspace) -> Iterator[int]:
    """The page, served."""
    app = server.make_app(StudioWithoutWorker(space))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = uvicorn.Server(server._config(app))
    thread = threading.Thread(target=lambda: asyncio.run(serving.serve([listener])))
    thread.start()
    yield listener.getsockname()[1]
    serving.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


def get(port: int, path: str = "/theme.css") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": f"127.0.0.1:{port}"})
    status = connection.getresponse().status
    connection.close()
    return status


def begun(port: int, start: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(start.format(port=port).encode())
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


HALF_SENT = {
    "nothing": "",
    "head": "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX: ",
    "body": "POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    "Content-Length: 1000\r\n\r\n{{",
    "upload": "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n",
}


@pytest.mark.parametrize("kind", HALF_SENT)
def test_half_sent_requests_never_keep_a_browser_out(port: int, kind: str) -> None:
    """1,100 of them: more than a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    waiting: list[socket.socket] = []
    try:
        for number in range(1100):
            waiting.append(begun(port, HALF_SENT[kind]))
            if number % 200 == 0:
                assert get(port) == 200
        began = time.monotonic()
        assert get(port) == 200
        assert time.monotonic() - began < 25
        assert all(map(is_closed, waiting[: 1100 - connections.MAX_CONNECTIONS]))
    finally:
        for connection in waiting:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", HALF_SENT)
def test_a_half_sent_request_ends(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    monkeypatch.setattr(guards, "PAUSE_S", 0.3)
    port = request.getfixturevalue("port")
    assert is_closed(begun(port, HALF_SENT[kind]))
    assert waiting_bytes(space.uploads) == 0


def test_a_second_head_on_a_connection_has_its_time_too(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    port = request.getfixturevalue("port")
    connection = begun(port, "GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET / HT")
    assert is_closed(connection)


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def multipart(head: str, size: int) -> tuple[str, Iterator[bytes]]:
    start = f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
    end = b"\r\n--x--\r\n"

    def pieces() -> Iterator[bytes]:
        yield start
        for _ in range(size // MIB):
            yield b"a" * MIB
        yield end

    return str(len(start) + size + len(end)), pieces()


def upload(port: int, head: str, size: int) -> tuple[int, str]:
    """(status, answer) of an upload; status 0: the server hung up in the middle."""
    length, pieces = multipart(head, size)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": length}
    with suppress(ConnectionError):  # it does not want to hear the rest; the answer may be there
        connection.request("POST", "/gradio_api/upload", pieces, headers)
    try:
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (ConnectionError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("head", ['name="files"', 'name="x"', 'name=""'])
def test_a_field_that_is_no_file_costs_no_memory(port: int, space: Workspace, head: str) -> None:
    get(port)
    before = resident_mib()
    status, said = upload(port, head, 300 * MIB)
    assert (status, said) in [(400, "only files are taken here, each with its name"), (0, "")]
    assert resident_mib() - before < 32
    assert waiting_bytes(space.uploads) == 0 and get(port) == 200


def test_an_upload_that_is_cut_off_leaves_nothing(port: int, space: Workspace) -> None:
    head = 'Content-Disposition: form-data; name="files"; filename="a.png"'
    start = HALF_SENT["upload"].replace("Content-Length: 1000", "Content-Length: 9000000")
    connection = begun(port, f"{start}{head}\r\n\r\n{'a' * 2_000_000}")
    assert waits_for(lambda: waiting_bytes(space.uploads) > MIB)
    connection.close()
    assert waits_for(lambda: waiting_bytes(space.uploads) == 0)


def waits_for(condition: object, timeout_s: float = 10) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_uploads_have_a_quota(port: int, space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_WAITING_MIB", 4)
    for number in range(3):
        assert upload(port, f'name="files"; filename="{number}.png"', number * MIB)[0] == 200
    status, said = upload(port, 'name="files"; filename="more.png"', 2 * MIB)
    assert status in (0, 413) and (not said or "4 MiB of unused uploads already" in said)
    sweep_uploads(space.uploads, unused_s=-1)
    assert list(space.uploads.iterdir()) == []
    assert upload(port, 'name="files"; filename="more.png"', 2 * MIB)[0] == 200


def test_what_is_not_used_goes_after_a_while(space: Workspace) -> None:
    old, new = space.uploads / "a" / "old.png", space.uploads / "b" / "new.png"
    for path in (old, new):
        path.parent.mkdir()
        path.touch()
    for path in (old, old.parent):
        os.utime(path, (0, 0))
    sweep_uploads(space.uploads)
    assert not old.exists() and new.exists()
    os.utime(old.parent, (0, 0)) if old.parent.exists() else None
    sweep_uploads(space.uploads)
    assert not old.parent.exists()
    outside = space.root / "mine.png"
    outside.touch()
    discard([new, outside], space.uploads)
    assert not new.parent.exists() and outside.exists()


@pytest.mark.parametrize("gone", [True, False])
def test_a_disk_that_takes_no_upload_is_said(
    port: int, space: Workspace, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gone:
        space.root.rename(space.root.with_name("moved"))
    else:
        free = shutil_usage(100 * MIB)
        monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: free)
    status, said = upload(port, 'name="files"; filename="a.png"', MIB)
    assert status == 507
    assert ("workspace folder is gone" if gone else "the disk has 100 MiB left") in said
    assert not gone or not space.root.exists()


def shutil_usage(free: int) -> object:
    import shutil

    return shutil._ntuple_diskusage(free, 0, free)  # type: ignore[attr-defined]
