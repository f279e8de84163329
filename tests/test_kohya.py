"""Kohya's files mean here what they mean there, and what is not done as they say is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz_kohya import fuzz
from launch import ROOT
from sdlora import kohya
from sdlora.errors import SettingsError
from sdlora.kohya.keys import ALWAYS, INSTEAD, KEYS, OURS, READ_TOGETHER
from sdlora.kohya.table import markdown
from sdlora.settings.train import TrainSettings

NEEDED = {"data": "x", "name": "x"}


def read(tmp_path: Path, content: str, name: str = "theirs.toml") -> tuple[TrainSettings, str]:
    """The settings of a file, and its notes as one text."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    values, notes = kohya.read(path)
    return TrainSettings.from_values({**NEEDED, **values}), "\n".join(notes)


def read_json(tmp_path: Path, preset: dict[str, Any]) -> tuple[TrainSettings, str]:
    return read(tmp_path, json.dumps(preset), "preset.json")


# As sd-scripts' own docs and the GUI write them
GUI_TOML = """
bucket_no_upscale = true
bucket_reso_steps = 64
cache_latents = true
caption_extension = ".txt"
clip_skip = 2
dynamo_backend = "no"
enable_bucket = true
epoch = 10
gradient_accumulation_steps = 1
huber_c = 0.1
huber_schedule = "snr"
learning_rate = 0.0001
loss_type = "l2"
lr_scheduler = "cosine"
lr_scheduler_args = []
lr_scheduler_num_cycles = 1
lr_scheduler_power = 1
lr_warmup_steps = 0.1
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_grad_norm = 1
max_timestep = 1000
max_train_steps = 1600
min_bucket_reso = 256
mixed_precision = "bf16"
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4"]
network_dim = 32
network_module = "networks.lora"
noise_offset_type = "Original"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
optimizer_type = "AdamW8bit"
output_name = "zibo"
pretrained_model_name_or_path = "models/sd15"
prior_loss_weight = 1
resolution = "512,768"
sample_sampler = "euler_a"
save_every_n_epochs = 1
save_model_as = "safetensors"
save_precision = "bf16"
text_encoder_lr = [5e-05, 5e-05]
train_batch_size = 2
train_data_dir = "pictures"
unet_lr = 0.0001
wandb_run_name = "zibo"
xformers = true
"""


