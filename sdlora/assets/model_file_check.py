"""Signs that a downloaded file is a model: its first bytes and its header, nothing loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path, PurePath
from typing import Any

from sdlora.errors import DownloadError
from sdlora.messages import Message

SAFETENSORS, GGUF = (".safetensors", ".sft"), (".gguf",)
MODEL_FILES = SAFETENSORS + GGUF
HEAD_BYTES = 16
MAX_HEADER = 100 * 2**20  # that of safetensors' own reader


def is_model_file(name: str) -> bool:
    """Return True if a name is that of a file that can be downloaded."""
    return name.lower().endswith(MODEL_FILES)


def check_head(head: bytes, name: str, content_type: str = "") -> None:
    """Check the first bytes of a model file. DownloadError: the server sent something else."""
    suffix = PurePath(name).suffix.lower()
    text = head.lstrip()[:1]
    if suffix not in MODEL_FILES:
        return
    is_page = "text/html" in content_type.lower() or (text == b"<" and suffix not in GGUF)
    good = head[:4] == b"GGUF" if suffix in GGUF else _has_length(head)
    if good and not is_page:
        return
    if is_page or text == b"<":
        raise DownloadError(
            "the server sent a web page in place of {name}: it probably wants a login, or the link "
            "is that of a page; open it in a browser to see",
            name=name,
        )
    raise DownloadError(
        "what the server sent as {name} does not begin as such a file does; the link is wrong, or "
        "the file is damaged there",
        name=name,
    )


def suffix_of_head(head: bytes) -> str:
    """Return the ending of a model file's name, by its first bytes."""
    return GGUF[0] if head[:4] == b"GGUF" else SAFETENSORS[0]


def _has_length(head: bytes) -> bool:
    """True if a file begins with the length of a header and with that header."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= _length(head) <= MAX_HEADER


def _length(head: bytes) -> int:
    return int(struct.unpack("<Q", head[:8])[0])


def check_model_file(path: Path, name: str) -> None:
    """Check that a file is whole by its own header. DownloadError: it is not."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        check_head(head, name)
        if not name.lower().endswith(SAFETENSORS):
            return
        size, length = path.stat().st_size, _length(head)
        file.seek(8)
        problem = _header_problem(file.read(length), size - 8 - length)
    if problem:
        raise DownloadError("{name} is no whole safetensors file: {why}", name=name, why=problem)


def _header_problem(header: bytes, body_bytes: int) -> Message | None:
    try:
        table: Any = json.loads(header)
        ends = [row["data_offsets"][1] for key, row in table.items() if key != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        return Message("its header cannot be read")
    if not isinstance(end, int) or end == body_bytes:
        return None
    return Message("its header speaks of {end} bytes, and it has {size}", end=end, size=body_bytes)
