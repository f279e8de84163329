"""A finished LoRA gets a name of its own, whoever finishes at the same time."""

from pathlib import Path

import pytest

from sdlora.lora.format.file import LoraFile
from sdlora.training.checkpoints import publish_lora
from tiny import open_tiny, tiny_lora


@pytest.mark.parametrize("taken_by", ["a file", "a link to nowhere"])
def test_a_name_that_is_taken_in_this_moment_stays_with_who_took_it(
    tmp_path: Path, taken_by: str
) -> None:
    loras, names = tmp_path / "loras", list[str]()
    loras.mkdir()
    lora = tiny_lora(open_tiny("sd1"))

    def make(name: str) -> LoraFile:
        names.append(name)
        if len(names) == 2 and taken_by == "a file":
            (loras / "cat.safetensors").write_bytes(b"theirs")
        elif len(names) == 2:
            (loras / "cat.safetensors").symlink_to(tmp_path / "gone")
        return lora

    path = publish_lora(make, "cat", tmp_path / "run", loras)
    assert (path.name, names) == ("cat-2.safetensors", ["cat", "cat", "cat-2"])
    taken = loras / "cat.safetensors"
    assert taken.is_symlink() or taken.read_bytes() == b"theirs"
    again = publish_lora(make, "cat", tmp_path / "run", loras)
    assert again == path, "going on after a stop replaces what this run has published"
    assert len(list(loras.iterdir())) == 2


def test_the_first_of_a_name_leaves_what_another_run_writes(tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    theirs = loras / ".cat-01234567.part.safetensors"
    theirs.touch()
    lora = tiny_lora(open_tiny("sd1"))
    for _ in range(2):
        publish_lora(lambda name: lora, "cat", tmp_path / "run", loras)
        assert theirs.exists() or (loras / "cat.safetensors").exists()
    fresh = loras / ".dog-01234567.part.safetensors"
    fresh.touch()
    publish_lora(lambda name: lora, "dog", tmp_path / "other run", loras)
    assert fresh.exists()
