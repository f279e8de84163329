"""What is shown: text stays text, pictures are only those that were shown."""

from pathlib import Path

import pytest
from PIL import Image

from page_client import StudioWithoutWorker
from sdlora.errors import DataError, SdloraError, SettingsError
from sdlora.events import (
    Failed,
    Progress,
    RunState,
    SampleReady,
    Started,
    Step,
    Validated,
    Warned,
    fold,
)
from sdlora.messages import Setting
from sdlora.workspace import Workspace
from webui import markup
from webui.app_state import AppState, Run
from webui.media import Media

NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; drop", "${1}{{2}}"]


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, "teal").save(path)
    return path


@pytest.mark.parametrize("text", NASTY)
def test_no_text_becomes_markup(studio: AppState, text: str, tmp_path: Path) -> None:
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
        (
            RunState(status="running", step=3, total=9, phase="drawing samples", phase_total=4),
            "Step 3 of 9 · drawing samples 0 of 4",
        ),
        (RunState(status="running", step=3, total=9, seconds_left=200), "about 3 min left"),
        (RunState(status="done", seconds=8000), "Finished in 2 h 13 min"),
        (RunState(status="stopped", step=3, total=9), "At step 3 of 9"),
    ],
)
def test_status_lines(state: RunState, said: str) -> None:
    assert said in markup.status_line(state)


def test_a_bar_stays_that_of_the_steps_while_samples_are_drawn() -> None:
    state = fold([Started("t", 9), Step(3, 9), Progress("drawing samples", 1, 4)])
    assert 'max="9" value="3"' in markup.run_card(Run(Path("x"), state), "x")
    state = fold([Progress("encoding captions", 4, 21)])
    assert 'max="21" value="4"' in markup.run_card(Run(Path("x"), state), "x")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("the disk is full", "The disk is full."),
        (DataError("{file} is damaged", file=Path("/srv/secret/a b.png")), "a b.png is damaged."),
        (
            SettingsError("{s} is too low\nand {t} too high", s=Setting("steps"), t="x"),
            "Steps is too low.</p><p>And x too high.",
        ),
    ],
)
def test_errors_are_whole_sentences_in_words_of_the_page(
    error: SdloraError | str, shown: str
) -> None:
    assert f"<p>{shown}</p>" in markup.problem(error) and "/srv" not in markup.problem(error)


def test_one_warning_stands_once() -> None:
    same = [Warned("the cache is full"), Warned("The cache is full."), Warned("the cache is full.")]
    assert markup.notices(same).count("<li>") == 1


def test_loss_curve_stays_small_and_in_its_box() -> None:
    curve = markup.loss_curve([(step, 1 / step) for step in range(1, 20_000)])
    assert len(curve) < 30_000
    points = [p.split(",") for p in curve.split('points="')[2].split('"')[0].split()]
    assert all(0 <= float(x) <= 600 and 0 <= float(y) <= 150 for x, y in points)
    assert markup.loss_curve([(1, 0.5)]) == ""
    held = [Validated(0, 2.0), Validated(50, None, drift=0.1), Validated(100, 0.5, best=True)]
    curve = markup.loss_curve([(step, 1 / step) for step in range(1, 101)], held)
    points = curve.split('class="held-out" points="')[1].split('"')[0].split()
    assert points == ["0.0,5.0", "600.0,113.8"], "on the same axes, from the highest"
    assert "validation loss 0.500" in curve


def test_checkpoints_say_which_to_take() -> None:
    state = fold([Validated(50, 0.4, best=True), Validated(100, 0.6)])
    shown = markup.checkpoints([50, 100], state, "<after> step 50")
    assert "2 checkpoints" in shown and "Step 50, validation loss 0.4000 <b>best" in shown
    assert "&lt;after&gt; step 50" in shown and shown.count("best") == 1
    assert markup.checkpoints([], state, "") == ""


def test_media_serves_only_what_was_shown(studio: AppState, tmp_path: Path) -> None:
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
    Image.new("RGB", (9, 9)).save(studio.workspace.outputs / "a.webp")
    token = media.link(studio.workspace.outputs / "a.webp").rpartition("/")[2]
    assert media.full(token).media_type == "image/webp"
    inside.unlink()
    assert media.link(inside) == ""


@pytest.mark.parametrize("path", ["\0", "a" * 9999, "\ud800", "circle.png", "/dev/zero", "", "//"])
def test_what_is_no_path_has_no_address(studio: AppState, path: str) -> None:
    (studio.workspace.outputs / "circle.png").symlink_to("circle.png")
    media = Media((studio.workspace.outputs,))
    assert media.link(path) == media.link(f"{studio.workspace.outputs}/{path}") == ""


def test_a_picture_of_too_many_pixels_has_no_thumbnail(studio: AppState) -> None:
    """A file of some kilobytes that would be 300 MB in memory."""
    media = Media((studio.workspace.outputs,))
    large = studio.workspace.outputs / "large.png"
    Image.new("1", (10_000, 10_000)).save(large)
    assert large.stat().st_size < 100_000
    token = media.link(large).rpartition("/")[2]
    assert media.small(token).status_code == 404
