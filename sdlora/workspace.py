"""Where files live. Names come in, never paths: nothing a user types can leave the workspace."""

from __future__ import annotations

import glob
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdlora.errors import DataError, SettingsError

STARTER_MODEL = Path(__file__).parent / "starter" / "model"
STARTER_LORAS = Path(__file__).parent / "starter" / "loras"
TRAINING_DATA = Path(__file__).parent.parent / "training_data"
SHIPPED_SETS = ("cyberpunk_architecture", "impressionist_style", "neon_lighting", "zibo")
# where A1111, Forge, SD.Next, ComfyUI and Fooocus keep them, below the folder of the program
LORA_PLACES = ("models/Lora", "models/LyCORIS", "models/loras")
# A pipeline's class, as model_index.json says it, and the family whose presets it wants
_PIPELINES = {"StableDiffusionXL": "sdxl", "StableDiffusionPipeline": "sd1"}
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def is_built_as(folder: Path, model: Path) -> bool:
    """Whether a diffusers folder has a UNet of the same build as `model`, whatever its weights: so
    the same LoRAs fit it, as they do a model that some were fused into."""
    built, wanted = (_unet_config(path) for path in (folder, model))
    return bool(wanted) and all(built.get(key) == value for key, value in wanted.items())


def _unet_config(folder: Path) -> dict[str, object]:
    try:
        said = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    # with an underscore: who wrote it, and where it lay
    table = said if isinstance(said, dict) else {}
    return {key: value for key, value in table.items() if not key.startswith("_")}


def checked_name(name: str) -> str:
    """The name, tidied to NFC. SettingsError unless it is fit for a file on every system: letters,
    digits, space, dot, underscore, hyphen; 1 to 80 characters; not starting with a dot."""
    tidy = unicodedata.normalize("NFC", name).strip()
    fit = all(letter.isalnum() or letter in " ._-" for letter in tidy)
    if (
        not fit
        or not 1 <= len(tidy) <= 80
        or tidy[0] == "."
        or tidy[-1] == "."
        or _RESERVED.fullmatch(tidy)
    ):
        raise SettingsError(
            "{name!r} cannot be a name; use 1 to 80 letters, digits, spaces, '.', '_' or '-', not "
            "starting or ending with a dot", name=name[:80],
        )  # fmt: skip
    return tidy


def publish(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file with `write(temporary)` beside `path`, flush it, then give it its name."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(f".part{path.suffix}", f".{path.stem[:40]}-", path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def sweep(path: Path) -> None:
    """Take away what writers of `path` that were killed have left beside it."""
    for left in path.parent.glob(f".{glob.escape(path.stem[:80])}-????????.part{path.suffix}"):
        left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and those that it lies in, and have the disk know their names: what is flushed
    in a folder is lost with it where its own name was not."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in `folder`; Windows has no such call, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def free_path(path: Path) -> Path:
    """`path`, or `name-2`, `name-3` ... beside it: the first that does not exist."""
    number, fresh = 2, path
    while fresh.exists():
        fresh = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return fresh


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
        except OSError as error:
            raise SettingsError(
                f"the workspace {space.root} cannot be written ({error.strerror}); "
                "choose another with --workspace DIR"
            ) from None
        return space

    @property
    def models(self) -> Path:
        """Base models: diffusers folders."""
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
        """One folder per image request."""
        return self.root / "jobs"

    @property
    def uploads(self) -> Path:
        """What the browser sent and nobody has checked yet; emptied when the page starts."""
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
    def worker_log(self) -> Path:
        """What the worker printed."""
        return self.jobs / "worker.log"

    @property
    def cache(self) -> Path:
        """What can be made again: encoded pictures and captions, unpacked archives."""
        return self.root / "cache"

    @property
    def database(self) -> Path:
        """The queue."""
        return self.root / "jobs.db"

    @property
    def lora_index(self) -> Path:
        """What the LoRA files have said, so that it need not be read again."""
        return self.root / "loras.db"

    @property
    def lora_folders(self) -> tuple[Path, ...]:
        """Where tags are looked up: the user's own folders first, then what ships."""
        return (self.loras, *self._further_lora_folders(), STARTER_LORAS)

    def _further_lora_folders(self) -> list[Path]:
        """Those that lora_folders.txt names, a line each; of another program's tree its LoRAs."""
        try:
            lines = (self.root / "lora_folders.txt").read_text("utf-8-sig", "replace").splitlines()
        except OSError:
            return []
        folders: list[Path] = []
        for line in lines:
            name = "".join(filter(str.isprintable, line)).strip(" \"'")
            if name and name[0] != "#":
                folder = self.root / os.path.expanduser(name)
                places = [folder / place for place in LORA_PLACES if (folder / place).is_dir()]
                folders.extend(places or [folder])
        return folders

    def dataset_folders(self) -> dict[str, Path]:
        """Name -> folder of every picture set on offer: the user's own and those that ship."""
        found: dict[str, Path] = {}
        for parent in (TRAINING_DATA, self.datasets):
            if parent.is_dir():
                found |= {p.name: p for p in sorted(parent.iterdir()) if p.is_dir()}
        return found

    def ships(self, folder: Path) -> bool:
        """Whether a picture set is one that came with the program, and stays as it is."""
        return folder.parent == TRAINING_DATA and folder.name in SHIPPED_SETS

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
        """What to open for a name: the starter, a folder of models/, a path, or a hub id."""
        if model == "starter":
            return str(STARTER_MODEL)
        named = self.models / model
        return str(named) if named.exists() else model

    def preset_family(self, model: str) -> str:
        """Whose presets fit a model, as far as its folder says unopened; 'any': unknown."""
        folder = Path(self.model_source(model))
        if model == "starter" or is_built_as(folder, STARTER_MODEL):
            return "starter"
        index = folder / "model_index.json"
        said = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
        rows = ((name, family) for name, family in _PIPELINES.items() if name in said)
        return next((family for _, family in rows), "any")

    def model_names(self) -> list[str]:
        """Models on offer without a download."""
        own = (
            sorted(p.name for p in self.models.iterdir() if p.is_dir())
            if self.models.is_dir()
            else []
        )
        return ["starter", *own]
