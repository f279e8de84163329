"""File names from names that a user gives, valid on every system."""

from __future__ import annotations

import re
import unicodedata

from sdlora.errors import SettingsError

MAX_NAME_LETTERS = 80
# Of the 255 that a disk takes: the rest is for '-step-000123-2.safetensors' and the like
MAX_NAME_BYTES = 200
_JOINERS = "\u200c\u200d"  # which Persian, Hindi and others write words with
_NAME_SIGNS = f" ._-{_JOINERS}"
_JOINER_OUT_OF_PLACE = re.compile(rf"(?:\A|[\x00-\x7f{_JOINERS}])[{_JOINERS}]|[{_JOINERS}]\Z")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def checked_name(name: str) -> str:
    """The name, tidied to NFC. SettingsError unless it is fit for a file on every system: letters
    and digits of any script, with their combining marks, space, dot, underscore, hyphen; 1 to 80
    letters and at most 200 bytes, so that every file named after it fits; no dot at either end."""
    tidy = unicodedata.normalize("NFC", name).strip()
    if (
        not 1 <= len(tidy) <= MAX_NAME_LETTERS
        or not all(map(_fits_a_name, tidy))
        or not (tidy[0].isalnum() or tidy[0] in " _-")
        or tidy[-1] == "."
        or _JOINER_OUT_OF_PLACE.search(tidy)
        or _RESERVED.fullmatch(tidy)
    ):
        raise SettingsError(
            "{name} cannot be a name; use 1 to {limit} letters, digits, spaces, '.', '_' or '-', "
            "not starting or ending with a dot",
            name=repr(name[:MAX_NAME_LETTERS]),
            limit=MAX_NAME_LETTERS,
        )
    if (size := len(tidy.encode())) > MAX_NAME_BYTES:
        raise SettingsError(
            "{name} cannot be a name: on the disk it has {size} bytes, and {limit} at most leave "
            "room for the files named after it; shorten it to about {letters} letters",
            name=repr(tidy),
            size=size,
            limit=MAX_NAME_BYTES,
            letters=len(tidy) * MAX_NAME_BYTES // size,
        )
    return tidy


def _fits_a_name(letter: str) -> bool:
    # Marks are part of the letters of many scripts: Hindi, Thai, pointed Hebrew, Arabic
    return letter.isalnum() or letter in _NAME_SIGNS or unicodedata.category(letter) in ("Mn", "Mc")
