"""Kohya's TOML is read and written, and what is not known is named."""

from pathlib import Path

import pytest

from sdlora import kohya
from sdlora.errors import SettingsError
from sdlora.settings import TrainSettings

# After docs/train_network.md of kohya-ss/sd-scripts, as its GUI writes it
THEIRS = """
pretrained_model_name_or_path = "models/sd15"
train_data_dir = "pictures"
output_name = "zibo"
max_train_steps = 1600
learning_rate = 0.0002
unet_lr = 0.0001
text_encoder_lr = 5e-05
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4", "block_dims=2,4"]
resolution = "512,768"
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 2
mixed_precision = "bf16"
cache_latents = true
clip_skip = 2

[saving]
save_every_n_steps = 250
save_model_as = "safetensors"
"""


def test_what_is_known_is_read_and_the_rest_named(tmp_path: Path) -> None:
    file = tmp_path / "theirs.toml"
    file.write_text(THEIRS, encoding="utf-8")
    values, problems = kohya.read(file)
    its = TrainSettings.of(values)
    assert (its.data, its.name, its.model, its.steps) == ("pictures", "zibo", "models/sd15", 1600)
    assert (its.learning_rate, its.text_encoder_learning_rate) == (1e-4, 5e-5)
    assert (its.rank, its.alpha, its.conv_rank) == (32, 16, 8) and "conv" in its.targets
    assert (its.optimizer, its.schedule, its.schedule_cycles) == ("adamw8bit", "cosine_restarts", 2)
    assert (its.resolution, its.precision, its.save_every) == (512, "bf16", 250)
    assert its.train_text_encoder, "as kohya does unless it is told not to"
    assert len(problems) == 2
    assert "clip_skip = 2 is not known" in problems[0]
    assert "'block_dims=2,4' is not known" in problems[1]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    its = TrainSettings.of({
        "data": "p\\q", "name": "ü x", "rank": 4, "alpha": 2.5, "schedule": "cosine_restarts",
        "optimizer": "schedule_free", "precision": "fp32", "targets": ["attention", "feed_forward"],
        "resolution": 768, "caption_dropout": 0.1, "train_text_encoder": True, "seed": 9,
    })  # fmt: skip
    file = tmp_path / "ours.toml"
    file.write_text(kohya.write(its), encoding="utf-8")
    values, problems = kohya.read(file)
    assert not problems and TrainSettings.of(values).model_dump() == its.model_dump()


@pytest.mark.parametrize("text", ["rank = ", "\x00"])
def test_what_is_no_toml_is_said(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be read as TOML"):
        kohya.read(file)
