"""How fast a running training is back on screen: `python -m benchmarks.back_on_screen`.

Serves the page, starts a long training, then opens the page again and again in headless Chromium
and times how long it takes until the run is shown, and until the page around it can be used.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.report import asked, show
from sdlora.jobs import run_folder
from sdlora.jobs.queue import Queue
from sdlora.settings.train import TrainSettings
from sdlora.workspace import TRAINING_DATA, Workspace

PORT = 7999
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def seconds_until_shown(page: Page) -> dict[str, float]:
    """From the request to the run's card, and to the page that can be used; then the tab closes."""
    began = time.monotonic()
    page.goto(f"http://127.0.0.1:{PORT}", wait_until="commit")
    page.locator('[data-run="long"]').first.wait_for(timeout=60_000)
    shown = time.monotonic() - began
    page.locator("#opening").wait_for(state="detached", timeout=60_000)
    page.locator('#run-card [data-run="long"]').wait_for(timeout=60_000)
    usable = time.monotonic() - began
    page.close()
    return {"shown": round(shown, 3), "usable": round(usable, 3)}


def wait_for_page() -> None:
    """Until the server answers."""
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError("the page did not come up")


def main() -> None:
    """Measure and print as JSON; the first opening fills the browser's cache."""
    options = asked(__doc__, openings=6)
    chromium = os.environ.get("SDLORA_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        space = Workspace.open(folder)
        words = ["-m", "sdlora", "serve", "--workspace", folder, "--port", str(PORT)]
        server = subprocess.Popen([sys.executable, *words], cwd=Path(__file__).parent.parent)
        try:
            wait_for_page()
            values = {"data": str(TRAINING_DATA / "zibo"), "name": "long", "steps": 5000}
            run = run_folder.start(TrainSettings.from_values(values), space, Queue(space.database))
            try:
                while run_folder.read(run).step < 10:
                    time.sleep(1)
                with sync_playwright() as play:
                    chrome = play.chromium.launch(executable_path=chromium, args=FLAGS)
                    tabs = chrome.new_context()
                    took = [seconds_until_shown(tabs.new_page()) for _ in range(options.openings)]
            finally:
                run_folder.stop(run, now=True)
        finally:
            server.terminate()
    show({"first": took[0], "again": took[1:]})


if __name__ == "__main__":
    main()
