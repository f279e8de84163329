"""Coverage is added up by package."""

from coverage_by_package import table


def test_files_are_added_up_by_package() -> None:
    summaries = {"sdlora/a.py": (8, 2), "sdlora/b.py": (2, 0), "sdlora\\data\\c.py": (5, 5)}
    report = {
        "files": {
            name: {"summary": {"num_statements": statements, "missing_lines": missing}}
            for name, (statements, missing) in summaries.items()
        }
    }
    assert [*table(report)] == [
        " 80.0 %  sdlora (10 statements, 2 not run)",
        "  0.0 %  sdlora.data (5 statements, 5 not run)",
        " 53.3 %  all (15 statements, 7 not run)",
    ]
