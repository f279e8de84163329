"""How fast the page's LoRA browser answers: `python -m benchmarks.browse [--files 10000]`.

Makes a folder of files as `benchmarks.library` does, opens the page on it, and times what each key
in the search box costs the server, as a browser asks for it: the search, the cards, the answer over
HTTP. Gradio's drawing in the browser is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.library import make
from launch import ROOT
from sdlora.workspace import Workspace

SAID = ("n", "ne", "neo", "neon", "neon s", "folder 7", "trigger word", "")


def main() -> None:
    """Measure and print the result as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from page_client import Browser, StudioWithoutWorker  # type: ignore[import-not-found]
    from webui.lora_details import ANY_BASE

    with tempfile.TemporaryDirectory(prefix="sdlora-browse-") as name:
        workspace = Workspace.open(name)
        make(Path(name) / "loras", options.files)
        browser = Browser(StudioWithoutWorker(workspace))
        began = time.perf_counter()
        browser.open()
        opened = time.perf_counter() - began
        while "Reading" in browser.value("loras"):
            time.sleep(0.1)
            browser.tick()
        listed = time.perf_counter() - began
        browser.set("lora-base", ANY_BASE)
        seconds, sizes = [], []
        for words in SAID * 3:
            browser.set("lora-search", words)
            began = time.perf_counter()
            browser.fire(browser.ids["lora-search"], "change")
            seconds.append(time.perf_counter() - began)
            sizes.append(len(browser.value("loras")))
        while browser.prop("more-loras", "visible"):
            browser.click("more-loras")
    figures = {
        "files": options.files,
        "first_page_s": round(opened, 3),  # it does not wait for the first listing
        "first_listing_s": round(listed, 3),  # of files that nobody has read yet
        "key_median_s": round(statistics.median(seconds), 4),
        "key_worst_s": round(max(seconds), 4),
        "html_kb": round(max(sizes) / 1000, 1),
        "html_kb_with_all_that_can_be_shown": round(len(browser.value("loras")) / 1000, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
