"""Pictures dropped on the page become a set, and what cannot be used is named."""

import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from page_client import Browser, StudioWithoutWorker
from picture_files import BAD, GOOD, make_folder
from sdlora.data.report import Preflight, check_dataset
from sdlora.errors import DataError, SettingsError
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace
from webui import dataset_upload
from webui.app_state import AppState
from webui.form import label


@pytest.fixture
def studio(workspace: Path) -> AppState:
    return StudioWithoutWorker(Workspace.open(workspace))


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    Image.new("RGB", size, "teal").save(path)
    return path


def test_dropped_pictures_become_a_set(studio: AppState, tmp_path: Path) -> None:
    files = [picture(tmp_path / "cat.png"), picture(tmp_path / "dog.JPG")]
    (tmp_path / "cat.txt").write_text("zibo, a cat", encoding="utf-8")
    (tmp_path / "none.txt").write_text("of nothing", encoding="utf-8")
    (tmp_path / "fake.png").write_bytes(b"<svg onload=alert(1)>")
    broken = picture(tmp_path / "broken.png", (400, 300))
    broken.write_bytes(broken.read_bytes()[:200])
    rest = [tmp_path / name for name in ("cat.txt", "none.txt", "fake.png")]
    added = dataset_upload.add_files(studio.workspace, "my set", [*files, *rest, broken])
    assert (added.pictures, added.captions) == (2, 1)
    assert sorted(p.name for p in added.folder.iterdir()) == ["cat.png", "cat.txt", "dog.jpg"]
    assert [problem.split()[0] for problem in added.problems] == [
        *("fake.png", "broken.png", "none.txt"),
    ]
    found = dataset_upload.read_set(added.folder)
    assert found.captions == ("zibo, a cat", "") and found.trigger_word == "zibo"
    again = dataset_upload.add_files(studio.workspace, "my set", [files[0], tmp_path / "cat.txt"])
    assert {"cat-2.png", "cat-2.txt"} <= {p.name for p in again.folder.iterdir()}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "con", ".hidden", "x" * 99])
