"""One damaged run, job or picture set never takes a list with it: the others stay, it is named."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from launch import ROOT
from page_client import Browser, StudioWithoutWorker
from sdlora.cli.main import main
from sdlora.errors import ModelError, SettingsError
from sdlora.events import (
    EVENTS,
    Captioned,
    Done,
    Event,
    Failed,
    Progress,
    RunState,
    Started,
    Step,
    fold,
    from_line,
    plain_step,
    to_line,
)
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.messages import Message
from sdlora.models.registry import detect_family
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.text_files import json_value
from sdlora.workspace import Workspace
from test_events import ONE_OF_EACH
from webui.app_state import Run
from webui.markup import run_card

bytes_in_names = pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
NOT_UTF8 = os.fsdecode(b"caf\xe9")
WRONG = (None, True, [], {}, "x", -1, 1.5, 1e400, float("nan"), 10**400, "\ud800", [[[]]])


def a_line(content: object) -> Callable[[Path], object]:
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda folder: (folder / run_folder.EVENTS_FILE).write_bytes(line + b"\n")


def as_folder(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "events are a folder": as_folder(run_folder.EVENTS_FILE),
    "events cannot be read": lambda folder: (folder / run_folder.EVENTS_FILE).symlink_to(
        "events.jsonl"
    ),
    "pid not utf 8": lambda folder: (folder / run_folder.PID_FILE).write_bytes(b"\xff"),
    "pid is a folder": as_folder(run_folder.PID_FILE),
    "settings not utf 8": lambda folder: (folder / "settings.json").write_bytes(b"\xff"),
    "settings gone": lambda folder: a_line({})(folder) and (folder / "settings.json").unlink(),
    "stop is a folder": as_folder("stop"),
    "nested": a_line(b"[" * 99999),
    "no types": a_line({"event": ["Step"]}),
    "half a character": a_line({"event": "Failed", "message": "\ud800", "advice": "\udfff"}),
    "half a character in a table": a_line(
        {"event": "Started", "what": "a", "total": 1, "details": {"\ud800": "\ud800"}}
    ),
    "template without values": a_line(
        {"event": "Failed", "message": "m", "templates": {"message": {"template": "{x}"}}}
    ),
    "no template": a_line({"event": "Failed", "message": "m", "templates": [{"message": 3}]}),
    "no number": a_line({"event": "Step", "step": 1, "total": 2, "seconds_left": float("nan")}),
}


def damaged_workspace(space: Workspace) -> None:
    """Each damage in a training and in a request for images of its own, and one good of each."""
    queue = Queue(space.database)
    for name, damage in DAMAGES.items():
        for settings in (
            TrainSettings.from_values({"name": name, "data": "x"}),
            ImageRequest(prompt=name),
        ):
            damage(run_folder.start(settings, space, queue))
    folder = run_folder.new_folder(TrainSettings.from_values({"name": "good", "data": "x"}), space)
    list(run_folder.record([Started("a", 1), Step(1, 1, 0.5), Done("good", 1.0)], folder))


@bytes_in_names
def test_the_command_lists_the_good_and_names_the_damaged(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged_workspace(space)
    (space.runs / NOT_UTF8).mkdir()
    (space.runs / NOT_UTF8 / "settings.json").write_text("{}")
    for options in ([], ["--json"]):
        assert main(["runs", "list", "--workspace", str(space.root), *options]) == 0
        lines = capsys.readouterr().out.encode("utf-8").decode().splitlines()
        assert len(lines) == len(DAMAGES) + 2
        assert any("good" in line and "done" in line for line in lines)
        assert any("caf\xe9" in line and "not UTF-8" in line for line in lines)
        (unreadable,) = (line for line in lines if "events are a folder" in line)
        assert "failed" in unreadable and "cannot be read" in unreadable


@bytes_in_names
def test_the_page_opens_lists_the_good_and_names_the_damaged(space: Workspace) -> None:
    damaged_workspace(space)
    for folder in (space.runs / NOT_UTF8, space.datasets / NOT_UTF8, space.datasets / "fine"):
        folder.mkdir()
    (space.runs / NOT_UTF8 / "settings.json").write_text("{}")
    with closing(sqlite3.connect(space.database)) as connection, connection:
        row = "INSERT INTO jobs (kind, folder, submitted_at) VALUES (?, ?, 0)"
        for kind in ("generate", "measure", "grid", "describe"):
            connection.execute(row, (kind, f"/nowhere/{kind}"))
            connection.execute(row, (kind, f"jobs/{kind}\0".encode() + b"\xff"))
    browser = Browser(StudioWithoutWorker(space))
    assert browser.http.get("/").status_code == 200
    browser.open()
    assert "caf\xe9" in browser.value("workspace-problems")
    assert "fine" in space.dataset_folders() and NOT_UTF8 not in space.dataset_folders()
    shown = {run.name: run.state for run in StudioWithoutWorker(space).trainings()}
    assert shown["good"].status == "done"
    assert shown["caf\xe9"].status == shown["events are a folder"].status == "failed"
    for name in shown:
        assert browser.http.get("/", params={"run": name}).status_code == 200


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_a_line_of_wrong_types_is_no_event(event: Event) -> None:
    """Whatever stands in a field, the line gives an event of the right types or ValueError; and
    what it gives can be folded and shown."""
    row = json.loads(to_line(event))
    for name in row:
        for value in WRONG:
            line = json.dumps({**row, name: value})
            try:
                again = from_line(line)
            except ValueError:
                continue
            assert type(again) is EVENTS[row["event"]]
            fold([again])
            for part, before in vars(event).items():
                kinds = (int, float, type(None)) if not isinstance(before, str | dict) else ()
                assert isinstance(getattr(again, part), (type(before), *kinds))
        shorter = {key: value for key, value in row.items() if key != name}
        try:
            from_line(json.dumps(shorter))
        except ValueError:
            continue


def test_bad_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [Step(number, 9, loss=1.0) for number in range(1, 5)]
    bad = ['{"event": "Step", "step": "3", "total": 9}', "[]", '{"event": "Step"}']
    lines = [to_line(good[0]), bad[0], to_line(good[1]), bad[1], bad[2], *map(to_line, good[2:])]
    (tmp_path / run_folder.EVENTS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    state = run_folder.read(tmp_path)
    assert state.unreadable == 3 and len(state.losses) == 4


def test_half_a_character_is_kept_in_a_path_and_marked_in_a_text(tmp_path: Path) -> None:
    event = Captioned("a\udcff.png", "\ud800", "b")
    line = to_line(event)
    assert json.loads(line.encode("utf-8"))["path"] == event.path
    again = from_line(line)
    assert isinstance(again, Captioned)
    assert (again.path, again.before) == (event.path, "\ufffd")
    message = Message("{file} is odd", file=Path("caf\udce9"))
    assert message == "caf\xe9 is odd"
    assert fold([from_line(to_line(Failed(message)))]).error.encode("utf-8")


def test_a_fold_of_many_events_copies_nothing() -> None:
    state, shared = RunState(), None
    for number in range(1, 5001):
        state = fold([Step(number, 5000, loss=1.0)], state)
        shared = shared or state.losses._rows  # type: ignore[attr-defined]
        assert state.losses._rows is shared  # type: ignore[attr-defined]
    early = fold([Step(1, 9, loss=1.0)])
    first, second = (fold([Step(2, 9, loss=loss)], early) for loss in (2.0, 3.0))
    assert early.losses == ((1, 1.0),), "what was there before stays as it was"
    assert first.losses == ((1, 1.0), (2, 2.0)) and second.losses[-1] == (2, 3.0)
    assert first.losses[-2:] == (*early.losses, (2, 2.0))


def test_steps_without_a_loss_are_not_parsed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdlora.jobs import run_reader

    events: list[Event] = [Started("t", 1000)]
    events += [Step(n, 1000, 1 / n if n % 5 == 0 else None, 1e-4, 2.5) for n in range(1, 1001)]
    events += [Step(1001, 1001), Progress("ends")]
    text = "".join(to_line(event) + "\n" for event in events)
    (tmp_path / run_folder.EVENTS_FILE).write_text(text, encoding="utf-8")
    parsed: list[object] = []
    real = run_reader.from_row
    monkeypatch.setattr(run_reader, "from_row", lambda row: parsed.append(row) or real(row))
    assert run_folder.read(tmp_path) == fold(events)
    assert len(parsed) < 10


@pytest.mark.parametrize("number", [0, 1, 1e-5, 1.5, 1e16, 123456.75, -2.0, None])
def test_the_short_way_to_read_a_step_gives_the_same(number: float | None) -> None:
    for event in (Step(3, 9, 0.5, number, number), Step(3, 9, number, None, number)):
        again = plain_step(to_line(event))
        assert again == event or again is None
    assert plain_step(to_line(Step(3, 9, 0.5, 1e-4, 2.5))) is not None
    assert plain_step(to_line(Step(3, 9, float("inf")))) is None


@bytes_in_names
def test_a_model_whose_name_is_no_text_is_left_out_and_named(space: Workspace) -> None:
    for name in (NOT_UTF8, "fine"):
        (space.models / name).mkdir()
    assert space.model_names() == ["starter", "fine"]
    (problem,) = StudioWithoutWorker(space).problems()
    assert problem.message == "the model caf\xe9 is left out: its name is not UTF-8"


def test_a_list_of_folders_that_cannot_be_read_is_named(space: Workspace) -> None:
    (space.root / "lora_folders.txt").mkdir()
    (problem,) = StudioWithoutWorker(space).problems()
    assert "lora_folders.txt cannot be read" in problem.message


def test_a_result_whose_path_is_no_text_is_listed(
    space: Workspace,
) -> None:
    folder = run_folder.new_folder(TrainSettings.from_values({"name": "good", "data": "x"}), space)
    list(run_folder.record([Done("/x/\udce9.safetensors")], folder))
    options = ["runs", "list", "--json", "--workspace", str(space.root)]
    command = [sys.executable, "-m", "sdlora.cli.main", *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == "/x/\udce9.safetensors"


def test_lines_that_are_left_out_are_told_by_list_and_page(
    space: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder.new_folder(TrainSettings.from_values({"name": "good", "data": "x"}), space)
    a_line([1])(folder)
    words = "1 lines of events.jsonl cannot be read and are left out"
    assert main(["runs", "list", "--workspace", str(space.root)]) == 0
    assert words in capsys.readouterr().out
    assert words in run_card(Run(folder, run_folder.read(folder)), "good")


@pytest.mark.parametrize("nested", ["[" * 99_999, '{"a":' * 99_999])
def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path, nested: str) -> None:
    (tmp_path / "model_index.json").write_text(nested, encoding="utf-8")
    with pytest.raises(ModelError, match="damaged"):
        detect_family(tmp_path)
    with pytest.raises(SettingsError, match="cannot be read"):
        TrainSettings.load(tmp_path / "model_index.json")
    with pytest.raises(ValueError, match="nested"):
        json_value(nested)
