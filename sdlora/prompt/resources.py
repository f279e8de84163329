"""What a workspace adds to prompts: its styles, its wildcard lists, its textual inversions."""

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
from sdlora.prompt.wildcards import Expanded, Lists, no_lists
from sdlora.workspace import Workspace

# those after the second may hold code and are told, not read
EMBEDDINGS = (".safetensors", ".sft", ".pt", ".bin")
_EMBEDDING = re.compile(
    r"(?<![\w<:/\\.-])embedding:([^\s,;<>()\[\]{}|:\"]*[^\s,;<>()\[\]{}|:\".!?'])", re.IGNORECASE
)
_OTHER_DICE = 2**32  # so that {a|b} in both prompts is drawn twice


@dataclass(frozen=True)
class PromptResources:
    """Where styles, wildcards and embeddings lie; any of them may be missing. Folders are listed
    once: a new book sees what is new."""

    styles_file: Path | None = None
    wildcards: Path | None = None
    embeddings: Path | None = None

    @classmethod
    def of(cls, workspace: Workspace) -> PromptResources:
        """That of a workspace."""
        return cls(workspace.styles, workspace.wildcards, workspace.embeddings)

    def styles(self) -> Styles:
        """The styles by name; SettingsError when the file there cannot be read."""
        path = self.styles_file
        return read_styles(path) if path is not None and path.is_file() else Styles()

    def expand(
        self, prompt: str, negative_prompt: str, seed: int, styles: Iterable[str] = ()
    ) -> tuple[Expanded, Expanded]:
        """Both prompts of one image, whose seed it is: without comments, within the styles of
        these names, wildcards drawn. Never raises: what cannot be used is a problem of the first.
        """
        problems: list[str] = []
        chosen = self._chosen(styles, problems)
        positive = expand(prompt, seed, [style.prompt for style in chosen], self._lists)
        around = [style.negative_prompt for style in chosen]
        negative = expand(negative_prompt, seed + _OTHER_DICE, around, self._lists)
        first = Expanded(positive.text, (*problems, *positive.problems))
        return self._with_bare_embeddings(first), self._with_bare_embeddings(negative)

    def embedding_names(self) -> dict[str, Path]:
        """Textual inversions by their files' bare names, in lower case."""
        if self.embeddings is None or not self.embeddings.is_dir():
            return {}
        found: dict[str, Path] = {}
        for path in sorted(self.embeddings.rglob("*")):
            if path.suffix.lower() in EMBEDDINGS and path.is_file():
                kept = found.get(path.stem.lower())
                if kept is None or kept.suffix.lower() not in EMBEDDINGS[:2]:
                    found[path.stem.lower()] = path
        return found

    def _with_bare_embeddings(self, expanded: Expanded) -> Expanded:
        """ComfyUI's embedding:name as the name alone, which is what the text encoder reads."""
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
        """Those that the text names, as words of their own, by the name that stands there."""
        said = text.lower()
        return {
            name: path
            for name, path in self.embedding_names().items()
            if name in said and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)
        }

    @cached_property
    def _lists(self) -> Lists:
        return WildcardFolder(self.wildcards) if self.wildcards else no_lists

    def _chosen(self, names: Iterable[str], problems: list[str]) -> list[Style]:
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
    """A textual inversion's bare name, of one that may have its folder and ending."""
    name = re.split(r"[/\\]", written)[-1]
    stem, dot, ending = name.rpartition(".")
    return stem if f"{dot}{ending}".lower() in EMBEDDINGS else name
