"""Mutated configurations of kohya's programs: no traceback, and nothing good is lost.

    python -m benchmarks.fuzz_kohya --count 5000 --seed 0

Each file is a good one with a few values replaced by wrong ones, keys added, or bytes changed. It
is read; whatever is still good must be among the settings, and whatever is not must be named.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from sdlora import kohya
from sdlora.errors import SettingsError
from sdlora.settings.train import TrainSettings

# key -> its value, our setting and our value: each by itself is good
GOOD: dict[str, tuple[Any, str, Any]] = {
    "network_dim": (32, "rank", 32),
    "train_batch_size": (3, "batch_size", 3),
    "keep_tokens": (2, "keep_tags", 2),
    "caption_dropout_rate": (0.25, "caption_dropout", 0.25),
    "noise_offset": (0.05, "noise_offset", 0.05),
    "clip_skip": (2, "clip_skip", 2),
    "seed": (77, "seed", 77),
    "flip_aug": (True, "flip", True),
    "loss_type": ("huber", "loss", "huber"),
    "scale_weight_norms": (2.0, "max_norm", 2.0),
    "resolution": ("768,768", "resolution", 768),
    "text_encoder_lr": ([5e-5, 5e-5], "text_encoder_learning_rate", 5e-5),
}
WRONG: tuple[Any, ...] = (
    -1, 10**30, 1e308, -1e308, "", "many", "nan", [], [[]], [1, "x"], {}, {"a": 1}, True, False,
    "\u0000", "é" * 500, 0, 0.5, "0", [None], "1,2,3", "(1", "=", ["="], ["conv_dim"], "-inf",
)  # fmt: skip
FURTHER = (
    *("network_args", "optimizer_args", "lr_scheduler", "optimizer_type", "network_module"),
    *("max_train_steps", "max_train_epochs", "lr_warmup_steps", "min_timestep", "max_timestep"),
    *("network_alpha", "unet_lr", "learning_rate", "min_snr_gamma", "sample_prompts", "my_key"),
    *("datasets", "general", "dataset_config", "reg_data_dir", "output_name", "train_data_dir"),
    *("LoRA_type", "lr_warmup", "epoch", "enable_bucket", "color_aug", "masked_loss"),
)


def mutated(rng: random.Random) -> tuple[dict[str, Any], set[str]]:
    """A configuration, and the keys in it that are still good."""
    table = {key: row[0] for key, row in GOOD.items()}
    for key in rng.sample(list(GOOD), rng.randrange(4)):
        table[key] = rng.choice(WRONG)
    good = {key for key, row in GOOD.items() if table[key] is row[0]}
    for key in rng.sample(FURTHER, rng.randrange(6)):
        table[key] = rng.choice(WRONG)
    return table, good


def as_toml(value: Any) -> str:
    """A value as TOML; inline tables and arrays as they nest."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(as_toml(part) for part in value if part is not None)}]"
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str | bool) else repr(value)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The same file with some bytes changed, lost or doubled."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(data))
        data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data)


def outcome(content: bytes, good: set[str], path: Path) -> str:
    """One file read: 'read', 'refused' by a sentence, or what is wrong with the reader."""
    path.write_bytes(content)
    try:
        values, notes = kohya.read(path)
        settings = TrainSettings.from_values({"data": "x", "name": "x", **values})
    except SettingsError as error:
        if good:
            return f"lost: {str(error)[:90]}"
        return "refused"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    lost = [key for key in good if getattr(settings, GOOD[key][1]) != GOOD[key][2]]
    named = " ".join(notes)
    unsaid = [key for key in lost if key not in named]
    return f"lost: {unsaid[0]}" if unsaid else "read"


def fuzz(count: int, seed: int, folder: Path) -> Counter[str]:
    """How often what became of `count` files."""
    rng, outcomes = random.Random(seed), Counter[str]()
    for number in range(count):
        table, good = mutated(rng)
        is_json = number % 3 == 0
        text = json.dumps(table) if is_json else "\n".join(
            f"{key} = {as_toml(value)}" for key, value in table.items()
        )  # fmt: skip
        content = text.encode()
        if number % 4 == 1:
            content, good = damaged(content, rng), set()
        elif {"LoRA_type", "lr_warmup"} & table.keys() or {"datasets", "general"} & table.keys():
            good = set()  # another kind of file: its zeros and tables mean other things
        path = folder / ("x.json" if is_json else "x.toml")
        if good and not is_json:
            tomllib.loads(text)  # the mutation itself is well formed
        outcomes[outcome(content, good, path)] += 1
    return outcomes


def main() -> int:
    """Print the outcomes; 1 when any file made a traceback or lost something good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(options.count, options.seed, Path(folder))
    for words, times in outcomes.most_common():
        print(f"{times:6} {words}")
    return int(any(words.startswith(("traceback", "lost")) for words in outcomes))


if __name__ == "__main__":
    sys.exit(main())
