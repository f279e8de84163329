"""Fingerprint of a training's pictures, by content: it must find the same when it resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from sdlora.data.caption_augmentation import WordLists
from sdlora.data.folder import Example
from sdlora.errors import RunError

# folder/name of a picture -> hash of its file, caption and repeats; of a list -> of its lines
Prints = Mapping[str, str]
MOST_NAMED = 8


def fingerprints(examples: Sequence[Example], lists: WordLists | None = None) -> dict[str, str]:
    """Return a hash for each picture, and for each list of words that captions are drawn from."""
    prints: dict[str, str] = {
        f"wildcards/{name}.txt": hashlib.sha256(json.dumps(lines).encode()).hexdigest()
        for name, lines in (lists or {}).items()
    }
    for example in examples:
        row = example.digest, example.repeats, example.regularisation, example.caption
        name = f"{example.image.parent.name}/{example.image.name}"
        while name in prints:
            name += "'"
        prints[name] = hashlib.sha256(json.dumps(row).encode()).hexdigest()
    return prints


def digest(prints: Prints) -> str:
    """Return one hash for all of them, whatever their names and order."""
    return hashlib.sha256(json.dumps(sorted(prints.values())).encode()).hexdigest()


def changes(then: Prints, now: Prints) -> str:
    """Return the pictures that are missing, new or changed; '' when all is as it was."""
    differences = {
        "missing": sorted(then.keys() - now.keys()),
        "new": sorted(now.keys() - then.keys()),
        "changed": sorted(name for name in then.keys() & now.keys() if then[name] != now[name]),
    }
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in differences.items() if names)


def check_same(then: Prints, now: Prints) -> None:
    """Raise RunError naming what is missing, new or changed since the training began. The same
    pictures in the same order are the same in a folder of another name, too."""
    if [*then.values()] != [*now.values()] and (differences := changes(then, now)):
        raise RunError(
            "the pictures, captions or lists are not those that this training began with; "
            "{changes}. Put them back as they were and resume, or start a new training. Where no "
            "file was touched, this version reads them otherwise than the one that began: dataset "
            "check shows how",
            changes=differences,
        )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + rest
