"""Nothing but our own page gets to a route, and nothing goes out without its headers."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sdlora.workspace import Workspace
from webui.app_state import AppState
from webui.guards import HEADERS, RequestGuard, body_limit
from webui.server import make_app

OWN = "127.0.0.1:7860"
GOOD_HOSTS = ["localhost", "localhost:7860", "LOCALHOST:1", "127.0.0.1", OWN, "[::1]", "[::1]:80"]
BAD_HOSTS = [
    *("", " ", "evil.example", "evil.example:7860", "127.0.0.1.nip.io:7860", "localhost."),
    *("localhost.:7860", "localhost.evil.example", "evil.localhost", "127.0.0.1.", "127.1", "0"),
    *("127.0.0.2", "0.0.0.0", "0.0.0.0:7860", "[::]", "[::ffff:127.0.0.1]", "::1", "2130706433"),
    *("0x7f.0.0.1", "192.168.1.5:7860", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:7860:7860"),
    *("user@127.0.0.1", "127.0.0.1@evil.example", "evil.example#127.0.0.1", "127.0.0.1/evil"),
    *("127.0.0.1 evil.example", "127.0.0.1,evil.example", "127.0.0.1\tx", "127001", "127a0a0a1"),
    *("ｌocalhost", "localhost:１", "localhost\n", "127.0.0.1:123456"),
]
BAD_ORIGINS = [
    *("https://evil.example", "null", "", "http://localhost:7860", "http://127.0.0.1"),
    *("http://127.0.0.1:7861", "http://127.0.0.1:7860.evil.example", "file://", "127.0.0.1:7860"),
    "http://127.0.0.1:7860/",
]
METHODS = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]
# Gradio's routes that are open, as they are written there; all others answer 404
OPEN_ROUTES = {
    *("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/robots.txt"),
    *("/static/{path:path}", "/svelte/{path:path}", "/assets/{path:path}"),
    *("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/theme.css"),
    *("/gradio_api/run/{api_name}", "/gradio_api/run/{api_name}/"),
    *("/gradio_api/api/{api_name}", "/gradio_api/api/{api_name}/"),
    *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/queue/status"),
    *("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/reset/"),
    *("/gradio_api/heartbeat/{session_hash}", "/gradio_api/info", "/gradio_api/info/"),
    *("/gradio_api/app_id", "/gradio_api/app_id/"),
    *("/gradio_api/login_check", "/gradio_api/login_check/"),
    *("/media/{token}", "/media/{token}/small"),
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    reached: list[bytes]


def ask(
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[str, str]] = (("host", OWN),),
    body: Iterable[bytes] = (),
    app: Callable[..., Any] | None = None,
) -> Answer:
    """One request to the guard, with an app behind it that keeps what reaches it."""
    reached: list[bytes] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        reached.append(str(scope["headers"]).encode())
        while True:
            message = await receive()
            reached.append(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"reached"})

    chunks = list(body)
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": n + 1 < len(chunks)}
        for n, chunk in enumerate(chunks)
    ] or [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("utf-8")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    asyncio.run(RequestGuard(app or inner)(scope, receive, send))
    named = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], named, content, reached)


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_own_hosts_are_served(host: str) -> None:
    assert ask(headers=[("host", host)]).status == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_other_hosts_reach_nothing(host: str) -> None:
    answer = ask(headers=[("host", host), ("x-forwarded-host", OWN)])
    assert (answer.status, answer.reached) == (400, [])


def test_no_host_and_two_hosts_reach_nothing() -> None:
    assert ask(headers=[]).status == 400
    assert ask(headers=[("host", OWN), ("host", OWN)]).status == 400


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_other_origins_reach_nothing(method: str, origin: str) -> None:
    headers = [("host", OWN), ("origin", origin)]
    answer = ask(method, "/gradio_api/upload", headers, [b"data"])
    assert (answer.status, answer.reached) == (403, [])


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "odd"])
def test_other_sites_reach_nothing_even_without_an_origin(site: str) -> None:
    headers = [("host", OWN), ("sec-fetch-site", site)]
    answer = ask("POST", "/gradio_api/queue/join", headers, [b"{}"])
    assert (answer.status, answer.reached) == (403, [])


@pytest.mark.parametrize(
    "more", [[], [("origin", f"http://{OWN}"), ("sec-fetch-site", "same-origin")]]
)
def test_our_page_and_local_programs_are_served(more: list[tuple[str, str]]) -> None:
    answer = ask("POST", "/gradio_api/queue/join", [("host", OWN), *more], [b"{}"])
    assert (answer.status, answer.body) == (200, b"reached")


@pytest.mark.parametrize(
    "path",
    [
        *("/pwa_icon/20000", "/manifest.json", "/monitoring", "/login", "/docs", "/openapi.json"),
        *("/gradio_api/file=http://example.com/", "/gradio_api/file=/etc/passwd"),
        *("/gradio_api/proxy=http://example.com/", "/gradio_api/vibe-edit", "/gradio_api/runs"),
        *("/gradio_api/stream/x", "/gradio_api/deep_link", "/gradio_api/dev/reload", "//", "/x"),
        *("/gradio_api/call/generate", "/gradio_api/call/v2/generate", "/gradio_api/call/x/y"),
        *("/gradio_api/process_recording", "/gradio_api/component_server", "/gradio_api/token"),
    ],
)
def test_what_we_do_not_use_does_not_exist(path: str) -> None:
    answer = ask(path=path)
    assert (answer.status, answer.reached) == (404, [])


def test_size_is_judged_by_the_head_and_by_what_comes() -> None:
    host, path = ("host", OWN), "/gradio_api/queue/join"
    limit = body_limit(path)
    assert limit
    told = ask("POST", path, [host, ("content-length", str(limit + 1))], [b"x"])
    assert (told.status, told.reached) == (413, [])
    assert ask("POST", path, [host, ("content-length", "1e3")]).status == 413
    assert ask("POST", path, [host], [b"x" * limit]).status == 200
    untold = ask("POST", path, [host], [b"x" * limit, b"y", b"never read"])
    assert untold.status == 413 and b"too large" in untold.body
    assert b"y" not in untold.reached[1:] and b"never read" not in untold.reached


def test_every_answer_is_dressed() -> None:
    for answer in (ask(), ask(path="/nothing"), ask(headers=[("host", "evil.example")])):
        assert HEADERS.items() <= answer.headers.items()
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_forwarding_headers_are_dropped() -> None:
    told = [("x-forwarded-host", "evil.example"), ("forwarded", "for=1"), ("accept", "text/html")]
    (head, _) = ask(headers=[("host", OWN), *told]).reached
    assert b"accept" in head and b"forwarded" not in head


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RequestGuard(None)({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"


def routes(app: Any, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """(path as it is written, methods) of every route, in mounted apps and included routers too."""
    for route in app.routes:
        inner = getattr(route, "app", None)
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from routes(router, prefix + route.include_context.prefix)
        elif hasattr(inner, "routes"):
            yield from routes(inner, prefix + route.path.rstrip("/"))
        else:
            yield prefix + route.path, set(getattr(route, "methods", None) or ())


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_app(AppState(Workspace.open(tmp_path_factory.mktemp("space"))))


def test_every_route_of_gradio_is_classified(app: Any) -> None:
    found = {path for path, _ in routes(app)}
    assert len(found) > 60, "the walk over the routes has lost its way"
    filled = {path: re.sub(r"\{[^}]*\}", "x", path) for path in found}
    assert {path for path, real in filled.items() if body_limit(real) is not None} <= OPEN_ROUTES


@pytest.mark.parametrize("headers", [[("origin", "https://evil.example")], [("origin", "null")]])
def test_no_route_of_the_real_app_takes_a_foreign_request(
    app: Any, headers: list[tuple[str, str]]
) -> None:
    for path, methods in routes(app):
        real = re.sub(r"\{[^}]*\}", "x", path)
        for method in {"POST", "OPTIONS", *methods} - {"GET", "HEAD"}:
            answer = ask(method, real, [("host", OWN), *headers], app=app)
            assert answer.status == 403, (method, real)


def test_gradio_adds_no_cors_of_its_own(app: Any, tmp_path: Path) -> None:
    answer = ask("GET", "/config", [("host", OWN), ("origin", "https://evil.example")], app=app)
    assert answer.status == 200
    assert not any(name.startswith("access-control") for name in answer.headers)