def test_what_the_gui_writes_today_is_read_whole(tmp_path: Path) -> None:
    settings, notes = read(tmp_path, GUI_TOML)
    assert (settings.data, settings.name, settings.model) == ("pictures", "zibo", "models/sd15")
    assert (settings.steps, settings.warmup, settings.batch_size) == (1600, 160, 2)
    assert (settings.learning_rate, settings.text_encoder_learning_rate) == (1e-4, 5e-5)
    assert (settings.rank, settings.alpha, settings.conv_rank) == (32, 16, 8)
    assert settings.scale("conv") == 0.5 and "conv" in settings.targets
    assert (settings.optimizer, settings.weight_decay) == ("adamw8bit", 0.1)
    assert (settings.schedule, settings.precision, settings.clip_skip) == ("cosine", "bf16", 2)
    assert settings.resolution == 627, "a square of the area of 512 x 768"
    assert (settings.save_every_epochs, settings.loss_weighting) == (1, "flat")
    assert settings.train_text_encoder and settings.train_unet
    for named in ("betas=0.9,0.99", "sample_sampler", "min_bucket_reso", "theirs.toml: "):
        assert named in notes
    assert "not known" not in notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rank", 4), ("alpha", 1.0), ("steps", 1600), ("batch_size", 1), ("schedule", "constant"),
        ("warmup", 0), ("loss_weighting", "flat"), ("caption_dropout", 0.0), ("keep_tags", 0),
        ("learning_rate", 2e-6), ("text_encoder_learning_rate", 2e-6), ("clip_skip", 1),
        ("targets", ("attention", "feed_forward")), ("train_text_encoder", True),
        ("schedule_cycles", 1), ("schedule_power", 1.0), ("upscale", True), ("max_norm", 0.0),
    ],
)  # fmt: skip
def test_what_is_left_out_means_what_it_means_to_sd_scripts(
    name: str, expected: Any, tmp_path: Path
) -> None:
    """After the defaults in library/train_util.py, train_network.py and networks/lora.py."""
    settings, _ = read(tmp_path, 'train_data_dir = "x"')
    assert getattr(settings, name) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("max_grad_norm = 0", "max_grad_norm", 0.0),
        ('lr_scheduler = "cosine"\nlr_warmup_steps = 0.05', "warmup", 80),
        ('lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 30', "warmup", 30),
        ("network_dim = 32", "alpha", 1.0),
        ("network_dim = 32\nnetwork_alpha = 0", "alpha", 32.0),
        ("unet_lr = 0.0", "train_unet", False),
        ("text_encoder_lr = 0", "train_text_encoder", False),
        ("text_encoder_lr = [0.0, 0.0]", "train_text_encoder", False),
        ("network_train_text_encoder_only = true", "train_unet", False),
        ("network_train_unet_only = true", "train_text_encoder", False),
        ("learning_rate = 1e-3", "text_encoder_learning_rate", 1e-3),
        ('learning_rate = "1e-3"', "learning_rate", 1e-3),
        ("min_snr_gamma = 5", "loss_weighting", "min_snr"),
        ("min_snr_gamma = 0", "loss_weighting", "flat"),
        ("debiased_estimation_loss = true", "loss_weighting", "debiased"),
        ("resolution = [1024, 1024]", "resolution", 1024),
        ("resolution = 768", "resolution", 768),
        ('resolution = "768"', "resolution", 768),
        ("max_train_epochs = 10", "epochs", 10),
        ("bucket_no_upscale = true", "upscale", False),
        ("scale_weight_norms = 1", "max_norm", 1.0),
        ('optimizer_type = "prodigy"', "optimizer", "prodigy"),
        ("use_8bit_adam = true", "optimizer", "adamw8bit"),
        ("save_every_n_epochs = 2", "save_every_epochs", 2),
        ("[deep]\nnetwork_dim = 7", "rank", 7),
        ('network_args = ["loraplus_lr_ratio=4"]', "lora_plus_ratio", 4.0),
        ('network_args = "conv_dim=4"', "group_alpha", ("conv=1",)),
        ('reg_data_dir = "reg"', "regularisation", ("reg",)),
        ('conditioning_data_dir = "m"\nmasked_loss = true', "masks", "m"),
    ],
)  # fmt: skip
def test_values_mean_what_they_mean_to_sd_scripts(
    text: str, name: str, expected: Any, tmp_path: Path
) -> None:
    settings, notes = read(tmp_path, text)
    assert getattr(settings, name) == expected
    assert "not used: " not in notes and "cannot be read" not in notes


