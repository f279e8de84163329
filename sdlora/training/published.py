"""The finished LoRA under the name that prompts call it by.

A run owns the file that it published: going on after a stop replaces it, and doing the end again
after a kill finds it there. Whatever else has the name stays, and the LoRA gets another.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdlora.files import free_path, publish, sweep
from sdlora.lora.file import LoraFile, write_lora
from sdlora.lora.hashes import read_hashes
from sdlora.text_files import json_value

RECORD = "published.json"


def publish_lora(make: Callable[[str], LoraFile], name: str, folder: Path, loras: Path) -> Path:
    """Write the LoRA that `make` gives under a name into the run's `folder`, then into `loras`;
    returns that path. OSError: the disk did not take it; what was there before is whole."""
    kept = write_lora(make(name), folder / "lora" / f"{name}.safetensors")
    body = read_hashes(kept).body
    wish = loras / f"{name}.safetensors"
    path, is_own = _own_path(folder, wish)
    if _record(folder).get("name") == path.name:  # else what lies there is another run's
        sweep(path)
    while True:
        _write_record(folder, path, body)
        try:
            return write_lora(make(path.stem), path, overwrite=is_own)
        except FileExistsError:  # another run took the name in this moment
            path = free_path(wish)


def _write_record(folder: Path, path: Path, body: str) -> None:
    # first what will be ours, then the file: a kill in between leaves a name without a file
    record = json.dumps({"name": path.name, "bodies": [body, *_record(folder).get("bodies", [])]})
    publish(folder / "state" / RECORD, lambda to: to.write_text(record, encoding="utf-8"))


def _own_path(folder: Path, wish: Path) -> tuple[Path, bool]:
    """The path that this run published to before, unless something else is there now; and whether
    the file there is this run's."""
    record = _record(folder)
    path = wish.with_name(record.get("name", wish.name))
    own = record.get("bodies", [])
    if not path.exists():
        return path, False
    if own and read_hashes(path).body in own:
        return path, True
    return free_path(wish), False


def _record(folder: Path) -> dict[str, Any]:
    try:
        said = json_value((folder / "state" / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
