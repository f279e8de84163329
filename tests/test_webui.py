"""The page over HTTP: what its handlers answer, what it shows, and what it never does."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from fakes import fake_worker
from launch import ROOT
from sdlora import runs
from sdlora.errors import BusyError, DataError, SettingsError
from sdlora.events import Failed, RunState, SampleReady, Started, Step, Warned, fold
from sdlora.settings import ImageRequest, TrainSettings, with_preset
from sdlora.workspace import Workspace
from webui import datasets, markup, server
from webui.form import Form, component, widget
from webui.guards import HEADERS
from webui.media import Media
from webui.studio import Run, Studio
from webui.tabs.generate import with_tag

NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; drop", "${1}{{2}}"]


class StudioWithoutWorker(Studio):
    """Tests start the worker that they want."""

    def wake(self) -> None:
        pass


@pytest.fixture
def studio(workspace: Path) -> Studio:
    return StudioWithoutWorker(Workspace.open(workspace))


class Browser:
    """Speaks to the page as its JavaScript does; components are named by their `elem_id`."""

    def __init__(self, studio: Studio) -> None:
        app = server.make_app(studio)
        self.http = TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)
        self.config = self.http.get("/config").json()
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.ids = {p["props"].get("elem_id"): p["id"] for p in self.config["components"]}
        self.values = {i: part["props"].get("value") for i, part in self.parts.items()}

    def set(self, elem_id: str, value: Any) -> None:
        self.values[self.ids[elem_id]] = value

    def set_labelled(self, label: str, value: Any) -> None:
        (found,) = [i for i, p in self.parts.items() if p["props"].get("label") == label]
        self.values[found] = value

    def value(self, elem_id: str) -> Any:
        return self.values[self.ids[elem_id]]

    def fire(self, target: int | None, event: str, query: str = "") -> None:
        """Run the handler of an event, and take in what it changes."""
        (one,) = [d for d in self.config["dependencies"] if [target, event] in d["targets"]]
        body = {
            "fn_index": one["id"],
            "data": [self.values[i] for i in one["inputs"]],
            "session_hash": "test",
        }
        answer = self.http.post(f"/gradio_api/run/predict{query}", json=body)
        assert answer.status_code == 200, answer.text
        for output, value in zip(one["outputs"], answer.json()["data"], strict=True):
            if isinstance(value, dict) and value.get("__type__") == "update":
                self.parts[output]["props"].update(value)
                if "value" not in value:
                    continue
                value = value["value"]
            self.values[output] = value

    def click(self, elem_id: str) -> None:
        self.fire(self.ids[elem_id], "click")

    def open(self, query: str = "") -> None:
        (one,) = [d for d in self.config["dependencies"] if d["targets"][0][1] == "load"]
        self.fire(one["targets"][0][0], "load", query)

    def tick(self) -> None:
        for part in [p for p in self.parts.values() if p["type"] == "timer"]:
            self.fire(part["id"], "tick")

    def prop(self, elem_id: str, name: str) -> Any:
        return self.parts[self.ids[elem_id]]["props"].get(name)


@pytest.fixture
def browser(studio: Studio) -> Browser:
    browser = Browser(studio)
    browser.open()
    return browser


@contextmanager
def working(studio: Studio) -> Iterator[None]:
    """A worker, until the queue is empty."""
    worker = fake_worker(studio.workspace.root, idle_s=0.2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_generate_shows_the_pictures_and_what_was_not_used(
    studio: Studio, browser: Browser
) -> None:
    browser.set("prompt", "a red ball <lora:nobody:0.8>")
    browser.set_labelled("Count", 2)
    browser.set("seed", 7)
    browser.click("generate")
    assert "Waiting" in browser.value("generate-card")
    assert browser.prop("cancel", "interactive")
    with working(studio):
        pass
    browser.tick()
    card = browser.value("generate-card")
    assert "Done" in card and "there is no LoRA named &lt;nobody&gt;" in card
    assert not browser.prop("cancel", "interactive")
    shown = browser.value("pictures")
    assert shown.count("<img") == 2 and "seed 8" in shown
    link = shown.split('href="')[1].split('"')[0]
    answer = browser.http.get(link)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (path, _) = sorted(studio.workspace.outputs.rglob("*.png"))
    assert answer.content == path.read_bytes(), "the very file, with all its text"
    assert browser.http.get(f"{link}/small").headers["content-type"] == "image/webp"


def test_a_setting_out_of_bounds_is_one_sentence_and_no_job(
    studio: Studio, browser: Browser
) -> None:
    browser.set_labelled("Guidance", 1000)
    browser.click("generate")
    assert "guidance = 1000" in browser.value("generate-notice")
    assert not studio.queue.busy()
    browser.set_labelled("Guidance", 5)
    browser.click("generate")
    assert browser.value("generate-notice") == ""


def test_cancel_takes_the_request_out_of_the_queue(studio: Studio, browser: Browser) -> None:
    browser.click("generate")
    browser.click("cancel")
    assert "Stopped" in browser.value("generate-card")
    assert not studio.queue.busy()


def test_train_from_the_first_click_to_the_prompt(studio: Studio, browser: Browser) -> None:
    browser.set("pictures-choice", "neon_lighting")
    browser.fire(browser.ids["pictures-choice"], "change")
    assert browser.value("lora-name").startswith("neon_lighting")
    assert browser.value("trigger-word") == "neon lighting"
    assert browser.value("thumbs").count("<img") == 20
    assert "20 pictures, 250 steps" in browser.value("summary")
    browser.set("lora-name", "my neon")
    browser.set_labelled("Sample every", 10)
    (steps,) = [
        i
        for i, p in browser.parts.items()
        if p["props"].get("label") == "Steps" and browser.values[i] == 250
    ]
    browser.values[steps] = 20
    browser.click("start")
    assert 'data-run="my neon"' in browser.value("run-card")
    assert browser.prop("stop", "visible")
    with working(studio):
        pass
    browser.tick()
    assert "Done" in browser.value("run-card")
    assert browser.value("samples").count("<img") == 2
    assert "<polyline" in browser.value("curve")
    assert browser.prop("use", "visible") and not browser.prop("stop", "visible")
    settings = TrainSettings.load(studio.workspace.runs / "my neon" / runs.SETTINGS_FILE)
    said = {"data", "name", "trigger_word", "steps", "sample_every"}
    assert settings.given().keys() == said, "what the preset says is left to the training"
    browser.set("prompt", "a red house")
    browser.click("use")
    assert browser.value("prompt") == "a red house, neon lighting, <lora:my neon:0.8>"


def test_a_page_opened_again_shows_the_run_its_address_names(studio: Studio) -> None:
    settings = {"data": "x", "steps": 3, "sample_every": 0}
    for name in ("older", "newer"):
        studio.start(TrainSettings.of({"name": name, **settings}))
    browser = Browser(studio)
    browser.open("?run=older")
    assert 'data-run="older"' in browser.value("run-card")
    browser.open("?run=../../etc")
    assert 'data-run="newer"' in browser.value("run-card"), "a name, never a path"
    with working(studio):
        pass
    browser.open()
    assert 'data-run="newer"' in browser.value("run-card")
    assert [name for name, _ in browser.prop("history", "choices")] == [
        "newer · done",
        "older · done",
    ]


def test_stop_keeps_and_a_second_stop_does_not_wait(studio: Studio, browser: Browser) -> None:
    run = studio.start(TrainSettings.of({"name": "long", "data": "x", "steps": 5000}))
    studio.queue.claim("somebody")
    browser.open()
    browser.click("stop")
    assert runs.stop_asked(run.folder) and not runs.stop_asked_now(run.folder)
    assert browser.prop("stop", "value") == "Stop now, without the last steps"
    browser.click("stop")
    assert runs.stop_asked_now(run.folder)


def test_a_run_that_fell_out_of_the_queue_is_not_waited_for(studio: Studio) -> None:
    run = studio.start(ImageRequest.of({}))
    studio.queue.database.unlink()
    fresh = StudioWithoutWorker(studio.workspace)
    assert "not in the queue" in fresh.run(run.folder).state.error


def test_the_time_of_a_plan_is_that_of_the_last_training_like_it(studio: Studio) -> None:
    given = TrainSettings.of({"name": "a", "data": "x", "steps": 10, "sample_every": 0})
    settings = with_preset(given, "starter")
    assert studio.seconds_per_step(settings) is None
    studio.start(given)
    with working(studio):
        pass
    assert studio.seconds_per_step(settings) == pytest.approx(0.02)
    assert studio.seconds_per_step(settings.model_copy(update={"rank": 99})) is None
    assert "About 2 s on this machine" in markup.plan(
        settings.model_copy(update={"steps": 100}), 20, 0.02
    )


# Pictures dropped on the page


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, "teal").save(path)
    return path


def test_dropped_pictures_become_a_set(studio: Studio, tmp_path: Path) -> None:
    files = [picture(tmp_path / "cat.png"), picture(tmp_path / "dog.JPG")]
    (tmp_path / "cat.txt").write_text("zibo, a cat", encoding="utf-8")
    (tmp_path / "none.txt").write_text("of nothing", encoding="utf-8")
    (tmp_path / "fake.png").write_bytes(b"<svg onload=alert(1)>")
    broken = picture(tmp_path / "broken.png", (400, 300))
    broken.write_bytes(broken.read_bytes()[:200])
    rest = [tmp_path / name for name in ("cat.txt", "none.txt", "fake.png")]
    added = datasets.add(studio.workspace, "my set", [*files, *rest, broken])
    assert (added.pictures, added.captions) == (2, 1)
    assert sorted(p.name for p in added.folder.iterdir()) == ["cat.png", "cat.txt", "dog.jpg"]
    assert [problem.split()[0] for problem in added.problems] == [
        *("fake.png", "broken.png", "none.txt"),
    ]
    found = datasets.look(added.folder)
    assert found.captions == ("zibo, a cat", "") and found.trigger_word == "zibo"
    again = datasets.add(studio.workspace, "my set", [files[0], tmp_path / "cat.txt"])
    assert {"cat-2.png", "cat-2.txt"} <= {p.name for p in again.folder.iterdir()}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "con", ".hidden", "x" * 99])
def test_a_set_is_named_not_placed(studio: Studio, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a name"):
        datasets.add(studio.workspace, name, [picture(tmp_path / "cat.png")])


def test_a_set_of_nothing_or_of_ours_is_refused(studio: Studio, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the files is a picture"):
        datasets.add(studio.workspace, "mine", [])
    with pytest.raises(DataError, match="ships with sdlora"):
        datasets.add(studio.workspace, "zibo", [picture(tmp_path / "cat.png")])


def test_upload_through_the_page(studio: Studio, browser: Browser, tmp_path: Path) -> None:
    server.empty_uploads(studio.workspace)
    browser = Browser(studio)  # made after the folder, as `serve` does
    path = picture(tmp_path / "cat.png")
    sent = browser.http.post("/gradio_api/upload", files={"files": ("cat.png", path.read_bytes())})
    (place,) = sent.json()
    assert Path(place).is_relative_to(studio.workspace.uploads)
    meta = {"_type": "gradio.FileData"}
    browser.set("files", [{"path": place, "orig_name": "cat.png", "meta": meta}])
    browser.set("set-name", "cats")
    browser.click("add")
    assert "1 pictures added" in browser.value("add-notice")
    assert browser.value("pictures-choice") == "cats"
    assert (studio.workspace.datasets / "cats" / "cat.png").read_bytes() == path.read_bytes()


# What is shown


@pytest.mark.parametrize("text", NASTY)
def test_no_text_becomes_markup(studio: Studio, text: str, tmp_path: Path) -> None:
    sample = picture(studio.workspace.outputs / "a.png")
    state = fold(
        [
            Started(text, 3, {text: text}),
            Step(1, 3),
            SampleReady(str(sample), 1, text, 0),
            Warned(text, text),
            Failed(text, text),
        ]
    )
    run = Run(studio.workspace.runs / "x", state)
    shown = markup.run_card(run, text) + markup.gallery(state.samples, studio.media)
    shown += markup.problem(text) + markup.thumbnails([sample], studio.media, [text], text)
    assert text not in shown or text.isalnum() or "<" not in text and '"' not in text
    assert "<script" not in shown and "<img src=x" not in shown and markup.esc(text) in shown


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (RunState(), "Starts in a moment"),
        (RunState(ahead=1), "1 job comes first"),
        (RunState(ahead=3), "3 jobs come first"),
        (RunState(status="loading", phase="loading the model"), "Loading the model …"),
        (RunState(status="running", phase="encoding", phase_total=9, phase_done=4), "4 of 9"),
        (RunState(status="running", step=3, total=9), "Step 3 of 9"),
        (RunState(status="running", step=3, total=9, seconds_left=200), "about 3 min left"),
        (RunState(status="done", seconds=8000), "Finished in 2 h 13 min"),
        (RunState(status="stopped", step=3, total=9), "At step 3 of 9"),
    ],
)
def test_status_lines(state: RunState, said: str) -> None:
    assert said in markup.status_line(state)


def test_loss_curve_stays_small_and_in_its_box() -> None:
    curve = markup.loss_curve([(step, 1 / step) for step in range(1, 20_000)])
    assert len(curve) < 30_000
    points = [p.split(",") for p in curve.split('points="')[2].split('"')[0].split()]
    assert all(0 <= float(x) <= 600 and 0 <= float(y) <= 150 for x, y in points)
    assert markup.loss_curve([(1, 0.5)]) == ""


def test_tag_goes_into_a_prompt_once() -> None:
    assert with_tag("", "neon", ("neon lighting",)) == "neon lighting, <lora:neon:0.8>"
    once = with_tag("A cat,", "neon", ("Cat",))
    assert once == "A cat, <lora:neon:0.8>"
    assert with_tag(once, "neon", ("cat",)) == once


def test_media_serves_only_what_was_shown(studio: Studio, tmp_path: Path) -> None:
    media = Media((studio.workspace.outputs,))
    inside = picture(studio.workspace.outputs / "a.png")
    outside = picture(tmp_path / "secret.png")
    (studio.workspace.outputs / "link.png").symlink_to(outside)
    assert media.link(inside).startswith("/media/")
    assert media.link(outside) == media.link(studio.workspace.outputs / "link.png") == ""
    assert media.link(studio.workspace.outputs / ".." / ".." / "secret.png") == ""
    assert media.full("../secret.png").status_code == 404
    page = studio.workspace.outputs / "page.png"
    page.write_bytes(b"<html><script>alert(1)</script>")
    token = media.link(page).rpartition("/")[2]
    assert media.full(token).status_code == media.small(token).status_code == 404
    inside.unlink()
    assert media.link(inside) == ""


# Settings as a form


@pytest.mark.parametrize("settings", [TrainSettings, ImageRequest])
def test_every_setting_has_a_component(settings: type[Any]) -> None:
    for name, field in settings.model_fields.items():
        part = component(settings, name)
        assert part.label.lower() == name.replace("_", " ")
        assert part.info == field.description
        row, _ = widget(field)
        if not field.is_required() and field.default is not None:
            assert row.parse(part.value) == field.default, name


def test_a_form_reads_back_what_it_shows() -> None:
    form = Form(TrainSettings)
    form.add(*TrainSettings.model_fields)
    values = {
        "data": "x", "name": "y", "goal": "character", "targets": ("conv",), "rank": 3,
        "resolution": 128, "flip": True, "sample_prompts": ("a", "b"), "learning_rate": 2e-3,
    }  # fmt: skip
    shown = form.show(values)
    assert form.read(shown) == values
    assert TrainSettings.of(form.read(shown)) == TrainSettings.of(values)
    wiped = {**shown, form.fields["rank"]: None, form.fields["resolution"]: None}
    assert form.read(wiped).keys() == values.keys() - {"rank", "resolution"}
    blank = {**shown, form.fields["sample_prompts"]: " \n b \n\n"}
    assert form.read(blank)["sample_prompts"] == ("b",)


# The server


def test_the_page_never_loads_torch(workspace: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from webui import server; "
        "from sdlora.workspace import Workspace; from webui.studio import Studio; "
        f"server.make_app(Studio(Workspace.open({str(workspace)!r}))); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_the_page_itself(studio: Studio) -> None:
    browser = Browser(studio)
    answer = browser.http.get("/")
    assert answer.status_code == 200 and HEADERS.items() <= dict(answer.headers).items()
    assert "googleapis" not in answer.text and "cdn" not in answer.text.lower()
    config = browser.config
    assert all(one["api_visibility"] == "private" for one in config["dependencies"])
    assert not any(one["queue"] for one in config["dependencies"]), "our queue, not Gradio's"
    labelled = ("textbox", "number", "slider", "dropdown", "radio", "checkbox", "file")
    for part in config["components"]:
        assert part["type"] not in labelled or part["props"]["label"], part


def test_a_taken_port_is_named_and_so_is_a_free_one() -> None:
    taken = server.bind(None)
    port = taken.getsockname()[1]
    with pytest.raises(BusyError, match=rf"port {port} is taken .* is free: --port \d+"):
        server.bind(port)
    other = server.bind(None)
    assert other.getsockname()[1] > port
    for listener in (taken, other):
        listener.close()
    with pytest.raises(BusyError):
        server.bind(99999)


def test_serve_ends_with_3_when_its_fixed_port_is_taken(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = server.bind(None)
    with taken:
        code = server.serve(Workspace.open(workspace), taken.getsockname()[1])
    assert code == server.PORT_TAKEN == 3
    assert "is taken by another program" in capsys.readouterr().err


@pytest.mark.slow
def test_two_pages_one_workspace(workspace: Path) -> None:
    """The real command: the second start names the address of the first; Ctrl+C ends the first."""
    code = (
        "import sys; from sdlora.workspace import Workspace; from webui import server, studio; "
        "studio.Studio.wake = lambda self: None; "
        f"sys.exit(server.serve(Workspace.open({str(workspace)!r})))"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout
        address = first.stdout.readline().split()[-1]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (second.returncode, address in second.stdout) == (0, True)
    finally:
        first.terminate()
        first.wait(30)
    uploads = Workspace(workspace).uploads
    assert uploads.stat().st_mode & 0o777 == 0o700


def test_a_dead_workers_job_wakes_another(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(arguments: list[str], log: Path) -> Any:
        started.append(arguments)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])

    monkeypatch.setattr("webui.studio.start_detached", start)
    studio = Studio(Workspace.open(workspace))
    run = studio.start(ImageRequest.of({}))
    studio.run(run.folder)
    assert started == [["-m", "sdlora.worker", "--workspace", str(workspace)]], "one is starting"
    deadline = time.monotonic() + 20
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        studio.run(run.folder)
    assert len(started) == 2, "it died, so the next look starts another"
