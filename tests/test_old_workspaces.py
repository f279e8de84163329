"""Workspaces of earlier versions: each opens, lists all of it, and its paused run goes on."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdlora.cli.main import main
from sdlora.data.dataset import read_dataset
from sdlora.image_metadata.reader import read_parameters
from sdlora.image_metadata.to_request import request_of
from sdlora.jobs.queue import Queue
from sdlora.jobs.run_folder import read
from sdlora.lora.library.library import Library
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from sdlora.workspace import Workspace
from webui import drafts
from webui.form import Form

ARCHIVES = sorted((Path(__file__).parent / "workspaces").glob("*.zip"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.stem)
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds what an archive of tests/workspaces holds."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def old(unpacked: Path) -> Workspace:
    """The workspace of the archive."""
    return Workspace.open(unpacked / "workspace")


def test_runs_are_listed(old: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--json", "--workspace", str(old.root)]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    states = {name: row["status"] for name, row in rows.items()}
    assert states == {"finished": "done", "paused": "paused", "waiting": "queued"}
    assert (rows["finished"]["step"], rows["paused"]["step"]) == (3, 5)
    assert all(Path(sample.path).is_file() for sample in read(old.runs / "finished").samples)


def test_jobs_wait_in_their_order(old: Workspace) -> None:
    queue = Queue(old.database)
    jobs = [*queue.latest("train"), *queue.latest("generate")]
    waiting = sorted((job for job in jobs if job.waits), key=queue.ahead)
    assert [job.kind for job in waiting] == ["generate", "train"]
    assert waiting[1].folder == old.runs / "waiting"
    request = ImageRequest.load(waiting[0].folder / "settings.json")
    assert request.prompt.endswith("<lora:finished:0.8>") and request.seed == 6
    assert TrainSettings.load(waiting[1].folder / "settings.json").rank == 1


def test_pictures_are_listed(old: Workspace) -> None:
    (job,) = (job for job in Queue(old.database).latest("generate") if not job.waits)
    (picture,) = read(job.folder).samples
    assert Path(picture.path).is_relative_to(old.outputs) and picture.seed == 5
    request, problems = request_of(
        read_parameters(Path(picture.path)), Library.for_workspace(old), old
    )
    assert ImageRequest.from_values(request).seed == 5 and not problems


def test_loras_and_picture_sets_are_listed(old: Workspace) -> None:
    library = Library.for_workspace(old)
    names = {entry.name for entry in library.list()}
    assert {"finished", "zibo", "neon_lighting"} <= names and not library.problems
    assert library.find("finished").path == old.loras / "finished.safetensors"
    settings = TrainSettings.load(old.runs / "paused" / "settings.json")
    assert len(read_dataset(settings, old).examples) == 4


def test_drafts_come_back(unpacked: Path) -> None:
    texts = json.loads((unpacked / "drafts.json").read_text("utf-8"))
    for place, settings in (("generate", ImageRequest), ("train", TrainSettings)):
        form = Form(settings)
        form.add(*settings.model_fields)
        updates, problems = drafts.recall(texts[place], form)
        assert len(updates) == len(texts[place]) and not problems


@pytest.mark.slow
def test_the_paused_run_ends_as_it_would_have(
    unpacked: Path, old: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one machine to the bit; others add in another order, so a tolerance is left here."""
    assert main(["runs", "resume", "paused", "--workspace", str(old.root)]) == 0
    assert "paused.safetensors" in capsys.readouterr().out
    whole = load_file(unpacked / "uninterrupted.safetensors")
    resumed = load_file(old.loras / "paused.safetensors")
    assert whole.keys() == resumed.keys()
    distance = sum((whole[key].double() - resumed[key].double()).square().sum() for key in whole)
    size = sum(tensor.double().square().sum() for tensor in whole.values())
    assert distance < 1e-4 * size
    learnt = torch.cat([t.flatten() for key, t in resumed.items() if "lora_up" in key])
    assert learnt.abs().max() > 1e-4  # it starts at 0
