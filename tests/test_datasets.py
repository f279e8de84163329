"""Pictures dropped on the page become a set, and what cannot be used is named."""

from pathlib import Path

import pytest
from PIL import Image

from sdlora.errors import DataError, SettingsError
from sdlora.workspace import Workspace
from surfing import Browser, StudioWithoutWorker
from webui import datasets, server
from webui.studio import Studio


@pytest.fixture
def studio(workspace: Path) -> Studio:
    return StudioWithoutWorker(Workspace.open(workspace))


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


def test_upload_through_the_page(studio: Studio, tmp_path: Path) -> None:
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
