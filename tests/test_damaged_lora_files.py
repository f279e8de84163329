"""Damaged LoRA files end as a named refusal or as a LoRA, and leave nothing behind.

`python -m benchmarks.gate` sends ten thousand of them through. What ever crashed is kept in
tests/hostile/ and sent through again here.
"""

from collections import Counter
from pathlib import Path

import torch

from benchmarks.gate import ORIGINALS, mutants, originals, outcome, weights_hash
from sdlora.adapters import Blend
from sdlora.lora.format.errors import REFUSALS
from sdlora.models.registry import open_family
from sdlora.workspace import STARTER_MODEL

HOSTILE = Path(__file__).parent / "hostile"


def test_hostile_files_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    assert len(REFUSALS) <= 25
    family = open_family(str(STARTER_MODEL), torch.float32, torch.device("cpu"))
    before, blend, path = weights_hash(family), Blend(family), tmp_path / "a.safetensors"
    whole = [outcome(blob, path, blend) for blob in originals()]
    assert whole == ["loaded"] * len(ORIGINALS)
    ends = Counter(outcome(blob, path, blend) for blob in mutants(400, seed=1))
    assert ends["loaded"] > 10 and len(ends) > 12, ends
    for seed in sorted(HOSTILE.glob("*.safetensors")):
        assert outcome(seed.read_bytes(), path, blend) in {"loaded", *REFUSALS}
    assert weights_hash(family) == before
