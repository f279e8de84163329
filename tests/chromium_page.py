"""A real Chromium on the real server: what every test of the page in a browser stands on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from launch import ROOT

CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SCREENSHOTS = os.environ.get("SDLORA_SCREENSHOTS", "")
# Importing torch, and training, on a busy machine; for pictures no limit that it could break
PATIENT_MS = 24 * 3_600_000 if SCREENSHOTS else 400_000


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(30)


@contextmanager
def site(workspace: Path, *flags: str) -> Iterator[str]:
    """The real server, started by the real command; its address."""
    # no --port: it takes the next free one itself, whatever other tests start at the same moment
    with process("-m", "sdlora", "serve", "--workspace", str(workspace), *flags) as running:
        assert running.stdout
        said = running.stdout.readline()
        assert "http://127.0.0.1:" in said
        yield said.split()[-1]


@contextmanager
def tab(browser: Browser, address: str, width: int = 1280, **look: str) -> Iterator[Page]:
    """A page with its own browser profile; whatever it complains of fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **look)  # type: ignore[arg-type]
    page = context.new_page()
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def asked(request: Request) -> None:
        if not request.url.startswith((address.split("?")[0].rstrip("/"), "data:", "blob:")):
            complaints.append(f"asked {request.url}")

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", asked)
    page.goto(address)
    patience = max(30_000, PATIENT_MS if SCREENSHOTS else 0)
    expect(page.locator("#loras :is(button, p)").first).to_be_attached(timeout=patience)
    yield page
    context.close()
    assert not complaints
