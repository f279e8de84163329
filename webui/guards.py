"""Checks of every request before any route: only a browser on this machine, on our own page, is
served.

Gradio's own check of a request's origin can be bypassed, so each request is judged here by its
head, before a byte of its body is read: its Host (DNS rebinding), the page that sent it (cross-site
requests), its path (unused paths do not exist), and its size.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.uploads import MAX_UPLOAD_MIB, MIB

HOSTS = ("localhost", "127.0.0.1", "[::1]")
SAFE_METHODS = frozenset({"GET", "HEAD"})
PAUSE_S = 30.0  # between two pieces of a body
SLOWEST_BYTES_S = 64 * 1024  # of a body as a whole
# Path -> the largest body it takes; the first match counts. No match: the path does not exist.
# A path that a new Gradio adds is closed until somebody has read what it does.
PATHS: tuple[tuple[str, int], ...] = (
    (r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt", 0),
    (r"/(assets|static|svelte|media)/.*", 0),
    (r"/gradio_api/upload", MAX_UPLOAD_MIB * MIB),
    (r"/gradio_api/(run|api)/[^/]+/?", 4 * MIB),
    (r"/gradio_api/(queue/join|cancel|reset/?)", 4 * MIB),
    (r"/gradio_api/(queue/(data|status)|heartbeat/[^/]+)", 0),
    (r"/gradio_api/(upload_progress|info/?|app_id/?|login_check/?|theme\.css)", 0),
)
# Every picture, script and style comes from us; 'unsafe-eval' is what Gradio's components need.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

# The names of Gradio's assets contain a hash of the content, so they can be cached for good.
IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}


def wrong_host(headers: Headers, hosts: tuple[str, ...]) -> bool:
    """True unless the request has exactly one Host header, with one of our hosts, at any port."""
    given = headers.getlist("host")
    names = "|".join(map(re.escape, hosts))
    return len(given) != 1 or not re.fullmatch(rf"(?i:{names})(:[0-9]{{1,5}})?", given[0])


def cross_site(method: str, headers: Headers) -> bool:
    """True when another page may have sent a request that can change something."""
    if method in SAFE_METHODS:
        return False
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    host = headers["host"].lower()
    own = {f"http://{host}", f"https://{host}"}
    return any(origin.lower() not in own for origin in headers.getlist("origin"))


def body_limit(path: str) -> int | None:
    """Largest body that a path takes, in bytes; None when the path does not exist."""
    return next((limit for pattern, limit in PATHS if re.fullmatch(pattern, path)), None)


class RequestGuard:
    """ASGI middleware that refuses foreign requests and adds security headers to responses."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = HOSTS) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request; `lifespan` passes, websockets are closed."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send, scope["path"]))
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "not used here"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, limit = Headers(scope=scope), body_limit(scope["path"])
        refused = _refusal(scope["method"], headers, limit, self.hosts)
        if refused:
            await PlainTextResponse(*refused)(scope, receive, send)
            return
        # There is no proxy: Forwarded headers could only put foreign addresses into the page.
        trusted = [(name, value) for name, value in scope["headers"] if b"forwarded" not in name]
        body = _BoundedBody(receive, send, limit or 0)
        await self.app({**scope, "headers": trusted}, body.receive, body.send)
        if body.refusal and not body.answered:
            await PlainTextResponse(*body.refusal)(scope, receive, send)


def _refusal(
    method: str, headers: Headers, limit: int | None, hosts: tuple[str, ...]
) -> tuple[str, int] | None:
    """Reason for refusing a request, and the status of the response; None: it is accepted."""
    if wrong_host(headers, hosts):
        return "this address is not served here", 400
    if cross_site(method, headers):
        return "requests from other pages are not served", 403
    if limit is None:
        return "not found", 404
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limit:
        return f"a request of at most {limit} bytes is taken here", 413
    return None


class _BoundedBody:
    """Request body with limits on its size and time; past either the app sees a disconnect."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._left = receive, send, limit
        self._until = time.monotonic() + PAUSE_S + limit / SLOWEST_BYTES_S
        self._is_whole = False
        self.refusal: tuple[str, int] | None = None
        self.answered = False

    async def receive(self) -> Message:
        if self.refusal:
            return {"type": "http.disconnect"}
        if self._is_whole:  # from here on the app waits for the disconnect
            return await self._receive()
        patience = min(PAUSE_S, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), patience)
        except TimeoutError:
            self.refusal = ("the request did not come to its end in time", 408)
            return {"type": "http.disconnect"}
        self._is_whole = not message.get("more_body")
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.refusal = ("the request is too large", 413)
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if self.refusal and not self.answered:
            return  # the app's answer to the disconnect; `refusal` is sent instead
        self.answered = True
        await self._send(message)


def _with_headers(send: Send, path: str) -> Send:
    headers = {**HEADERS, **(IMMUTABLE if path.startswith("/assets/") else {})}

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            ours = [(k.encode(), v.encode()) for k, v in headers.items() if k.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await send(message)

    return send_with_headers
