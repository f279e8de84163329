"""A local server of models that breaks off, redirects, throttles and lies, as it is told to."""

import hashlib
import json
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_SECRETsecret0123456789"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors_bytes(size: int = 200_000, seed: int = 1, metadata: str = "") -> bytes:
    """A small valid file, whose body is of this size."""
    row = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    table: dict[str, Any] = {"__metadata__": {"note": metadata}, **row} if metadata else row
    header = json.dumps(table).encode()
    body = (hashlib.sha256(str(seed).encode()).digest() * (size // 32 + 1))[:size]
    return struct.pack("<Q", len(header)) + header + body


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Fault:
    """A single answer that is not the file: each is taken once, in order."""

    status: int = 0  # in place of the file
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int = 0  # bytes of the answer's body, then the connection is closed
    ignore_range: bool = False
    etag: str = ""
    extra: bytes = b""  # more than Content-Length or Content-Range says
    content_range: str = ""
    without_length: bool = False


@dataclass
class Served:
    """A file at a path."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    etag: str = '"one"'
    token: str = ""  # that is needed
    refusal: Fault = field(default_factory=lambda: Fault(401))
    ranges: bool = True
    faults: deque[Fault] = field(default_factory=deque)


@dataclass
class Request:
    """A request as it came."""

    host: str
    path: str
    headers: dict[str, str]


class ModelServer:
    """Paths -> files, and all requests that came. `hub` and `civitai` are its addresses as these
    sites, `url` and `other` those of two hosts that are neither."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []
        self.on_chunk: Callable[[int], None] | None = None
        self._listening = [ThreadingHTTPServer(("127.0.0.1", 0), _answerer(self)) for _ in range(3)]
        ports = [httpd.server_address[1] for httpd in self._listening]
        self.hub, self.civitai, self.url = (f"http://127.0.0.1:{port}" for port in ports)
        self.other = f"http://localhost:{ports[2]}"
        for httpd in self._listening:
            httpd.daemon_threads = True
            threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        for httpd in self._listening:
            httpd.shutdown()
            httpd.server_close()

    def add(self, path: str, content: bytes, *faults: Fault, **values: Any) -> Served:
        self.files[path] = Served(content, faults=deque(faults), **values)
        return self.files[path]

    def add_json(self, path: str, value: Any, *faults: Fault, **values: Any) -> Served:
        values.setdefault("content_type", "application/json")
        return self.add(path, json.dumps(value).encode(), *faults, **values)

    def redirect(self, path: str, to: str) -> None:
        self.add(path, b"").faults.extend([Fault(302, {"Location": to})] * 50)

    def of(self, path: str) -> list[Request]:
        """The requests for a path, its query left away."""
        return [r for r in self.requests if r.path.partition("?")[0] == path]

    def ranges(self, path: str) -> list[str]:
        """The ranges asked for, without those of the first look."""
        asked = [request.headers.get("range", "") for request in self.of(path)]
        return [text for text in asked if text != "bytes=0-15"]

    def add_repository(self, name: str, files: dict[str, bytes], **about: Any) -> None:
        """A repository of Hugging Face with these files, large ones in LFS."""
        rows = []
        for path, content in files.items():
            row: dict[str, Any] = {"rfilename": path, "size": len(content)}
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            row["blobId"] = git
            if path.endswith((".safetensors", ".bin", ".ckpt", ".gguf")):
                row["lfs"] = {"sha256": sha256(content), "size": len(content)}
            rows.append(row)
            self.add(f"/{name}/resolve/{COMMIT}/{path}", content, etag=f'"{git}"')
        listing = {"id": name, "sha": COMMIT, "siblings": rows, **about}
        for revision in ("main", COMMIT, "v1", "refs%2Fpr%2F1"):
            self.add_json(f"/api/models/{name}/revision/{revision}", listing)

    def add_civitai(self, version: int, content: bytes, **values: Any) -> dict[str, Any]:
        """A model version of Civitai; returns its record, to be changed before the request."""
        file = {
            "id": 77, "name": "ink.safetensors", "type": "Model", "primary": True,
            "sizeKB": len(content) / 1024, "hashes": {"SHA256": sha256(content).upper()},
            "metadata": {"format": "SafeTensor", "fp": "fp16", "size": "pruned"},
        }  # fmt: skip
        record = {
            "id": version, "modelId": 9, "name": "v2", "baseModel": "SD 1.5",
            "trainedWords": ["ink wash"], "model": {"name": "Ink", "type": "LORA"},
            "files": [file], **values,
        }  # fmt: skip
        self.add_json(f"/api/v1/model-versions/{version}", record)
        self.add(f"/api/download/models/{version}", content)
        return record


@contextmanager
def model_server() -> Iterator[ModelServer]:
    server = ModelServer()
    try:
        yield server
    finally:
        server.close()


def _answerer(server: ModelServer) -> type[BaseHTTPRequestHandler]:
    class Answerer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append(Request(headers.get("host", ""), self.path, headers))
            served = server.files.get(self.path) or server.files.get(self.path.partition("?")[0])
            if served is None:
                self._simple(Fault(404))
                return
            if served.token and headers.get("authorization") != f"Bearer {served.token}":
                self._simple(served.refusal)
                return
            probe = headers.get("range") == "bytes=0-15"
            early = served.faults and (served.faults[0].status or not probe)
            fault = served.faults.popleft() if early else Fault()
            if fault.status:
                self._simple(fault)
            else:
                self._file(served, fault, headers)

        def _simple(self, fault: Fault) -> None:
            self.send_response(fault.status)
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(fault.body)))
            self.end_headers()
            self.wfile.write(fault.body)

        def _file(self, served: Served, fault: Fault, headers: dict[str, str]) -> None:
            etag, whole = fault.etag or served.etag, served.content
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
            same = headers.get("if-range", etag) == etag
            body, status, extra = whole, 200, {}
            if match and served.ranges and not fault.ignore_range and same:
                start = int(match[1])
                end = min(int(match[2] or len(whole) - 1), len(whole) - 1)
                if start >= len(whole):
                    extra = {"Content-Range": f"bytes */{len(whole)}"}
                    self._simple(Fault(416, extra))
                    return
                body, status = whole[start : end + 1], 206
                given = fault.content_range or f"bytes {start}-{end}/{len(whole)}"
                extra = {"Content-Range": given}
            self.send_response(status)
            rows = {"ETag": etag, "Content-Type": served.content_type, **served.headers, **extra}
            if not fault.without_length:
                rows["Content-Length"] = str(len(body) + len(fault.extra))
            for name, value in {**rows, **fault.headers}.items():
                self.send_header(name, value)
            if fault.without_length or fault.cut_at:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            self._write(body[: fault.cut_at] if fault.cut_at else body + fault.extra)

        def _write(self, body: bytes) -> None:
            try:
                for at in range(0, len(body), 8192):
                    if server.on_chunk:
                        server.on_chunk(at)
                    self.wfile.write(body[at : at + 8192])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Answerer
