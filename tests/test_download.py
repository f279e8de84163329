"""Downloads end with the very file that was promised or with a sentence, and go on."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from downloader import CONTENT, FILE, Downloader, left, source_of
from launch import ROOT
from model_server import (
    COMMIT,
    Fault,
    ModelServer,
    safetensors_bytes,
    sha256,
)
from sdlora.assets import transfer
from sdlora.assets.download_clock import Retries
from sdlora.cli.main import main
from sdlora.errors import BusyError, DownloadError
from sdlora.events import BytesReceived, Progress, Started, Stopped
from sdlora.jobs import run_folder
from sdlora.jobs.processes import identity
from sdlora.workspace import Workspace
from waiting import wait_until


def test_a_file_at_an_address_is_downloaded(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT)
    path = downloads.get(f"{server.url}{FILE}?X-Signature=abc")
    assert path == downloads.space.models / "ink.safetensors" and path.read_bytes() == CONTENT
    assert left(path.parent) == ["ink.safetensors", "ink.source.json"]
    row = source_of(path)
    assert (row["url"], row["sha256"]) == (f"{server.url}{FILE}", sha256(CONTENT))
    assert row["verified"] is False, "nobody has said what its hash should be"
    (started,) = (event for event in downloads.events if isinstance(event, Started))
    assert started.details["size"] == "0.2 MiB" and started.details["to"] == str(path)
    assert "X-Signature" not in downloads.text() + json.dumps(row)


def test_the_size_comes_before_the_bytes_and_progress_after(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "REPORT_EVERY_S", 0.0)
    server.add(FILE, CONTENT)
    downloads.get(server.url + FILE)
    counts = [event for event in downloads.events if isinstance(event, BytesReceived)]
    assert counts[-1].done == counts[-1].total == len(CONTENT) and counts[-1].bytes_per_s > 0
    assert [event.done for event in counts] == sorted({event.done for event in counts})
    assert counts[-1].seconds_left == 0 and "0.2 MiB of 0.2 MiB" in counts[-1].what


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut_at=70_000),
        Fault(cut_at=70_000, without_length=True),
        Fault(503),
        Fault(500),
        Fault(429, {"Retry-After": "7"}),
        Fault(cut_at=1),
    ],
)
def test_a_broken_transfer_goes_on(
    server: ModelServer, downloads: Downloader, fault: Fault
) -> None:
    server.add(FILE, CONTENT, fault, Fault(cut_at=20_000))
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    if fault.cut_at:
        resumed = server.of(FILE)[-1].headers
        assert server.ranges(FILE)[1:] == [f"bytes={n}-" for n in _ends(fault)]
        assert resumed["if-range"] == '"one"'


def _ends(fault: Fault) -> list[int]:
    return [fault.cut_at, fault.cut_at + 20_000]


def test_waits_are_as_long_as_the_server_asks(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT, *[Fault(429, {"Retry-After": "120"})] * 2)
    downloads.get(server.url + FILE)
    assert downloads.clock.waits == 240
    assert any("asks to wait 120 s" in e.what for e in downloads.events if isinstance(e, Progress))
    server.add(FILE, CONTENT, Fault(429, {"Retry-After": "86400"}))
    assert "wants fewer requests (429) and asks to wait 86400 s" in downloads.refused(
        server.url + FILE
    )


def test_a_server_that_stays_down_is_given_up_and_the_part_stays(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=90_000), *[Fault(502)] * 7)
    assert "has a fault of its own (502)" in downloads.refused(server.url + FILE)
    part = downloads.space.models / "ink.safetensors.part"
    assert part.read_bytes() == CONTENT[:90_000] and downloads.clock.waits > 60
    server.requests.clear()
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    assert server.ranges(FILE) == ["bytes=90000-"], "the next try goes on from there"
    assert left(downloads.space.models) == ["ink.safetensors", "ink.source.json"]


def test_a_file_that_always_breaks_off_at_one_place_is_given_up(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT, *[Fault(cut_at=50_000)] * 20, ranges=False)
    assert "broke off" in downloads.refused(server.url + FILE)
    assert len(server.of(FILE)) < 12


def test_a_server_that_ignores_ranges_begins_anew(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=70_000), ranges=False)
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    assert any("does not go on where ink.safetensors ended" in w for w in downloads.warnings())


def test_a_file_that_changed_meanwhile_begins_anew(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=70_000), *[Fault(502)] * 8)
    downloads.refused(server.url + FILE)
    newer = safetensors_bytes(seed=2)
    server.add(FILE, newer, etag='"two"')
    assert downloads.get(server.url + FILE).read_bytes() == newer
    assert server.of(FILE)[-1].headers["if-range"] == '"one"', "so the server sends all of it"


def test_an_etag_that_changes_within_one_process(
    server: ModelServer, downloads: Downloader
) -> None:
    served = server.add(FILE, CONTENT, Fault(cut_at=70_000, etag='W/"weak"'), etag='W/"weaker"')
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    assert "if-range" not in server.of(FILE)[-1].headers, "a weak ETag cannot be compared"
    assert server.ranges(FILE) == ["", "bytes=70000-", ""], "it changed, so all was asked for again"
    assert not served.faults


@pytest.mark.parametrize("given", ["bytes 0-99/200061", "bytes 5-9/*", "nonsense", "bytes 1-2/3"])
def test_another_range_than_asked_for_is_not_taken(
    server: ModelServer, downloads: Downloader, given: str
) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=70_000), Fault(content_range=given))
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT


def test_a_range_beyond_the_end_begins_anew(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=150_000), *[Fault(502)] * 8)
    downloads.refused(server.url + FILE)
    shorter = safetensors_bytes(90_000)
    server.add(FILE, shorter)
    assert downloads.get(server.url + FILE).read_bytes() == shorter


def test_lies_about_the_size(server: ModelServer, downloads: Downloader) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    path = f"/me/ink/resolve/{COMMIT}/ink.safetensors"
    server.files[path].content = CONTENT + b"more"
    said = downloads.refused("me/ink")
    assert f"sends {len(CONTENT) + 4} bytes as ink.safetensors, which should have" in said
    server.files[path].content = CONTENT
    server.files[path].faults.append(Fault(extra=b"tail", without_length=True))
    assert "more bytes of ink.safetensors than it said" in downloads.refused("me/ink")
    assert not left(downloads.space.models), "nothing is left of either"


def test_lies_about_the_hash(server: ModelServer, downloads: Downloader) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    path = f"/me/ink/resolve/{COMMIT}/ink.safetensors"
    server.files[path].content = safetensors_bytes(seed=9)
    assert "its hash is another one; it was deleted" in downloads.refused("me/ink")
    assert not left(downloads.space.models)


def test_a_part_of_another_day_does_not_spoil_the_file(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    path = f"/me/ink/resolve/{COMMIT}/ink.safetensors"
    server.files[path].faults.extend([Fault(cut_at=80_000), *[Fault(502)] * 8])
    downloads.refused("me/ink")
    part = downloads.space.models / "ink.safetensors.part"
    part.write_bytes(b"\0" * 80_000)
    server.files[path].faults.clear()
    assert downloads.get("me/ink").read_bytes() == CONTENT
    assert any("its hash is another one" in text for text in downloads.warnings())
    assert source_of(downloads.space.models / "ink.safetensors")["verified"] is True


def test_without_a_hash_only_flushed_bytes_are_gone_on_from(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT, Fault(cut_at=80_000), *[Fault(502)] * 8)
    downloads.refused(server.url + FILE)
    part = downloads.space.models / "ink.safetensors.part"
    with part.open("ab") as file:
        file.write(b"\0" * 999)  # as a power loss may leave it
    server.files[FILE].faults.clear()
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    assert server.ranges(FILE)[-1] == "bytes=80000-"


# Names, room, other files


def test_nothing_is_overwritten(server: ModelServer, downloads: Downloader) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT})
    path = downloads.get("me/ink")
    assert downloads.get("me/ink") == path and "is here already" in downloads.warnings()[0]
    path.write_bytes(b"the user's own")
    other = downloads.get("me/ink")
    assert (other.name, other.read_bytes()) == ("ink-2.safetensors", CONTENT)
    assert path.read_bytes() == b"the user's own"
    assert downloads.get("me/ink") == other, "and known again under its other name"
    assert "choose another name" in downloads.refused("me/ink", output="ink")
    assert downloads.get("me/ink", output="mine").name == "mine.safetensors"


def test_a_file_without_a_known_hash_is_compared_when_it_is_here(
    server: ModelServer, downloads: Downloader
) -> None:
    server.add(FILE, CONTENT)
    path = downloads.get(server.url + FILE)
    assert downloads.get(server.url + FILE) == path
    assert left(downloads.space.models) == ["ink.safetensors", "ink.source.json"]


def test_room_is_checked_first(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT)
    downloads.free = 2**20
    said = downloads.refused(server.url + FILE)
    assert "the download needs 0.2 MiB more, and the disk of" in said and "1.0 MiB free" in said
    assert not server.ranges(FILE) and not left(downloads.space.models)


def test_a_full_disk_leaves_the_part(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(FILE, CONTENT)
    write = transfer.FileTransfer._write

    def full(self: transfer.FileTransfer, file: Any, chunk: bytes) -> None:
        if self.done > 90_000:
            raise OSError(28, "No space left on device")
        write(self, file, chunk)

    monkeypatch.setattr(transfer.FileTransfer, "_write", full)
    assert "is full; make room and start the download again" in downloads.refused(server.url + FILE)
    monkeypatch.undo()
    assert (downloads.space.models / "ink.safetensors.part").stat().st_size > 90_000


def test_one_process_at_a_time(server: ModelServer, downloads: Downloader) -> None:
    server.add(FILE, CONTENT)
    lock = downloads.space.models / "ink.safetensors.part.lock"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        lock.write_text(identity(other.pid) or "", encoding="utf-8")
        with pytest.raises(BusyError, match="is being downloaded already"):
            downloads.get(server.url + FILE)
        other.kill()
    other.wait()
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT, "its holder is dead"


def test_a_stop_keeps_what_is_there(
    server: ModelServer, downloads: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "REPORT_EVERY_S", 0.0)
    server.add(FILE, CONTENT)
    downloads.clock.should_stop = lambda: any(
        isinstance(event, BytesReceived) for event in downloads.events
    )
    downloads.get(server.url + FILE)
    assert isinstance(downloads.events[-1], Stopped)
    size = (downloads.space.models / "ink.safetensors.part").stat().st_size
    assert 0 < size < len(CONTENT)
    downloads.clock.should_stop = lambda: False
    assert downloads.get(server.url + FILE).read_bytes() == CONTENT
    assert server.ranges(FILE)[-1] == f"bytes={size}-"


# Jobs and the command


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_killed_process_is_gone_on_from_to_the_same_bytes(
    server: ModelServer, space: Workspace, downloads: Downloader
) -> None:
    content = safetensors_bytes(3_000_000)
    server.add_repository("me/ink", {"ink.safetensors": content})
    arrived: list[int] = []
    hold = True

    def slowly(at: int) -> None:
        if hold and at > 1_500_000:
            wait_until(lambda: not hold)
        arrived.append(at)

    server.on_chunk = slowly
    env = {**os.environ, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "sdlora", "models", "download", "me/ink"]
    with subprocess.Popen([*command, "--workspace", str(space.root)], cwd=ROOT, env=env) as process:
        part = space.models / "ink.safetensors.part"
        wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
        process.send_signal(signal.SIGKILL)
    size = part.stat().st_size
    hold = False
    server.requests.clear()
    path = downloads.get("me/ink")
    assert path.read_bytes() == content and size < len(content)
    (request,) = server.of(f"/me/ink/resolve/{COMMIT}/ink.safetensors")
    assert request.headers["range"] == f"bytes={size}-"
    assert left(space.models) == ["ink.safetensors", "ink.source.json"]


def test_the_command_downloads_beside_the_queue(
    server: ModelServer, space: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    server.add_repository("me/ink", {"ink.safetensors": CONTENT}, tags=["lora"])
    arguments = ["models", "download", "me/ink", "--workspace", str(space.root)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "me/ink@0123456789" in (shown := capfd.readouterr().out) and "lora, 0.2 MiB" in shown
    assert main([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (plan["size"], plan["version"]) == (len(CONTENT), COMMIT)
    assert not left(space.loras) and not server.ranges(f"/me/ink/resolve/{COMMIT}/ink.safetensors")
    assert main(arguments) == 0
    assert capfd.readouterr().out.strip() == str(space.loras / "ink.safetensors")
    (folder,) = (path for path in space.jobs.iterdir() if path.is_dir())
    state = run_folder.read(folder)
    assert (state.status, Path(state.result)) == ("done", space.loras / "ink.safetensors")
    assert main(["models", "download", "me/nothing", "--workspace", str(space.root)]) == 1
    assert "there is no me/nothing" in capfd.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_host_that_takes_no_connection_is_told_at_once(downloads: Downloader, host: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = downloads.refused(f"http://{host}:{port}{FILE}")
    assert "refuses the connection" in said or "there is no host" in said
    assert downloads.clock.waits == 0, "no second try"


def test_a_host_that_refuses_later_is_waited_for(downloads: Downloader) -> None:
    error = DownloadError("it refuses", transient=True)
    error.refused = True
    retries = Retries(downloads.clock)
    assert len(list(retries.wait_after(error, begun=True))) == 1
    with pytest.raises(DownloadError):
        list(retries.wait_after(error))
