"""First paint: the page's head and the current training as plain HTML, before Gradio's JavaScript
has loaded.

The browser shows it with the first bytes; page.js removes it once Gradio's page shows the same.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui import markup, theme
from webui.app_state import AppState

BEFORE = b"<gradio-app"  # the HTML is inserted before this tag of Gradio's page
# The page's colours are those of the class `dark`, which Gradio sets only once it has mounted.
THEME = (
    "<script>document.body.classList.toggle('dark', (localStorage.getItem('sdlora-theme') ?? "
    "(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark')</script>"
)


def panel(app_state: AppState, head: str, asked_for: str = "") -> str:
    """HTML of the page's head and of the training named `asked_for`, else of the running one, if
    any."""
    named = app_state.training(asked_for) if asked_for else None
    run = named or next((run for run in app_state.trainings() if run.live), None)
    card = markup.run_card(run, run.name) if run else '<p class="hint">Opening …</p>'
    return (
        f'<div id="opening" aria-busy="true"><style>{theme.CSS}</style>{THEME}'
        f"<div>{head}{card}</div></div>"
    )


class FirstPaint:
    """ASGI middleware that inserts `make(name of the requested run)` into the page at `/`."""

    def __init__(self, app: ASGIApp, make: Callable[[str], str]) -> None:
        self.app, self.make = app, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Insert it into the page; pass every other request on."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", "/"):
            await self.app(scope, receive, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        shown = await run_in_threadpool(self.make, query.get("run", [""])[-1])
        page = _Page(send, shown.encode())
        await self.app(scope, receive, page.send)


class _Page:
    """Response buffered until it is complete, then sent with `shown` inserted."""

    def __init__(self, send: Send, shown: bytes) -> None:
        self._send, self._shown = send, shown
        self._start: Message = {}
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        body = self._body.replace(BEFORE, self._shown + BEFORE, 1)
        other_headers = [
            pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"
        ]
        headers = [*other_headers, (b"content-length", str(len(body)).encode())]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