@pytest.mark.parametrize(
    ("arguments", "adapter", "targets"),
    [
        (["algo=locon", "conv_dim=4"], "lora", ("attention", "feed_forward", "conv")),
        (["algo=loha", "preset=attn-mlp"], "loha", ("attention", "feed_forward")),
        (["algo=lokr", "factor=8", "preset=attn-only"], "lokr", ("attention",)),
        (["algo=lora", "dora_wd=True"], "dora", ("attention", "feed_forward", "conv")),
        (["dora_wd=1", "wd_on_output=0", "preset=attn-only"], "dora", ("attention",)),
        (["algo=diag-oft"], "oft", ("attention", "feed_forward", "conv")),
    ],
)
def test_lycoris_algorithms_are_adapters(
    arguments: list[str], adapter: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    text = f'network_module = "lycoris.kohya"\nnetwork_args = {json.dumps(arguments)}'
    settings, _ = read(tmp_path, text)
    assert (settings.adapter, settings.targets) == (adapter, targets)
    assert settings.lokr_factor == (8 if adapter == "lokr" else None)
    assert adapter != "dora" or (settings.dora_axis == "input") == ("wd_on_output=0" in arguments)


@pytest.mark.parametrize(
    "text",
    [
        "network_dim = 5000", "network_dim = -1", 'network_dim = "many"', "huber_c = 1e9",
        "max_train_steps = 0", 'optimizer_type = "DAdaptAdam"', 'lr_scheduler = "inverse_sqrt"',
        "resolution = []", "resolution = [1, 2, 3]", "seed = -3", "flip_aug = 7",
        'output_name = "a:b"', "learning_rate = nan", "lr_warmup_steps = 2000",
        "min_timestep = 900\nmax_timestep = 100", 'network_module = "my.own"',
        'network_args = ["block_dims=2,4"]', "network_args = 3", 'optimizer_args = ["betas=1"]',
        'sample_prompts = "not there.txt"', "my_own_key = 3", "vae = 3",
        "unet_lr = 99", 'network_args = ["conv_dim=x"]', 'dataset_config = "none.toml"',
    ],
)  # fmt: skip
def test_one_bad_value_is_named_and_the_rest_is_read(text: str, tmp_path: Path) -> None:
    settings, notes = read(tmp_path, f"{text}\nkeep_tokens = 3")
    assert settings.keep_tags == 3
    key = text.split(" ")[0]
    value = text.split('"')[1] if '["' in text else ""
    assert key in notes or (value and value.split("=")[0] in notes)


def test_every_key_of_sd_scripts_is_used_or_named(tmp_path: Path) -> None:
    """Nothing is known to do nothing: of each key something is said, or a setting follows it."""
    groups = [key for keys in ALWAYS.values() for key in keys]
    for key in (*groups, *INSTEAD):
        _, notes = read(tmp_path, f'{key} = "x"')
        assert key in notes, key
    assert not {*groups} & {*INSTEAD} and not {*KEYS} & {*groups, *INSTEAD, *READ_TOGETHER}


SUBSETS = """
[general]
enable_bucket = true
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 768
batch_size = 4

  [[datasets.subsets]]
  image_dir = "zibo"
  num_repeats = 3
  class_tokens = "zibo robot"

  [[datasets.subsets]]
  image_dir = "others"
  keep_tokens = 2

[[datasets]]
resolution = [512, 512]

  [[datasets.subsets]]
  image_dir = "robots"
  is_reg = true
  num_repeats = 0

  [[datasets.subsets]]
  image_dir = "machines"
  is_reg = true
"""


def test_subsets_are_folders_with_their_repeats(tmp_path: Path) -> None:
    settings, notes = read(tmp_path, SUBSETS)
    assert (settings.data, settings.more_data) == ("3*zibo", ("others",))
    assert settings.regularisation == ("machines",)
    assert (settings.resolution, settings.batch_size, settings.shuffle_tags) == (768, 4, True)
    for named in ("keep_tokens differs", "resolution differs", "zibo robot", "robots"):
        assert named in notes


def test_an_unknown_algorithm_is_named(tmp_path: Path) -> None:
    text = 'network_module = "lycoris.kohya"\nnetwork_args = ["algo=glora"]'
    settings, notes = read(tmp_path, text)
    assert settings.adapter == "lora" and "algo=glora" in notes


def test_a_dataset_file_that_a_config_names_is_read_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sets.toml").write_text(SUBSETS, encoding="utf-8")
    settings, _ = read(tmp_path, 'dataset_config = "/elsewhere/sets.toml"\nnetwork_dim = 8')
    assert (settings.data, settings.rank) == ("3*zibo", 8)


def test_sample_prompts_are_read_without_their_options(tmp_path: Path) -> None:
    lines = "# mine\nzibo, on a table --n bad --w 512\n\nzibo in the rain\n"
    (tmp_path / "prompts.txt").write_text(lines, encoding="utf-8")
    settings, notes = read(tmp_path, 'sample_prompts = "prompts.txt"')
    assert settings.sample_prompts == ("zibo, on a table", "zibo in the rain")
    assert "options after --" in notes


PRESET = {
    "LoRA_type": "LyCORIS/LoCon", "clip_skip": 2, "conv_alpha": 1, "conv_dim": 32, "epoch": 3,
    "learning_rate": "0.0001", "lr_scheduler": "cosine", "lr_warmup": "10", "min_snr_gamma": 0,
    "lr_scheduler_num_cycles": "", "max_resolution": "512,650", "max_train_epochs": "",
    "mixed_precision": "bf16", "network_alpha": 64, "network_dim": 64, "noise_offset": "0.05",
    "optimizer": "AdamW8bit", "optimizer_args": "", "seed": "1234", "text_encoder_lr": "5e-05",
    "train_batch_size": 3, "unet_lr": "0.0001", "v2": False, "xformers": True, "weighted": 1,
}  # fmt: skip


def test_presets_of_the_gui_mean_what_it_makes_of_them(tmp_path: Path) -> None:
    settings, notes = read_json(tmp_path, PRESET)
    assert (settings.rank, settings.alpha, settings.conv_rank) == (64, 64, 32)
    assert settings.scale("conv") == 1 / 32
    assert (settings.epochs, settings.batch_size, settings.clip_skip) == (3, 3, 2)
    assert (settings.learning_rate, settings.text_encoder_learning_rate) == (1e-4, 5e-5)
    assert (settings.optimizer, settings.noise_offset, settings.seed) == ("adamw8bit", 0.05, 1234)
    assert (settings.warmup_steps, settings.loss_weighting) == (0.1, "flat")
    assert settings.resolution == 577 and "weighted" in notes


@pytest.mark.parametrize(
    ("change", "unet", "text_encoder"),
    [
        ({"unet_lr": 0}, False, True),
        ({"text_encoder_lr": "0"}, True, False),
        ({"unet_lr": 0, "text_encoder_lr": 0}, True, True),
    ],
)
def test_a_preset_with_a_rate_of_nothing_trains_the_other_part(
    change: dict[str, Any], unet: bool, text_encoder: bool, tmp_path: Path
) -> None:
    settings, _ = read_json(tmp_path, {**PRESET, **change})
    assert (settings.train_unet, settings.train_text_encoder) == (unet, text_encoder)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("Standard", "lora"), ("LyCORIS/LoHa", "loha"), ("LyCORIS/LoKr", "lokr"),
     ("LyCORIS/Diag-OFT", "oft"), ("Kohya LoCon", "lora")],
)  # fmt: skip
def test_network_types_of_the_gui_are_adapters(kind: str, adapter: str, tmp_path: Path) -> None:
    settings, _ = read_json(tmp_path, {**PRESET, "LoRA_type": kind})
    assert settings.adapter == adapter
    assert ("conv" in settings.targets) == (kind != "Standard")


