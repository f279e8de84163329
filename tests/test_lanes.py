"""The fast lane: its table names tests that are there, and every package keeps fast tests."""

import ast

import lanes
from launch import ROOT


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that a test file imports, wherever in it."""
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return {name for name in froms | plain if name}


def test_the_table_names_tests_that_are_there() -> None:
    for name in lanes.read_table():
        file, _, test = name.partition("::")
        path = lanes.TABLE.parent / file
        assert path.is_file(), f"{lanes.TABLE.name} names {file}, which is gone: take it out"
        names = {getattr(node, "name", "") for node in ast.parse(path.read_text("utf-8")).body}
        assert not test or test in names, f"{lanes.TABLE.name} names {name}, which is gone"


def test_every_package_has_tests_in_the_fast_lane() -> None:
    """Tests of it: not slow as a whole file, and importing a module of that package."""
    table, tests = lanes.read_table(), lanes.TABLE.parent.glob("test_*.py")
    trees = [ast.parse(path.read_text("utf-8")) for path in tests if path.name not in table]
    modules = {module for tree in trees for module in imported(tree)}
    for top in ("sdlora", "webui"):
        for file in (ROOT / top).rglob("__init__.py"):
            package = file.parent.relative_to(ROOT).as_posix().replace("/", ".")
            inner = (name.rpartition(".")[0] for name in modules)
            assert package in {*inner, *modules}, f"--fast runs no test of {package}"


def test_a_table_is_written_by_files_and_by_tests() -> None:
    seconds = {
        "tests/test_a.py::test_x[1::2]": 0.3, "tests/test_a.py::test_x[[2]]": 0.3,
        "tests/test_a.py::test_y": 0.1, "tests/browser/test_b.py::test_z": 2.0,
    }  # fmt: skip
    assert [*lanes.rows(seconds)] == ["   2.0 browser/test_b.py", "   0.6 test_a.py::test_x"]
