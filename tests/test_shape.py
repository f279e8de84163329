"""The house rules hold, and each rule finds what it is there to find."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest

import shape
from launch import REQUIREMENTS, ROOT, pins
from shape import Source, sources

TOP_LEVEL = {
    *("sdlora", "webui", "training_data", "tests", "benchmarks", "docs", ".ci", ".git"),
    *(
        ".github",
        ".gitignore",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "launch.py",
        "pyproject.toml",
        "requirements.lock",
        "requirements.txt",
    ),
}
PRODUCT = ("sdlora", "webui", "launch.py", "benchmarks")
RULES: dict[str, tuple[Callable[[Source], list[str]], tuple[str, ...]]] = {
    "packages": (lambda source: shape.package_problems(source, sources()), PRODUCT),
    "page imports": (lambda source: shape.webui_problems(source, sources()), PRODUCT),
    "torch-free": (lambda source: shape.torch_problems(source, sources()), PRODUCT),
    "sizes": (shape.size_problems, (*PRODUCT, "tests")),
    "names": (shape.name_problems, (*PRODUCT, "tests")),
    "dangers": (shape.danger_problems, PRODUCT),
    "broad except": (shape.broad_except_problems, PRODUCT),
    "dictionary": (shape.dictionary_problems, ("sdlora", "webui", "launch.py")),
    "arguments": (shape.argument_problems, PRODUCT),
    "family seam": (shape.seam_problems, ("sdlora", "webui")),
    "docstrings": (shape.docstring_problems, ("sdlora",)),
    "pins": (shape.pin_problems, ("sdlora", "webui", "launch.py")),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule: str) -> None:
    check, places = RULES[rule]
    problems = [p for source in sources().values() if source.within(*places) for p in check(source)]
    assert not problems, "\n" + "\n".join(problems)


def test_a_class_name_means_one_thing() -> None:
    product = [s for s in sources().values() if s.within("sdlora", "webui", "launch.py")]
    homes: dict[str, list[str]] = {}
    for source in product:
        for name in shape.classes(source):
            homes.setdefault(name, []).append(str(source.path))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def test_no_import_circles() -> None:
    assert not shape.circles({n: s for n, s in sources().items() if s.within(*PRODUCT)})


@pytest.mark.parametrize("module", ["sdlora.cli.main", "webui.server"])
def test_import_leaves_torch_alone(module: str) -> None:
    if module not in sources():
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; sys.exit(' '.join({shape.HEAVY!r} & set(sys.modules)) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_file_map_is_whole() -> None:
    named = shape.file_map((ROOT / "docs/architecture.md").read_text("utf-8"))
    files = {
        str(source.path)
        for source in sources().values()
        if source.within("sdlora", "webui", "launch.py")
        # a package file that only says what the package is needs no line of its own
        and (source.path.name != "__init__.py" or len(source.tree.body) > 1)
    }
    assert not files - named, "not in the file map of docs/architecture.md"
    assert not [path for path in named if not (ROOT / path).exists()], "in the map but not there"


def test_top_level() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()]
    allowed = (*TOP_LEVEL, *(pattern for pattern in ignored if pattern))
    assert not [path.name for path in ROOT.iterdir() if not shape.matches(path.name, allowed)]


def test_pins_are_exact_and_without_torchvision() -> None:
    assert all(re.fullmatch(r"\d+(\.\d+)+", version) for version in pins(REQUIREMENTS).values())
    assert "torchvision" not in pins(REQUIREMENTS)


# rule, file, text -> part of the problem that it must name
PLANTED = [
    ("sizes", "sdlora/a.py", "def long():\n" + "    pass\n" * 40, "long has 41 lines"),
    ("dictionary", "sdlora/a.py", "for its in x:\n    pass\n", "its does not say"),
    ("dictionary", "sdlora/a.py", "def f(self, one):\n    self.told = one\n", "told does not say"),
    ("dictionary", "sdlora/a.py", '"""Whether it is."""\n', "begin the docstring"),
    ("arguments", "sdlora/a.py", "def f(self, a, b, c, d, e, g): ...\n", "f takes 6"),
    ("family seam", "sdlora/training/a.py", "n = model.config.in_channels\n", "ask the model"),
    ("sizes", "sdlora/a.py", "x = 1\n" * 601, "601 lines"),
    ("names", "sdlora/utils.py", "", "name it after what it does"),
    ("names", "webui/helpers.py", "", "name it after what it does"),
    ("names", "sdlora/a.py", "class LoraManager: ...", "class LoraManager"),
    ("dangers", "sdlora/a.py", "import torch\ntorch.load('x')", "a.py:2: torch.load"),
    ("dangers", "sdlora/a.py", "from torch import load", "torch.load"),
    ("dangers", shape.UNPICKLES, "torch.load('x')", "pickle"),
    ("dangers", shape.UNPICKLES, "from pickle import loads", "pickle.loads"),
    ("dangers", "sdlora/a.py", "from pickle import loads", "pickle.loads"),
    ("dangers", "sdlora/a.py", "import os\nos.system('ls')", "os.system"),
    ("dangers", "sdlora/a.py", "run('ls', shell=True)", "shell="),
    ("dangers", "sdlora/a.py", "eval('1')", "eval"),
    ("dangers", "sdlora/a.py", "exec('1')", "exec"),
    ("broad except", "sdlora/a.py", "try: f()\nexcept: pass", "catches everything"),
    ("broad except", "sdlora/a.py", "try: f()\nexcept (OSError, Exception): pass", "everything"),
    ("broad except", "sdlora/a.py", "with contextlib.suppress(Exception): f()", "everything"),
    ("docstrings", "sdlora/a.py", "def f(): ...", "a.py: module"),
    ("docstrings", "sdlora/a.py", "'Says.'\nclass A: ...", "a.py:2: A"),
    ("pins", "sdlora/a.py", "def f():\n    import kornia.geometry", "kornia is not pinned"),
]
# What is allowed: a rule that flags everything fails too
INNOCENT = [
    ("sizes", "sdlora/a.py", "def short():\n" + "    pass\n" * 39),
    ("sizes", "tests/a.py", "def long():\n" + "    pass\n" * 50),
    ("dangers", "sdlora/a.py", "model.eval()\njson.load(file)\nprocesses.system()"),
    ("dangers", shape.UNPICKLES, "torch.load('x', weights_only=True)"),
    ("broad except", "sdlora/jobs/run_folder.py", "try: f()\nexcept Exception: pass"),
    ("docstrings", "sdlora/a.py", "'Says.'\ndef _f(): ..."),
    ("pins", "sdlora/a.py", "import os, PIL.Image\nfrom sdlora import errors"),
]


@pytest.mark.parametrize(("rule", "path", "text", "problem"), PLANTED)
def test_rule_finds_planted(rule: str, path: str, text: str, problem: str) -> None:
    assert problem in "\n".join(RULES[rule][0](Source(PurePosixPath(path), text)))


@pytest.mark.parametrize(("rule", "path", "text"), INNOCENT)
def test_rule_lets_pass(rule: str, path: str, text: str) -> None:
    assert not RULES[rule][0](Source(PurePosixPath(path), text))


def program(**texts: str) -> dict[str, Source]:
    """A small program; the name a__b stands for the file a/b.py."""
    files = [Source(PurePosixPath(n.replace("__", "/") + ".py"), t) for n, t in texts.items()]
    return {source.module: source for source in files}


@pytest.mark.parametrize(
    ("module", "text", "count"),
    [
        ("sdlora.settings.train", "from sdlora.training import train", 1),
        ("sdlora.settings.train", "def f():\n    from ..training.train import train", 1),
        ("sdlora.training.train", "from sdlora.settings.train import TrainSettings", 0),
        ("sdlora.training.train", "import sdlora.starter.make_data", 1),
        ("sdlora.lora.format.file", "import sdlora.lora.library.library", 1),
        ("sdlora.lora.library.library", "import sdlora.lora.format.file", 0),
        ("sdlora.mystery", "", 1),
    ],
)
def test_packages_import_downwards(module: str, text: str, count: int) -> None:
    known = program(
        sdlora__settings__train="", sdlora__training__train="", sdlora__starter__make_data="",
        sdlora__lora__format__file="", sdlora__lora__library__library="",
    )  # fmt: skip
    known[module] = Source(PurePosixPath(module.replace(".", "/") + ".py"), text)
    assert len(shape.package_problems(known[module], known)) == count


def test_page_imports_are_few() -> None:
    page = "from sdlora.jobs import run_folder\nfrom sdlora.training import train"
    known = program(webui__page=page, sdlora__jobs__run_folder="", sdlora__training__train="")
    assert shape.webui_problems(known["webui.page"], known) == [
        "webui/page.py:2: the page may not import sdlora.training.train"
    ]


def test_circles_are_found() -> None:
    lazy = "def f():\n    import sdlora.jobs.queue"
    known = program(sdlora__jobs__runs=lazy, sdlora__jobs__queue="from . import runs")
    assert shape.circles(known) == ["sdlora.jobs.runs -> sdlora.jobs.queue -> sdlora.jobs.runs"]


def test_torch_is_found_behind_another_module() -> None:
    heavy = program(
        sdlora__cli__main="from sdlora.training import f", sdlora__training="from torch import nn"
    )
    assert shape.torch_problems(heavy["sdlora.cli.main"], heavy) == [
        "sdlora.cli.main -> sdlora.training:1: loads torch"
    ]
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    light = program(sdlora__cli__main=guarded + "def f():\n    import torch")
    assert not shape.torch_problems(light["sdlora.cli.main"], light)


def test_torch_is_found_in_a_parent_package() -> None:
    known = program(webui__page="from sdlora.lora.library import f", sdlora__lora__library="")
    known["sdlora.lora"] = Source(PurePosixPath("sdlora/lora/__init__.py"), "import torch")
    assert shape.torch_problems(known["webui.page"], known)


def test_file_map_reads_indentation() -> None:
    block = (
        "sdlora/   the program\n  train.py   THE loop\n  lora/\n    file.py  a file\nlaunch.py  go"
    )
    readme = f"# Title\n```sh\npython launch.py\n```\n```\n{block}\n```\n"
    paths = {
        "sdlora/",
        "sdlora/train.py",
        "sdlora/lora/",
        "sdlora/lora/file.py",
        "launch.py",
    }
    assert shape.file_map(readme) == paths
    assert not shape.file_map("no block")
