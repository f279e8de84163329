"""Every text that the page may show: whole sentences in its own words, filled where it is shown."""

import ast
import fnmatch
import re
from collections.abc import Iterator

import pytest

from sdlora import errors
from sdlora.data.caption_editing import CaptionSettings
from sdlora.messages import PAGE, Message
from sdlora.settings.captioning import DescribeSettings
from sdlora.settings.grid import GridSettings
from sdlora.settings.image_request import ImageRequest
from sdlora.settings.train import TrainSettings
from shape import Source, sources

TELLS = {name for name in vars(errors) if name.endswith("Error")}
TELLS |= {"Warned", "Failed", "Problem", "Message", "InvalidValue", "_about_optimizer"}
SHOWN_BY_THE_COMMAND_ALONE = (
    *("sdlora.cli*", "sdlora.adapters.fuse", "sdlora.adapters.extract"),
    *("sdlora.kohya*", "sdlora.starter*", "sdlora.settings.base", "webui.server"),
)
SETTINGS = (TrainSettings, ImageRequest, GridSettings, DescribeSettings, CaptionSettings)
SNAKES = {name for kind in SETTINGS for name in kind.model_fields if "_" in name}
HOLE = re.compile(r"\{[^{}]*\}")


def within(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def texts(node: ast.expr) -> list[str]:
    """The constant text of an argument, holes where values come; of a choice, of both."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        return ["".join(map(str, parts))]
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.Call) and called(node) == "PerSurface" and len(node.args) == 2:
        return texts(node.args[1])
    return []


def called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def templates(source: Source) -> Iterator[tuple[str, str, bool]]:
    """(place, template, whether it is made of pieces) of all that a module tells."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or called(node) not in {*TELLS, "PerSurface"}:
            continue
        arguments = [node] if called(node) == "PerSurface" else [*node.args[:3]]
        for argument in (a for a in arguments if not _is_the_command(node, a)):
            for text in texts(argument):
                place = f"{source.path}:{node.lineno}"
                yield place, text, isinstance(argument, ast.JoinedStr)


def _is_the_command(node: ast.Call, argument: ast.expr) -> bool:
    return called(node) == "PerSurface" and argument is not node


FOUND = [
    (source.module, *row)
    for source in sources().values()
    if source.within("sdlora", "webui") and not within(source.module, SHOWN_BY_THE_COMMAND_ALONE)
    for row in templates(source)
]


def test_some_are_found() -> None:
    assert len(FOUND) > 150


def test_no_template_is_made_of_pieces() -> None:
    pieces = [where for module, where, _, made in FOUND if made]
    assert not pieces


WRONG = {
    "a flag": re.compile(r"(?<![\w-])--[a-z]"),
    "a command": re.compile(r"python launch\.py"),
    "a setting's name": re.compile(rf"\b({'|'.join(sorted(SNAKES))})\b"),
}


@pytest.mark.parametrize("what", WRONG)
def test_no_template_speaks_in_words_of_another_surface(what: str) -> None:
    wrong = [
        f"{where}: {text}"
        for module, where, text, _ in FOUND
        if WRONG[what].search(HOLE.sub("", text))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_template_becomes_a_sentence() -> None:
    for _, where, text, made in FOUND:
        line = HOLE.sub("{x}", text)
        if made or not text.strip() or not line[0].isalpha():
            continue
        for sentence in Message(line, x="x").sentences(PAGE):
            assert sentence[0].isupper() and sentence[-1] in ".!?…:", where
