"""The hashes that pictures and other programs call a LoRA file by; no torch."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

BLOCK = 2**20
SHORTEST = 8  # letters of a hash that may stand for a file
OF_NOTHING = hashlib.sha256(b"").hexdigest()  # written by programs that read no bytes
LEGACY_AT, LEGACY_BYTES = 0x10_0000, 0x1_0000  # what the oldest hash is of


class Hashes(NamedTuple):
    """What the bytes of one file come to, in hex; empty when nobody has read them yet."""

    sha256: str = ""
    body: str = ""  # sha256 of all after the header: it stays when the metadata is edited
    legacy: str = ""  # A1111's first, Civitai's AutoV1; of shorter files it would be of nothing

    @property
    def autov2(self) -> str:
        """Civitai's, and that of checkpoints in A1111's pictures."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        """That of LoRAs in A1111's pictures (kohya-ss/sd-scripts, `addnet_hash_safetensors`)."""
        return self.body[:12]

    def fit(self, start: str) -> bool:
        """Whether `start`, lower case hex, is the beginning of one of them."""
        return any(own.startswith(start) for own in self)


def read_hashes(path: Path) -> Hashes:
    """All of a safetensors file's hashes, in one reading. OSError when it cannot be read."""
    whole, body, legacy = hashlib.sha256(), hashlib.sha256(), ""
    at = 0
    with path.open("rb") as file:
        start = file.read(8)
        body_at = 8 + struct.unpack("<Q", start.ljust(8, b"\0"))[0]
        file.seek(0)
        while block := file.read(BLOCK):
            whole.update(block)
            body.update(memoryview(block)[max(0, body_at - at) :])
            if at == LEGACY_AT:
                legacy = hashlib.sha256(block[:LEGACY_BYTES]).hexdigest()[:8]
            at += len(block)
    return Hashes(whole.hexdigest(), body.hexdigest(), legacy)


def is_hash(name: str) -> bool:
    """Whether a name may be a hash or the beginning of one; that of no bytes stands for no file."""
    if OF_NOTHING.startswith(name):
        return False
    return SHORTEST <= len(name) <= 64 and all(letter in "0123456789abcdef" for letter in name)
