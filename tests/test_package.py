"""The package that pip installs: what is in it, what it needs, and where it keeps things."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

import sdlora
from launch import REQUIREMENTS, ROOT, pins, python_problem
from sdlora.starter.sets import SETS, draw_shipped_sets
from sdlora.workspace import default_workspace

LEAVE_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
FILES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built without a network."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    source = tmp_path_factory.mktemp("source")
    for folder in ("sdlora", "webui"):
        shutil.copytree(ROOT / folder, source / folder, ignore=LEAVE_OUT)
    for folder in ("tests", "benchmarks", "training_data"):  # what must stay out of it
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for file in FILES:
        shutil.copy(ROOT / file, source)
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, "wheels"], cwd=source, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return zipfile.ZipFile(next((source / "wheels").iterdir()))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """What the wheel says of itself."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_file_of_both_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("sdlora", "webui")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == there
    endings = {name.rpartition(".")[2] for name in files}
    assert {"py", "toml", "safetensors", "json", "css", "js", "svg"} <= endings


def test_the_wheel_asks_for_what_launch_installs(metadata: Message) -> None:
    needed = [row for row in metadata.get_all("Requires-Dist", []) if "extra ==" not in row]
    assert dict(row.split("==") for row in needed) == pins(REQUIREMENTS)
    assert metadata["Version"] == sdlora.__version__
    least = metadata["Requires-Python"].removeprefix(">=").split(".")
    major, minor = map(int, least)
    assert not python_problem((major, minor)) and python_problem((major, minor - 1))


def test_the_wheel_has_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "sdlora = sdlora.cli.main:main" in wheel.read(name).decode()


def test_the_changelog_has_the_version_with_its_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{sdlora.__version__}] - 20" in text


def test_an_installed_package_keeps_things_in_the_user_data_folder(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    assert default_workspace() == "workspace"
    wheel.extractall(tmp_path / "site-packages")
    code = (
        "import json; from sdlora.messages import Message; from sdlora.workspace import *;"
        "words = Message('python launch.py runs {x}', x=1);"
        "print(json.dumps([default_workspace(), str(TRAINING_DATA), words]))"
    )
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site-packages",
        env={**os.environ, **home},
        capture_output=True,
        text=True,
    )
    if "No module named 'platformdirs'" in ran.stderr:
        pytest.skip("platformdirs is not installed")
    workspace, sets, words = json.loads(ran.stdout)
    assert Path(workspace).name == "workspace" and Path(workspace).parent == Path(sets).parent
    assert Path(sets).name == "training_data" and words == "sdlora runs 1"
    if sys.platform.startswith("linux"):
        assert Path(workspace) == tmp_path / "data" / "sdlora" / "workspace"


def test_absent_picture_sets_are_drawn_whole_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.starter.sets.SETS", {"zibo": SETS["zibo"]})
    draw_shipped_sets(tmp_path / "new" / "training_data")
    shipped = ROOT / "training_data" / "zibo"
    drawn = tmp_path / "new" / "training_data" / "zibo"
    assert {path.name for path in drawn.iterdir()} == {path.name for path in shipped.iterdir()}
    (drawn / "mine.txt").touch()
    draw_shipped_sets(tmp_path / "new" / "training_data")  # as a second process would
    assert (drawn / "mine.txt").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["training_data"]
