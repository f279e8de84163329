"""The library of base models: files and diffusers folders of every place, and what each is.

Headers alone are read, and remembered in an index, so that thousands are listed in a moment; what
cannot be used is listed with its reason. A hash is computed when somebody asks for it, and kept as
long as the file does not change; no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sdlora.architectures import FAMILIES
from sdlora.assets.claims import Claims, claims_of
from sdlora.errors import ModelError, did_you_mean
from sdlora.lora.format.hashes import Hashes, is_hash
from sdlora.lora.library.index import Index, IndexRow
from sdlora.messages import Message, Setting
from sdlora.model_files import SAFETENSORS, ModelFile, list_models, model_called, readable_names
from sdlora.models.checkpoint_facts import (
    CheckpointFacts,
    checkpoint_facts,
    with_name_and_metadata,
)
from sdlora.models.checkpoint_header import TensorTables, read_checkpoint_header
from sdlora.models.folder_facts import folder_facts
from sdlora.workspace import STARTER_MODEL, Workspace

STARTER = "starter"
BLOCK = 2**22  # bytes read at once for a hash
LEGACY_AT, LEGACY_BYTES = 0x10_0000, 0x1_0000  # the bytes that A1111's first hash covers
_INDEX_VERSION = 1  # of the table; hashes take minutes to compute, and outlive changes of the code
# Other code may read files differently: facts that it kept are read again
_SOURCES = [
    *("assets/checkpoints", "assets/claims", "models/checkpoint_facts", "architectures"),
    *("models/checkpoint_header", "models/gguf_header"),
    *("models/folder_facts", "models/registry"),
]
_PROGRAM = zlib.crc32(
    b"".join((Path(__file__).parent.parent / f"{name}.py").read_bytes() for name in _SOURCES)
)
# safetensors' word for a number format -> ours; a GGUF file's, such as Q4_K, is shown as it is
NUMBER_FORMATS = {
    "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "F64": "fp64",
}  # fmt: skip
DEQUANTIZED = Message(
    "its weights are dequantised when it is opened, so that it needs as much memory as others of "
    "its family; {base_precision} = int8 holds most of those of the denoiser in 8 bits",
    base_precision=Setting("base_precision"),
)
PREDICTIONS = {"epsilon": "noise (epsilon)", "v_prediction": "v"}
TOLD_BY = {"file": "the file says so", "name": "by its name", "family": "usual for its family"}
PART_TITLES = {"vae": "VAE", "text_encoder": "text encoder"}


class ModelInfo(NamedTuple):
    """A base model's facts, as far as its header, its name and files beside it tell."""

    family: str = ""  # a key of FAMILIES; '' where the model cannot be used
    prediction: str = ""
    told_by: str = ""
    zero_terminal_snr: bool = False
    inpainting: bool = False
    few_steps: bool = False
    parts: Sequence[str] = ()
    dtype: str = ""
    title: str = ""  # in its own metadata
    claims: Claims = Claims()
    problem: Message = Message("")  # reason why it cannot be used
    notes: Sequence[Message] = ()

    @property
    def text(self) -> str:
        """The facts as JSON."""
        notes = [note.to_json() for note in self.notes]
        return json.dumps((*self[:-2], self.problem.to_json(), notes), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read the facts back from `text`."""
        *values, claims, problem, notes = json.loads(text)
        last = [Claims(*claims), Message.from_json(problem), [*map(Message.from_json, notes)]]
        return cls._make([*values, *last])


@dataclass(frozen=True)
class CheckpointEntry:
    """One base model of the library."""

    file: ModelFile
    row: IndexRow

    @cached_property
    def info(self) -> ModelInfo:
        """Facts from its header and from the files beside it."""
        return ModelInfo.from_json(self.row.facts)

    @property
    def name(self) -> str:
        """The name that means this model and no other."""
        return self.file.name

    @property
    def path(self) -> Path:
        """The file, or the diffusers folder."""
        return Path(self.file.path)

    @property
    def preview(self) -> Path | None:
        """Picture beside the file that has the file's name."""
        return Path(self.file.preview) if self.file.preview else None

    @property
    def size_gib(self) -> float:
        """Size in GiB."""
        return self.file.size_bytes / 2**30

    @property
    def family_title(self) -> str:
        """Title of the family; '' when the model cannot be used."""
        return FAMILIES[self.info.family].title if self.info.family in FAMILIES else ""

    @property
    def problem(self) -> Message:
        """Reason why the model cannot be used; empty when it can."""
        return self.info.problem

    @property
    def sha256(self) -> str:
        """Hash of the whole file; '' where nobody has asked for it yet."""
        return self.row.sha256

    @property
    def autov2(self) -> str:
        """A1111's "Model hash", which is Civitai's AutoV2; '' where it is not known."""
        return self.row.hashes.autov2

    def missing_parts(self) -> list[str]:
        """Titles of the parts that it is used without, and that another file must bring."""
        if self.problem:
            return []
        return [title for part, title in PART_TITLES.items() if part not in self.info.parts]


class CheckpointLibrary:
    """The base models of a workspace and of the folders that it names, the starter first."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._index = Index(workspace.model_index, _INDEX_VERSION)
        self._rows: dict[bytes, IndexRow] | None = None
        self._entries: dict[ModelFile, CheckpointEntry] = {}
        self._lock = threading.RLock()
        self.problems: tuple[Message, ...] = ()  # of folders that were not listed the last time

    def list(self) -> list[CheckpointEntry]:
        """Every model by name, the starter first. One that cannot be used has its problem."""
        with self._lock:
            files, problems = list_models(self.workspace.model_folders)
            self.problems = tuple(problems)
            rows = self._up_to_date([_starter(), *files], forget=not problems)
            self._entries = {
                file: old
                if (old := self._entries.get(file)) and old.row == rows[_key(file)]
                else CheckpointEntry(file, rows[_key(file)])
                for file in (_starter(), *files)
            }
            first, *others = self._entries.values()
            return [first, *sorted(others, key=lambda entry: entry.name.casefold())]

    def find(self, name: str) -> CheckpointEntry:
        """The model that a name means, or a path. ModelError with near names: there is none."""
        file = self._file_called(name)
        if file is None:
            names = [STARTER, *readable_names(self.workspace.model_files())]
            raise ModelError(
                "there is no model {name!r}.{near}", name=name[:80],
                near=did_you_mean(name[:80], names),
            )  # fmt: skip
        with self._lock:
            return CheckpointEntry(file, self._up_to_date([file], forget=False)[_key(file)])

    def _file_called(self, name: str) -> ModelFile | None:
        if name == STARTER:
            return _starter()
        files = self.workspace.model_files()
        try:
            path = Path(self.workspace.model_source(name)).expanduser()
            real, exists = os.path.realpath(path), path.exists()
        except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
            return model_called(name, files)
        if exists:
            same = (file for file in files if os.path.realpath(file.path) == real)
            return next(same, None) or _file_at(path)
        return model_called(name, files)

    def hashed(self, entry: CheckpointEntry) -> CheckpointEntry:
        """The entry with its hash, computed if need be: a minute for a large file on a slow disk.
        ModelError: it is a folder, or cannot be read."""
        if entry.sha256:
            return entry
        if entry.file.is_folder:
            raise ModelError("{folder} is a folder; only a file has a hash", folder=entry.path)
        try:
            with entry.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(
                "{file} cannot be read: {why}", file=entry.path, why=error.strerror or error
            ) from None
        self._index.keep_hashes(entry.row.path, entry.row.stamp, Hashes(sha256))
        with self._lock:
            row = entry.row._replace(sha256=sha256)
            if self._rows is not None:
                self._rows[row.path] = row
        return CheckpointEntry(entry.file, row)

    def known_hash(self, source: str) -> str:
        """The AutoV2 hash of the file at a path; '' where nobody has asked for it yet."""
        path = Path(source)
        row = self._index.row(os.fsencode(path))
        if row is None or not path.is_file():
            return ""
        stat = path.stat()
        fresh = row.stamp == f"{stat.st_size} {stat.st_mtime_ns}"
        return row.hashes.autov2 if fresh else ""

    def find_by_hash(self, start: str) -> tuple[CheckpointEntry | None, bool]:
        """Return (the usable model whose hash begins with `start`, True if it is only claimed).

        `start` is A1111's "Model hash": ten digits of SHA-256, or eight of its first kind, which
        covers 64 KiB of each file. Nothing else is computed."""
        start = start.lower()
        if not is_hash(start):
            return None, False
        usable = [entry for entry in self.list() if not entry.problem]
        for entry in usable:
            if entry.sha256.startswith(start):
                return entry, False
        claimed = (entry for entry in usable if entry.info.claims.sha256.startswith(start))
        if (first := next(claimed, None)) is not None:
            return first, True
        legacy = usable if len(start) == 8 else []
        return next((e for e in legacy if _legacy_hash(e.path) == start), None), False

    def _up_to_date(self, files: Sequence[ModelFile], forget: bool) -> dict[bytes, IndexRow]:
        """Return the rows of files, those that changed read again. `forget`: the rows of others."""
        rows, keyed = self._read_rows(), {_key(file): file for file in files}
        tables: TensorTables = {}
        facts: dict[bytes, CheckpointFacts] = {}
        caches: dict[Path, dict[str, str]] = {}
        fresh: dict[bytes, IndexRow] = {}
        for key, file in keyed.items():
            old, beside = rows.get(key), f"{_PROGRAM} {file.beside}"
            if old and (old.stamp, old.beside) == (file.stamp, beside):
                continue
            sha256 = old.sha256 if old and old.stamp == file.stamp else ""
            info = _info(file, tables, facts, caches)
            fresh[key] = IndexRow(key, file.stamp, beside, info.text, sha256)
        gone = rows.keys() - keyed.keys() if forget else set()
        if fresh or gone:
            self._index.keep(fresh.values(), gone)
        self._rows = {key: row for key, row in rows.items() if key not in gone} | fresh
        return self._rows

    def _read_rows(self) -> dict[bytes, IndexRow]:
        if self._rows is None:
            self._rows = self._index.rows()
        return self._rows


def _key(file: ModelFile) -> bytes:
    return os.fsencode(file.path)


def _starter() -> ModelFile:
    return _file_at(STARTER_MODEL)._replace(name=STARTER)


def _file_at(path: Path) -> ModelFile:
    """Return a model that lies in no folder of the library."""
    folder = path.absolute()
    listed = list_models([folder.parent])[0] if folder.parent.is_dir() else []
    same = (file for file in listed if file.path == str(folder))
    known = next(same, None)
    if known:
        return known._replace(name=path.stem if path.is_file() else path.name)
    stat = path.stat()
    return ModelFile(
        str(folder), path.stem if path.is_file() else path.name, "",
        f"{stat.st_size} {stat.st_mtime_ns}", path.is_dir(), ("", "", "", ""),
    )  # fmt: skip


def _info(
    file: ModelFile, tables: TensorTables, known: dict[bytes, CheckpointFacts],
    caches: dict[Path, dict[str, str]],
) -> ModelInfo:  # fmt: skip
    claims, notes = claims_of(file, caches)
    path = Path(file.path)
    title = ""
    try:
        if file.is_folder:
            facts = folder_facts(path)
        else:
            header = read_checkpoint_header(path, tables)
            title = header.metadata.get("modelspec.title", "")[:200]
            if header.table not in known:
                known[header.table] = checkpoint_facts(header)
            facts = with_name_and_metadata(known[header.table], header)
            notes = [*notes, *([DEQUANTIZED] if header.is_in_blocks else [])]
    except ModelError as error:
        return ModelInfo(title=title, claims=claims, problem=error.message, notes=notes)
    return ModelInfo(
        facts.family, facts.prediction, facts.told_by, facts.zero_terminal_snr,
        facts.is_inpainting, facts.few_steps, sorted(facts.components),
        NUMBER_FORMATS.get(facts.dtype, facts.dtype), title, claims, Message(""), notes,
    )  # fmt: skip


def _legacy_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(LEGACY_AT)
            return hashlib.sha256(file.read(LEGACY_BYTES)).hexdigest()[:8]
    except OSError:
        return ""


__all__ = ["SAFETENSORS", "CheckpointEntry", "CheckpointLibrary", "ModelInfo"]
