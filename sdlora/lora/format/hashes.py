"""Hashes by which pictures' metadata and other programs identify a LoRA file; no torch."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

BLOCK = 2**20
MIN_LETTERS = 8  # digits of a hash that are enough to identify a file
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()  # written by programs that read no bytes
LEGACY_AT, LEGACY_BYTES = 0x10_0000, 0x1_0000  # the bytes that the legacy hash covers


class Hashes(NamedTuple):
    """Hashes of one file in hex; empty when not computed yet."""

    sha256: str = ""
    body: str = ""  # sha256 of all after the header: independent of the metadata
    legacy: str = ""  # A1111's first, Civitai's AutoV1; empty for a file shorter than 1 MiB

    @property
    def autov2(self) -> str:
        """Civitai's AutoV2, and the hash of checkpoints in A1111's pictures."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        """Hash of LoRAs in A1111's pictures (kohya-ss/sd-scripts, `addnet_hash_safetensors`)."""
        return self.body[:12]

    def matches(self, start: str) -> bool:
        """True if one of the hashes begins with `start`, lower case hex."""
        return any(own.startswith(start) for own in self)


def read_hashes(path: Path) -> Hashes:
    """Compute all hashes of a safetensors file in one pass. OSError when it cannot be read."""
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
    """True if a name may be a hash or the beginning of one; the hash of no bytes is not one."""
    if EMPTY_SHA256.startswith(name):
        return False
    return MIN_LETTERS <= len(name) <= 64 and all(letter in "0123456789abcdef" for letter in name)
