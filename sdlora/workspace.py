"""Workspace: the folder of a user's files. Names come in, never paths: no input can leave it."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import IS_CHECKOUT
from sdlora.errors import DataError, ModelError, RunError, SettingsError, did_you_mean
from sdlora.files import make_folder
from sdlora.messages import Message, PerSurface, readable
from sdlora.model_files import (
    MODEL_PLACES,
    PARTS_FOLDER,
    ModelFile,
    list_models,
    model_called,
    program_places,
    readable_names,
)

STARTER_MODEL = Path(__file__).parent / "starter" / "model"
STARTER_LORAS = Path(__file__).parent / "starter" / "loras"


def user_data_folder() -> Path:
    """The folder of what an installed sdlora keeps, where the system wants such things to be."""
    import platformdirs  # here, for a checkout has no need of it

    return Path(platformdirs.user_data_dir("sdlora", appauthor=False))


def default_workspace(is_checkout: bool = IS_CHECKOUT) -> str:
    """The workspace without --workspace: `./workspace` in a checkout, else in the user's data."""
    return "workspace" if is_checkout else str(user_data_folder() / "workspace")


TRAINING_DATA = (
    Path(__file__).parent.parent if IS_CHECKOUT else user_data_folder()
) / "training_data"
# The sets that ship, and the goal that each is for
SHIPPED_SETS = {
    "cyberpunk_architecture": "object",
    "impressionist_style": "style",
    "neon_lighting": "style",
    "zibo": "character",
}
CHECKPOINT_SUFFIX = ".safetensors"
VAE_SUFFIXES = (CHECKPOINT_SUFFIX, ".gguf")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name
# where A1111, Forge, SD.Next, ComfyUI and Fooocus keep them, below the folder of the program
LORA_PLACES = ("models/Lora", "models/LyCORIS", "models/loras")


def workspace_gone_error(root: Path) -> RunError:
    """Return the error of a workspace that does not exist any more."""
    return RunError(
        "the workspace {root} is gone: it was moved or deleted; start the program again {how}",
        root=root,
        how=PerSurface("with --workspace DIR", "with the folder where it is now"),
    )


