"""Test lanes: slow tests are those that slow_tests.txt names, as they were measured.

`pytest --fast` runs the others, and at its end names each that took longer than `SLOW_S`.
`pytest --write-slow-tests` runs everything and writes the table anew; do it on a quiet machine.

A row is a file, all of whose tests are slow and which --fast does not even import, or `file::test`
with all its parameters, whose seconds are added up. A new test is in the fast lane until the table
is written anew.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import compress
from operator import not_
from pathlib import Path

import pytest

SLOW_S = 0.3  # of all parameters of a test, with what its fixtures take
TABLE = Path(__file__).with_name("slow_tests.txt")
HEADING = f"# Tests that take longer than {SLOW_S} s, in seconds: pytest --write-slow-tests\n"


def read_table() -> set[str]:
    """Return the names in the table: files and tests, relative to tests/."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {line.split()[1] for line in lines if line and not line.startswith("#")}


def name_of(nodeid: str) -> str:
    """Return a test's name in the table: `file::test`, whatever its parameters.

    >>> name_of("tests/browser/test_page.py::test_a[b::c]")
    'browser/test_page.py::test_a'
    """
    return nodeid.partition("[")[0].removeprefix("tests/")


def rows(seconds: dict[str, float]) -> Iterator[str]:
    """Yield the table's rows from the seconds of every test that ran, by node id."""
    files: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for nodeid, taken in seconds.items():
        name = name_of(nodeid)
        files[name.partition("::")[0]][name] += taken
    for file, tests in sorted(files.items()):
        slow = {name: taken for name, taken in sorted(tests.items()) if taken > SLOW_S}
        if len(slow) == len(tests):
            slow = {file: sum(slow.values())}
        yield from (f"{taken:6.1f} {name}" for name, taken in slow.items())


class Lanes:
    """The plugin: selects the tests, and measures them."""

    def __init__(self, config: pytest.Config) -> None:
        self.fast: bool = config.getoption("fast")
        self.write: bool = config.getoption("write_slow_tests")
        self.table = read_table()
        self.slow_files = {TABLE.parent / name for name in self.table}
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Leave out files whose tests are all slow."""
        return True if self.fast and collection_path in self.slow_files else None

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Mark the slow tests, and leave them out."""
        names = [name_of(item.nodeid) for item in items]
        slow = [name in self.table or name.partition("::")[0] in self.table for name in names]
        for item in compress(items, slow):
            item.add_marker("slow")
        if self.fast:
            config.hook.pytest_deselected(items=[*compress(items, slow)])
            items[:] = compress(items, map(not_, slow))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up what a test takes, fixtures included."""
        self.seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name the slow tests of the fast lane, or write the table."""
        if self.write:
            TABLE.write_text(HEADING + "\n".join(rows(self.seconds)) + "\n", encoding="utf-8")
            terminalreporter.write_line(f"{TABLE} is written anew: look at what has changed.")
        elif self.fast and (slow := [*rows(self.seconds)]):
            terminalreporter.write_sep("-", f"longer than {SLOW_S} s, and not in {TABLE.name}")
            for row in slow:
                terminalreporter.write_line(row)