def test_a_set_is_named_not_placed(studio: AppState, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a name"):
        dataset_upload.add_files(studio.workspace, name, [picture(tmp_path / "cat.png")])


def test_a_set_of_nothing_or_of_ours_is_refused(studio: AppState, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drop pictures first"):
        dataset_upload.add_files(studio.workspace, "mine", [])
    with pytest.raises(DataError, match="ships with sdlora"):
        dataset_upload.add_files(studio.workspace, "zibo", [picture(tmp_path / "cat.png")])


def test_upload_through_the_page(studio: AppState, tmp_path: Path) -> None:
    browser = Browser(studio)
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


def own_set(studio: AppState, name: str = "mine") -> Path:
    """A set with a picture of every kind."""
    return make_folder(studio.workspace.datasets / name)


def checked(studio: AppState, name: str) -> Preflight:
    return check_dataset(TrainSettings.from_values({"data": name, "name": "n"}), studio.workspace)


def test_the_page_shows_every_picture_as_the_training_would_see_it(studio: AppState) -> None:
    own_set(studio)
    browser = Browser(studio)
    browser.set("pictures-choice", "mine")
    browser.click("check-pictures")
    said = browser.value("preflight")
    assert f"{len(GOOD)} pictures: " in said and "per epoch: each picture is seen" in said
    for name in (*GOOD, *BAD):
        assert Path(name).name in said
    assert "s the same file as 1.rgb.png" in said and "a GIF picture" in said
    tall = next(r for r in checked(studio, "mine").rows if r.example.image.name == "tall.png")
    assert 0 < tall.cut.top < 700 and f"top:{tall.cut.top / 700:.2%};" in said
    address = re.findall(r'src="(/media/[^"]+)"', said)
    assert len(address) == len(GOOD)
    assert all(browser.http.get(link).headers["content-type"] == "image/webp" for link in address)
    browser.set("pictures-choice", None)
    browser.click("check-pictures")
    assert 'role="alert"' in browser.value("measure-notice")


def test_what_the_preflight_says_is_escaped(studio: AppState) -> None:
    folder = studio.workspace.datasets / "mine"
    folder.mkdir(parents=True)
    evil = "<img src=x onerror=alert(1)>"
    picture(folder / f"{evil.replace('/', '')}.png")
    (folder / "a<b>.png").write_bytes(b"")
    (folder / f"{evil}.txt").write_text(f"{evil}, {evil}", encoding="utf-8")
    browser = Browser(studio)
    browser.set("pictures-choice", "mine")
    browser.click("check-pictures")
    assert "<img src=x" not in browser.value("preflight") and "a<b>" not in browser.value(
        "preflight"
    )


@pytest.mark.parametrize("field", ["more_data", "regularisation", "masks", "validation_data"])
def test_the_page_reaches_sets_alone(studio: AppState, tmp_path: Path, field: str) -> None:
    picture(tmp_path / "secret.png")
    browser = Browser(studio)
    browser.set("pictures-choice", "zibo")
    browser.set_labelled(label(field), str(tmp_path))
    browser.click("check-pictures")
    assert "not one of the sets" in browser.value("measure-notice")
    assert "secret" not in browser.value("measure-notice") and not browser.value("preflight")
    many = field in ("more_data", "regularisation")
    browser.set_labelled(label(field), "2*neon_lighting" if many else "neon_lighting")
    browser.click("check-pictures")
    assert f"{40 if many else 20} pictures: " in browser.value("preflight")


def test_a_zip_becomes_a_set_of_its_own(studio: AppState, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        for number in range(2):
            path = picture(tmp_path / f"{number}.png", (20 + number, 20))
            made.write(path, f"3_zibo/{number}.png")
        made.writestr("3_zibo/0.txt", "zibo, sea")
        made.writestr("../out.png", b"x")
    added = dataset_upload.add_files(studio.workspace, "zipped", [tmp_path / "a.zip"])
    assert (added.pictures, added.captions) == (2, 2)
    assert any("leads out of the archive" in problem for problem in added.problems)
    assert dataset_upload.read_set(added.folder).captions == ("zibo, sea", "")
    assert {"zipped"} == {p.name for p in studio.workspace.datasets.iterdir()}
    with pytest.raises(DataError, match="there is a set of that name"):
        dataset_upload.add_files(studio.workspace, "zipped", [tmp_path / "a.zip"])
    with pytest.raises(DataError, match="by itself"):
        dataset_upload.add_files(
            studio.workspace, "other", [tmp_path / "a.zip", tmp_path / "0.png"]
        )
    (tmp_path / "b.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be unpacked"):
        dataset_upload.add_files(studio.workspace, "other", [tmp_path / "b.zip"])


def test_captions_are_changed_on_the_page_and_taken_back(studio: AppState) -> None:
    folder = studio.workspace.datasets / "mine"
    folder.mkdir(parents=True)
    picture(folder / "a.png")
    (folder / "a.txt").write_text("zibo, <b>cat</b>, sea", encoding="utf-8")
    browser = Browser(studio)
    browser.set("pictures-choice", "mine")
    browser.set_labelled("Find in captions", "cat")
    browser.set_labelled("Replace with", "dog")
    browser.set_labelled("Tags to remove", "sea")
    browser.click("captions-show")
    said = browser.value("captions-said")
    assert "1 caption would change" in said and "<b>cat" not in said and "dog&lt;/b&gt;" in said
    assert (folder / "a.txt").read_text() == "zibo, <b>cat</b>, sea"
    browser.click("captions-write")
    assert (folder / "a.txt").read_text() == "zibo, <b>dog</b>\n"
    browser.click("captions-undo")
    assert (folder / "a.txt").read_text() == "zibo, <b>cat</b>, sea"
    browser.click("captions-undo")
    assert "There is no change of captions" in browser.value("captions-said")
    for name in ("zibo", None):
        browser.set("pictures-choice", name)
        browser.click("captions-write")
        assert "Choose a set of your own" in browser.value("captions-said")


def test_dropped_captions_of_every_kind_go_with_their_pictures(
    studio: AppState, tmp_path: Path
) -> None:
    files = [picture(tmp_path / f"{name}.png", (20, 20 + n)) for n, name in enumerate("abc")]
    texts = {"a.png.txt": "zibo, a", "b.json": '{"caption": "zibo, b"}', "c.json": '{"id": 1}'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    dropped = [*files, *(tmp_path / name for name in texts)]
    added = dataset_upload.add_files(studio.workspace, "mine", dropped)
    assert (added.pictures, added.captions) == (3, 2)
    assert dataset_upload.read_set(added.folder).captions == ("zibo, a", "zibo, b", "")
    assert "c.json is left out: holds no caption" in added.problems[0]
    again = dataset_upload.add_files(studio.workspace, "mine", [files[0], tmp_path / "a.png.txt"])
    found = dataset_upload.read_set(again.folder)
    captions = {p.name: text for p, text in zip(found.pictures, found.captions, strict=True)}
    assert captions["a-2.png"] == "zibo, a"


def test_the_page_says_which_file_is_read_from_then_on(studio: AppState) -> None:
    folder = studio.workspace.datasets / "mine"
    folder.mkdir(parents=True)
    picture(folder / "a.png")
    (folder / "metadata.csv").write_text("file_name,text\na.png,zibo\n")
    browser = Browser(studio)
    browser.set("pictures-choice", "mine")
    browser.set_labelled("Find in captions", "zibo")
    browser.set_labelled("Replace with", "robo")
    browser.click("captions-write")
    assert "a.txt is read instead of metadata.csv" in browser.value("captions-said")
    assert dataset_upload.read_set(folder).captions == ("robo",)
