"""The command line: flags are the settings, exit codes tell the truth, the README is right."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from pathlib import Path

import pytest

from sdlora.cli.main import build_parser, given, main, with_verb
from sdlora.events import Done, Event, Failed, SampleReady, Started, Step
from sdlora.jobs.control_files import write_request
from sdlora.jobs.run_folder import EVENTS_FILE, new_folder, record
from sdlora.lora.format.hashes import read_hashes
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.terminal import clock
from sdlora.workspace import Workspace

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("verb", "settings", "but"),
    [("train", TrainSettings, {"data"}), ("generate", ImageRequest, {"prompt"})],
)
def test_every_setting_is_a_flag(
    verb: str, settings: type, but: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([verb, "--help"])
    text = capsys.readouterr().out
    for name in set(settings.model_fields) - but:
        assert f"--{name.replace('_', '-')}" in text


def test_flags_become_settings_and_only_those_given() -> None:
    line = (
        "train pictures --name x --steps 200 --targets attention conv --flip --learning-rate 2e-4"
    )
    options = build_parser().parse_args(line.split())
    values = given(options, TrainSettings)
    assert values == {
        "data": "pictures",
        "name": "x",
        "steps": 200,
        "targets": ["attention", "conv"],
        "flip": True,
        "learning_rate": 2e-4,
    }
    assert TrainSettings.from_values(values).targets == ("attention", "conv")


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands("README.md")[:2] == ["python launch.py", "python launch.py test"]


FOLDERS = (".", "docs", "training_data")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    local = [t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_commands_of_a_page_are_understood(page: str) -> None:
    lines = [line for line in commands(page) if line not in commands("README.md")[:2]]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[:2] == ["python", "launch.py"]
        build_parser().parse_args(words[2:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "no/such/folder", "--name", "x"], "no/such/folder"),
        (["train", "training_data/zibo", "--name", "../x"], "cannot be a name"),
        (["train", "training_data/zibo", "--steps", "0"], "steps"),
        (["generate", "a ball", "--steps", "9999"], "steps"),
        (["runs", "show", "nobody"], "no run"),
        (["runs", "stop"], "name a run"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_1(
    arguments: list[str], said: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--workspace", str(workspace)]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_runs_are_listed_shown_and_stopped(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = Workspace.open(workspace)
    events: list[Event] = [
        Started("training a", 4, {"seed": "0"}),
        Step(4, 4, 0.5),
        Done("a.st", 2),
    ]
    for name, said in {"a": events, "b": [Failed("it broke")]}.items():
        settings = TrainSettings.from_values({"data": "pictures", "name": name})
        list(record(said, new_folder(settings, space)))
    assert main(["runs", "list", "--json", "--workspace", str(workspace)]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (rows["a"]["status"], rows["a"]["step"], rows["a"]["loss"]) == ("done", 4, 0.5)
    assert (rows["b"]["status"], rows["b"]["error"]) == ("failed", "it broke")
    assert main(["runs", "show", "a", "--workspace", str(workspace)]) == 0
    assert "seed: 0" in capsys.readouterr().out
    assert main(["runs", "stop", "a", "--workspace", str(workspace)]) == 1
    assert "already ended" in capsys.readouterr().err


def test_generate_writes_where_it_is_told_and_never_over_a_file(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = tmp_path / "out" / "ball.png"
    line = ["generate", "a red ball", "--steps", "2", "--seed", "1", "--output", str(wish)]
    for name in ("ball.png", "ball-2.png"):
        assert main([*line, "--workspace", str(workspace)]) == 0
        assert capsys.readouterr().out.strip() == str(wish.with_name(name))
    assert wish.read_bytes() == wish.with_name("ball-2.png").read_bytes()


def test_a_lora_that_is_not_there_is_told_and_the_picture_still_made(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = tmp_path / "a.png"
    line = ["generate", "a ball <lora:neon_lightning:0.8>", "--steps", "2", "--output", str(wish)]
    assert main([*line, "--workspace", str(workspace)]) == 1
    assert "Did you mean neon_lighting?" in capsys.readouterr().err
    assert wish.exists()


def test_json_is_one_event_a_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", "a ball", "--steps", "2", "--count", "2", "--json"]
    assert main([*line, "--workspace", str(workspace)]) == 0
    kinds = [json.loads(row)["event"] for row in capsys.readouterr().out.splitlines()]
    assert kinds.count(SampleReady.__name__) == 2
    assert kinds[-1] == "Done"


def test_train_makes_the_file_it_names(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", str(ROOT / "training_data" / "zibo"), "--name", "z", "--steps", "2"]
    assert main([*line, "--sample-every", "0", "--workspace", str(workspace)]) == 0
    path = workspace / "loras" / "z.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.exists()
    assert (workspace / "runs" / "z" / EVENTS_FILE).exists()


def test_times_are_said_in_words() -> None:
    assert [clock(s) for s in (4.4, 65, 7500)] == ["4 s", "1 min 05 s", "2 h 05 min"]


def test_a_training_is_paused_resumed_and_repeated_from_its_file(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the settings of a kohya file; the run is resumed here, for no worker is there."""
    place = ["--workspace", str(workspace)]
    config = workspace / "kohya.toml"
    config.write_text(
        "max_train_steps = 3\nnetwork_dim = 2\nbase_weights = 'x'\n", encoding="utf-8"
    )
    data = str(ROOT / "training_data" / "zibo")
    folder = workspace / "runs" / "z"
    line = ["train", data, "--name", "z", "--sample-every", "0", "--batch-size", "1"]
    pausing = threading.Thread(target=pause_when_there, args=(folder,))
    pausing.start()
    assert main([*line, "--config", str(config), *place]) == 0
    pausing.join()
    shown = capsys.readouterr()
    assert "base_weights = 'x' is not done: the base model is used as it is" in shown.err
    assert "paused at step 1: python launch.py runs resume z" in shown.out
    assert main(["runs", "list", *place]) == 0
    assert "z: paused, step 1 of 3 (resumes from step 1)" in capsys.readouterr().out
    assert main(["runs", "save", "z", *place]) == 1
    assert "it cannot write a checkpoint now" in capsys.readouterr().err
    assert main(["runs", "resume", "z", *place]) == 0
    first = workspace / "loras" / "z.safetensors"
    assert capsys.readouterr().out.strip() == str(first)
    assert main(["runs", "show", "z", *place]) == 0
    assert "take: " in capsys.readouterr().out and (folder / "curves.png").exists()
    assert main(["runs", "toml", "z", *place]) == 0
    assert "network_dim = 2\n" in capsys.readouterr().out
    assert main(["train", "--like", str(first), "--name", "again", *place]) == 0
    again = workspace / "loras" / "again.safetensors"
    assert read_hashes(first).body == read_hashes(again).body
    assert "warning" not in capsys.readouterr().err


def pause_when_there(folder: Path) -> None:
    while not folder.exists():
        time.sleep(0.001)
    write_request(folder, "pause")


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        ([], ["serve", "--open"]),
        (["--workspace", "x"], ["serve", "--open", "--workspace", "x"]),
        (["runs", "list"], ["runs", "list"]),
        (["--version"], ["--version"]),
        (["-h"], ["-h"]),
    ],
)
def test_flags_without_a_verb_open_the_page(arguments: list[str], verb: list[str]) -> None:
    assert with_verb(arguments) == verb


def test_ctrl_c_is_one_line(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdlora.cli.main.Workspace.open", interrupted)
    assert main(["worker", "--workspace", str(workspace)]) == 130
    assert capsys.readouterr().err == "\nStopped.\n"
