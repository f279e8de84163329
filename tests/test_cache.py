"""What was encoded is kept: found again by all that it was made from, and only by that."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sdlora import cache as caching
from sdlora.cache import Cache, digest_of


def test_tensors_come_back_bit_for_bit_and_only_for_what_they_were_made_from(
    tmp_path: Path,
) -> None:
    cache, kept = Cache(tmp_path, 1), {"a": torch.randn(3, 4), "b": torch.randn(2).half()}
    assert cache.get(picture="x") is None
    cache.put(kept, picture="x", bucket=(64, 64))
    found = Cache(tmp_path, 1).get(bucket=(64, 64), picture="x")
    assert found is not None and found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert found["b"].dtype == torch.float16
    assert cache.get(picture="x", bucket=(64, 72)) is None
    assert cache.get(picture="y", bucket=(64, 64)) is None


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, None])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    cache = Cache(tmp_path, 1)
    cache.put({"a": torch.ones(50)}, key=1)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert cache.get(key=1) is None
    cache.put({"a": torch.ones(50)}, key=1)
    assert cache.get(key=1) is not None


def test_without_a_folder_or_space_nothing_is_kept(tmp_path: Path) -> None:
    for cache in (Cache(), Cache(None, 1), Cache(tmp_path / "c", 0)):
        cache.put({"a": torch.ones(1)}, key=1)
        cache.trim()
        assert cache.get(key=1) is None
    assert not (tmp_path / "c").exists()


def test_what_was_not_asked_for_the_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1)
    for key in range(4):
        cache.put({"a": torch.ones(1000)}, key=key)
    for path in tmp_path.rglob("*.safetensors"):  # all of one age
        caching.os.utime(path, (1, 1))
    cache.get(key=1)
    size = path.stat().st_size
    Cache(tmp_path, 2.5 * size / 2**30).trim()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    assert cache.get(key=1) is not None


def test_a_full_disk_stops_the_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path, 1)
    monkeypatch.setattr(caching, "RESERVE_GIB", 1e9)
    cache.put({"a": torch.ones(1)}, key=1)
    assert "GiB of the disk are free" in cache.problem
    monkeypatch.undo()
    other = Cache(tmp_path / "file", 1)
    (tmp_path / "file").write_bytes(b"in the way")
    other.put({"a": torch.ones(1)}, key=1)
    assert other.problem
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_module_is_told_by_every_weight_its_type_and_its_shape() -> None:
    torch.manual_seed(0)
    one = nn.Linear(4, 4)
    before = digest_of(one)
    assert digest_of(one) == before
    with torch.no_grad():
        one.weight[2, 3] += 1e-7
    assert digest_of(one) != before
    assert digest_of(one.half()) != digest_of(one.bfloat16())
