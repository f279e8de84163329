"""Resources of prompts in a workspace: styles, wildcard lists, textual inversions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdlora.errors import SettingsError, did_you_mean
from sdlora.messages import Message
from sdlora.prompt.expansion import expand
from sdlora.prompt.styles import Style, Styles, read_styles
from sdlora.prompt.wildcard_lists import WildcardFolder
from sdlora.prompt.wildcards import Expanded, Lists, no_wildcard_lists
from sdlora.workspace import Workspace

# those after the second may hold code: they are reported, not read
EMBEDDINGS = (".safetensors", ".sft", ".pt", ".bin")
_EMBEDDING = re.compile(
    r"(?<![\w<:/\\.-])embedding:([^\s,;<>()\[\]{}|:\"]*[^\s,;<>()\[\]{}|:\".!?'])", re.IGNORECASE
)
_NEGATIVE_SEED_OFFSET = 2**32  # draws {a|b} in the negative prompt independently


@dataclass(frozen=True)
class PromptResources:
    """Paths of styles, wildcards and embeddings; any may be missing. Folders are listed once: a new
    object sees new files."""

    styles_file: Path | None = None
    wildcards: Path | None = None
    embeddings: Path | None = None

    @classmethod
    def for_workspace(cls, workspace: Workspace) -> PromptResources:
        """Return the resources of a workspace."""
        return cls(workspace.styles, workspace.wildcards, workspace.embeddings)

    def styles(self) -> Styles:
        """Read the styles by name; SettingsError when the file cannot be read."""
        path = self.styles_file
        return read_styles(path) if path is not None and path.is_file() else Styles()

    def expand(
        self, prompt: str, negative_prompt: str, seed: int, styles: Iterable[str] = ()
    ) -> tuple[Expanded, Expanded]:
        """Expand both prompts of the image with this seed: comments removed, the named styles
        applied, wildcards drawn. Never raises: problems are those of the first result.
        """
        problems: list[str] = []
        chosen = self._chosen_styles(styles, problems)
        positive = expand(prompt, seed, [style.prompt for style in chosen], self._lists)
        around = [style.negative_prompt for style in chosen]
        negative = expand(negative_prompt, seed + _NEGATIVE_SEED_OFFSET, around, self._lists)
        first = Expanded(positive.text, (*problems, *positive.problems))
        return self._with_bare_embeddings(first), self._with_bare_embeddings(negative)

    def embedding_names(self) -> dict[str, Path]:
        """Return textual inversions by their files' stems, in lower case."""
        if self.embeddings is None or not self.embeddings.is_dir():
            return {}
        paths: dict[str, Path] = {}
        for path in sorted(self.embeddings.rglob("*")):
            if path.suffix.lower() in EMBEDDINGS and path.is_file():
                previous = paths.get(path.stem.lower())
                if previous is None or previous.suffix.lower() not in EMBEDDINGS[:2]:
                    paths[path.stem.lower()] = path
        return paths

    def _with_bare_embeddings(self, expanded: Expanded) -> Expanded:
        """Replace ComfyUI's embedding:name by the name alone, which the text encoder reads."""
        if not _EMBEDDING.search(expanded.text):
            return expanded
        known, problems = self.embedding_names(), list(expanded.problems)

        def bare(match: re.Match[str]) -> str:
            name = _file_name(match[1])
            if name.lower() in known:
                return name
            near = did_you_mean(name[:80], known)
            problems.append(
                Message(
                    "there is no textual inversion {name!r}; '{mark}' is read as words.{near}",
                    name=name[:80],
                    mark=match[0][:80],
                    near=near,
                )
            )
            return match[0]

        return Expanded(_EMBEDDING.sub(bare, expanded.text), tuple(dict.fromkeys(problems)))

    def embeddings_in(self, text: str) -> dict[str, Path]:
        """Return the textual inversions whose names are words of the text, by name."""
        lowered = text.lower()
        return {
            name: path
            for name, path in self.embedding_names().items()
            if name in lowered and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lowered)
        }

    @cached_property
    def _lists(self) -> Lists:
        return WildcardFolder(self.wildcards) if self.wildcards else no_wildcard_lists

    def _chosen_styles(self, names: Iterable[str], problems: list[str]) -> list[Style]:
        names = list(names)
        if not names:
            return []
        try:
            known = self.styles()
        except SettingsError as error:
            problems.append(error.message)
            return []
        problems += known.problems
        for name in names:
            if name not in known:
                near = did_you_mean(name[:80], known)
                problems.append(
                    Message(
                        "there is no style {name!r} in styles.csv.{near}", name=name[:80], near=near
                    )
                )
        return [known[name] for name in names if name in known]


def _file_name(written: str) -> str:
    """Return a textual inversion's name without folder and file ending."""
    name = re.split(r"[/\\]", written)[-1]
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in EMBEDDINGS else name