@dataclass(frozen=True)
class Workspace:
    """One folder that holds all a user makes: models, LoRAs, pictures, runs and outputs."""

    root: Path

    @classmethod
    def open(cls, root: str | Path) -> Workspace:
        """The workspace at `root`, its folders made. SettingsError when it cannot be written."""
        space = cls(Path(root).expanduser().resolve())
        try:
            for folder in (
                space.models,
                space.loras,
                space.datasets,
                space.runs,
                space.outputs,
                space.jobs,
            ):
                make_folder(folder)
            probe = space.root / f".writable-{secrets.token_hex(4)}"  # folders alone tell nothing
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SettingsError(
                "the workspace {folder} cannot be written ({why}); make it writable or choose "
                "another{how}",
                folder=space.root,
                why=error.strerror or error,
                how=PerSurface(" with --workspace DIR", ""),
            ) from None
        return space

    def check_is_there(self) -> None:
        """Raise SettingsError if the workspace was moved or deleted since it was opened: nothing is
        written then that would recreate half of it."""
        if not self.runs.is_dir():
            raise SettingsError(
                "the workspace {folder} is not there any more; it was moved or deleted: start "
                "sdlora again where it is now",
                folder=self.root,
            )

    @property
    def models(self) -> Path:
        """Base models: files and diffusers folders."""
        return self.root / "models"

    @property
    def loras(self) -> Path:
        """LoRA files that prompts can name."""
        return self.root / "loras"

    @property
    def datasets(self) -> Path:
        """Picture folders dropped on the page."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """One folder per training."""
        return self.root / "runs"

    @property
    def outputs(self) -> Path:
        """Images, by day."""
        return self.root / "outputs"

    @property
    def jobs(self) -> Path:
        """Folders of jobs without a run: image requests, captioning, measuring."""
        return self.root / "jobs"

    @property
    def uploads(self) -> Path:
        """Files from the browser that are not checked yet; emptied when the page starts."""
        return self.jobs / ".uploads"

    @property
    def styles(self) -> Path:
        """The styles that requests can name, in A1111's form."""
        return self.root / "styles.csv"

    @property
    def wildcards(self) -> Path:
        """Lists that prompts draw from with __name__: text files."""
        return self.root / "wildcards"

    @property
    def embeddings(self) -> Path:
        """Textual inversions, which prompts name by their files' bare names."""
        return self.root / "embeddings"

    @property
    def upscalers(self) -> Path:
        """Upscaling models."""
        return self.root / "upscalers"

    @property
    def vaes(self) -> Path:
        """VAEs that take the place of a model's own."""
        return self.root / "vae"

    @property
    def worker_log(self) -> Path:
        """Output of the worker."""
        return self.log_of("worker")

    @property
    def worker_heartbeat(self) -> Path:
        """Heartbeat file of the worker."""
        return self.heartbeat_of("worker")

    def log_of(self, role: str) -> Path:
        """Output of the process in a role: `worker` or `downloader`."""
        return self.jobs / f"{role}.log"

    def heartbeat_of(self, role: str) -> Path:
        """Heartbeat file of the process in a role."""
        return self.jobs / f"{role}.heartbeat"

    @property
    def cache(self) -> Path:
        """Files that can be made again: encoded pictures and captions, unpacked archives."""
        return self.root / "cache"

    @property
    def database(self) -> Path:
        """The queue."""
        return self.root / "jobs.db"

    @property
    def lora_index(self) -> Path:
        """Index of the LoRA files' headers, so that they need not be read again."""
        return self.root / "loras.db"

    @property
    def model_index(self) -> Path:
        """Index of the base models' headers and hashes."""
        return self.root / "models.db"

    @property
    def lora_folders(self) -> tuple[Path, ...]:
        """Folders where LoRA tags are looked up: the user's own first, then the shipped ones."""
        return (self.loras, *self._further_folders("lora_folders.txt", LORA_PLACES), STARTER_LORAS)

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Folders of base models: the user's own first, then those of model_folders.txt."""
        return (self.models, *self._further_folders("model_folders.txt", MODEL_PLACES))

    def unread_lists(self) -> dict[str, str]:
        """File that names further folders -> the reason that it cannot be read."""
        reasons = {}
        for name in ("lora_folders.txt", "model_folders.txt"):
            try:
                self._folder_lines(name)
            except OSError as error:
                reasons[name] = error.strerror or str(error)
        return reasons

    def _folder_lines(self, name: str) -> list[str]:
        file = self.root / name
        return file.read_text("utf-8-sig", "replace").splitlines() if os.path.lexists(file) else []

    def _further_folders(self, name: str, places: Sequence[str]) -> list[Path]:
        """Return the folders that a file of the workspace names, a line each; for another
        program's folder its `places`."""
        try:
            lines = self._folder_lines(name)
        except OSError:
            return []
        folders: list[Path] = []
        for line in lines:
            text = "".join(filter(str.isprintable, line)).strip(" \"'")
            if text and text[0] != "#":
                folder = self.root / os.path.expanduser(text)
                folders.extend(program_places(folder, places) or [folder])
        return folders

    def dataset_folders(self) -> dict[str, Path]:
        """Name -> folder of every picture set on offer: the user's own and those that ship."""
        folders = self._dataset_folders()
        return {path.name: path for path in folders if readable(path.name) == path.name}

    def unusable_datasets(self) -> list[str]:
        """The names of folders that cannot be offered, for they are not UTF-8."""
        names = [path.name for path in self._dataset_folders()]
        return [readable(name) for name in names if readable(name) != name]

    def _dataset_folders(self) -> list[Path]:
        folders: list[Path] = []
        for parent in (TRAINING_DATA, self.datasets):
            with contextlib.suppress(OSError):
                folders += [path for path in sorted(parent.iterdir()) if os.path.isdir(path)]
        return folders

    def ships(self, folder: Path) -> bool:
        """Return True if a picture set came with the program; it is read-only."""
        return folder.parent == TRAINING_DATA and folder.name in SHIPPED_SETS

    def goal_of(self, data: str) -> str:
        """The goal of a picture set that ships, by its name or its path; '' for any other."""
        folder = self.dataset_folders().get(data, Path(data).expanduser()).absolute()
        return SHIPPED_SETS[folder.name] if self.ships(folder) else ""

    def picture_folder(self, name: str) -> Path:
        """A set of that name, else the folder that it is the path of. DataError: neither."""
        path = self.dataset_folders().get(name, Path(name).expanduser())
        if not path.is_dir():
            raise DataError(
                "there is no folder {folder}; give a folder of pictures, or a set's name",
                folder=Path(name),
            )
        return path

    def model_source(self, model: str) -> str:
        """Return what to open for a name: the path of the starter model, or of a model of the
        library, with its file's ending or without; else the name itself, a path or a hub id."""
        if model == "starter":
            return str(STARTER_MODEL)
        for named in (self.models / model, self.models / (model + CHECKPOINT_SUFFIX)):
            if model and path_exists(named):
                return str(named)
        if not model or model[0] in "~." or os.path.isabs(model):
            return model
        entry = model_called(model, self.model_files())
        return entry.path if entry else model

    def checked_model(self, model: str) -> str:
        """Return what to open for a name, as `model_source` does. ModelError with near names: it is
        neither here nor of the form owner/name of a hub id."""
        source = self.model_source(model)
        if path_exists(Path(source)):
            return source
        names = self.model_names()
        alike = [name for name in names if "/" in name and _is_near(model, name)]
        if HUB_ID.fullmatch(model) and not alike:
            return model
        raise ModelError(
            "there is no model {model!r}; there are {names}.{near}", model=model[:80],
            names=[*names[:MAX_NAMES], *_count_of_more(names)],
            near=did_you_mean(model[:80], names),
        )  # fmt: skip

    def vae_source(self, vae: str) -> str:
        """Return what to open for a VAE's name: a file or folder of vae/, models/vae/ or models/,
        else the name itself, a path; '' for none."""
        for folder in (self.vaes, self.models / PARTS_FOLDER, self.models):
            for named in (folder / (vae + ending) for ending in ("", *VAE_SUFFIXES)):
                if vae and path_exists(named):
                    return str(named)
        return vae

    def vae_names(self) -> list[str]:
        """Names of the VAEs in vae/ and models/vae/, for which `vae_source` knows the files."""
        folders = (self.vaes, self.models / PARTS_FOLDER)
        files = [path for folder in folders for path in folder.glob("*")]
        names = {
            path.stem for path in files
            if path.suffix in VAE_SUFFIXES and readable(path.name) == path.name
        }  # fmt: skip
        return sorted(names, key=str.casefold)

    def model_files(self) -> list[ModelFile]:
        """Base models in the folders of models, without the starter; no file is opened."""
        return list_models(self.model_folders)[0]

    def model_names(self) -> list[str]:
        """Models on offer without a download."""
        return ["starter", *readable_names(self.model_files())]

    def unusable_models(self) -> list[str]:
        """The names of models that cannot be offered, for they are not UTF-8."""
        names = [model.name for model in self.model_files()]
        return [readable(name) for name in names if readable(name) != name]


MAX_NAMES = 12  # in a message


def path_exists(path: Path) -> bool:
    """Return True if there is a file or folder; no path is one, however long or odd it is."""
    try:
        return path.expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _is_near(name: str, known: str) -> bool:
    return difflib.SequenceMatcher(None, name.lower(), known.lower()).ratio() >= 0.85


def _count_of_more(names: Sequence[str]) -> list[Message]:
    count = len(names) - MAX_NAMES
    return [Message("{count} more", count=count)] if count > 0 else []