@pytest.mark.parametrize("schedule", ["cosine_restarts", "constant", "polynomial"])
@pytest.mark.parametrize("weighting", ["flat", "min_snr", "debiased"])
def test_what_is_written_is_read_back(schedule: str, weighting: str, tmp_path: Path) -> None:
    ours = TrainSettings.from_values({
        "data": "p\\q", "name": "ü x", "rank": 4, "alpha": 2.5, "schedule": schedule,
        "optimizer": "schedule_free", "precision": "fp32", "targets": ["attention", "feed_forward"],
        "resolution": 768, "caption_dropout": 0.1, "train_text_encoder": True, "seed": 9,
        "loss_weighting": weighting, "warmup_steps": 7, "clip_skip": 2, "weight_decay": 0.2,
    })  # fmt: skip
    again, notes = read(tmp_path, kohya.write(ours), "ours.toml")
    assert not notes and again.model_dump() == ours.model_dump()


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.toml", "rank = "), ("x.toml", "\x00"), ("x.json", "{"), ("x.json", "[1]"),
     ("x.json", "7"), ("x.json", "[" * 100_000)],
)  # fmt: skip
def test_what_is_no_such_file_is_said(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=name):
        read(tmp_path, content, name)


def test_the_table_in_the_docs_is_the_one_of_the_code() -> None:
    assert markdown() in (ROOT / "docs" / "kohya.md").read_text(encoding="utf-8")
    assert all(row.ours in TrainSettings.model_fields for row in KEYS.values())
    assert KEYS["seed"].missing is OURS


def test_mutated_files_lose_nothing_good_and_raise_nothing(tmp_path: Path) -> None:
    outcomes = fuzz(300, seed=1, folder=tmp_path)
    assert set(outcomes) <= {"read", "refused"}, outcomes


def test_a_file_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file .*none.toml"):
        kohya.read(tmp_path / "none.toml")
