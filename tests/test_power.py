"""What a power loss may leave: what was flushed, whole; of anything else any part."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.power import BLOCK, LOSSES, rebuild, recorded, tree_after, trees
from sdlora.files import sync_folder, write_atomically

OLD, NEW = b"o" * 3 * BLOCK, b"n" * (2 * BLOCK + 5)


def left(root: Path, act: Callable[[Path], None], most: int = 400) -> list[dict[str, bytes | None]]:
    """What may be left of `act` on a folder that holds a file `a`."""
    (root / "a").write_bytes(OLD)
    with recorded(root) as record:
        act(root)
    return [dict(tree) for _, _, tree in trees(record, most)]


def carelessly(root: Path) -> None:
    (root / "b").write_bytes(NEW)
    os.replace(root / "b", root / "a")


def carefully(root: Path) -> None:
    write_atomically(root / "a", lambda to: to.write_bytes(NEW))


def test_a_file_that_was_not_flushed_may_be_any_part_of_itself(tmp_path: Path) -> None:
    found = {tree["a"] for tree in left(tmp_path, carelessly)}
    assert {OLD, NEW, b"", b"\0" * len(NEW), NEW[:BLOCK]} <= found
    assert all(len(content or b"") <= len(OLD) for content in found)


def test_a_file_that_was_published_is_old_or_new(tmp_path: Path) -> None:
    found = left(tmp_path, carefully)
    assert {tree["a"] for tree in found} == {OLD, NEW}
    assert any(len(tree) == 2 for tree in found), "the temporary file may be left"
    assert not (set(os.listdir(tmp_path)) - {"a"})


def test_what_was_flushed_stays_but_not_in_a_folder_that_was_not(tmp_path: Path) -> None:
    def act(root: Path) -> None:
        (root / "in").mkdir()
        write_atomically(root / "in" / "b", lambda to: to.write_bytes(NEW))

    with recorded(tmp_path) as record:
        act(tmp_path)
        before = len(record.deeds)
        sync_folder(tmp_path)
    rng = random.Random(0)
    assert tree_after(record, before, LOSSES["all"], rng) == {}
    assert tree_after(record, len(record.deeds), LOSSES["all"], rng) == {"in": None, "in/b": NEW}


def test_names_of_one_folder_may_be_lost_without_those_of_another(tmp_path: Path) -> None:
    def act(root: Path) -> None:
        os.rename(root / "in", root / "out")
        os.unlink(root / "out" / "b")

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_bytes(NEW)
    found = {frozenset(tree) - {"a"} for tree in left(tmp_path, act)}
    assert {frozenset(names) for names in (("in", "in/b"), ("out", "out/b"), ("in",))} <= found


@pytest.mark.parametrize("act", [carelessly, carefully])
def test_a_disk_is_rebuilt_as_it_was(act: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "watched" / "in").mkdir(parents=True)
    trees = left(tmp_path / "watched", act)
    rebuild(trees[0], tmp_path / "rebuilt")
    assert trees[0] == {"a": OLD, "in": None}
    assert (tmp_path / "rebuilt" / "a").read_bytes() == OLD and (tmp_path / "rebuilt/in").is_dir()
