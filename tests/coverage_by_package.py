"""Print how much of each package the tests ran, from coverage's report in JSON, the argument."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any


def table(report: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each package, and one for the whole: per cent, statements, missing."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in report["files"].items():
        package = ".".join(PurePath(name.replace("\\", "/")).parent.parts)
        for key in (package, "all"):
            counts[key][0] += file["summary"]["num_statements"]
            counts[key][1] += file["summary"]["missing_lines"]
    counts["all"] = counts.pop("all", [0, 0])  # last
    for package, (statements, missing) in counts.items():
        share = 100 * (statements - missing) / max(statements, 1)
        yield f"{share:5.1f} %  {package} ({statements} statements, {missing} not run)"


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
