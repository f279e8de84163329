"""Every handler of the page, found by reflection, called with what no component sends."""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from starlette.testclient import TestClient

from page_client import Browser, StudioWithoutWorker
from sdlora.errors import RunError
from sdlora.workspace import Workspace
from webui import page, server
from webui.calls import INPUTS, CallError, Page, checked_value
from webui.uploads import empty_uploads

META = {"_type": "gradio.FileData"}
# Of every JSON type, and what a number, a text or a choice can be at its worst
ODD_VALUES: dict[str, Any] = {
    "null": None, "true": True, "list": [], "list of lists": [[["x"]]], "dict": {}, "zero": 0,
    "dict in list": [{"a": {"b": [None]}}], "huge": 10**300, "huge below zero": -(10**300),
    "large": 1e308, "small": 5e-324, "part": 0.1, "text": "x", "empty": "", "nul": "a\0b",
    "surrogate": "\ud800", "up": "../../etc/passwd", "root": "/", "device": "/dev/zero",
    "address": "http://127.0.0.1:1/x.png", "markup": "<img src=x onerror=alert(1)>",
    "template": "{0.__class__}{x!r:>99}%s", "long": "x" * 40_000, "many lines": "a\n" * 9000,
    "choices": ["x", None, 3], "number as text": "1e999",
}  # fmt: skip
RAW_BODIES = [
    *(b"", b"null", b"[]", b"1", b'"x"', b"{}", b'{"data": 1}', b"\xff\xfe", b"{", b"[" * 100_000),
    *(b'{"data": [NaN], "fn_index": 0}', b'{"data": [1e999], "fn_index": 0}', b'{"data": []}'),
    *(b'{"data": [], "fn_index": -1}', b'{"data": [], "fn_index": 9999}', b"9" * 5000),
    *(b'{"data": [], "fn_index": true}', b'{"data": [], "fn_index": "0"}'),
    *(b'{"data": [1, 2], "fn_index": 0}', b'{"data": [], "fn_index": 0, "session_hash": {}}'),
    b'{"data": [], "fn_index": 0, "session_hash": "%s"}' % (b"x" * 1000),
    b'{"data": [], "fn_index": 0, "trigger_id": "x"}',
    b'{"data": [], "fn_index": 0, "event_data": [{"path": "/dev/zero"}]}',
    b'{"data": [%s], "fn_index": 0}' % (b"9" * 5000),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> StudioWithoutWorker:
    studio = StudioWithoutWorker(Workspace.open(tmp_path_factory.mktemp("space")))
    empty_uploads(studio.workspace.uploads)
    return studio


@pytest.fixture(scope="module")
def built(studio: StudioWithoutWorker) -> gr.Blocks:
    return page.build(studio)


@pytest.fixture(scope="module")
def browser(studio: StudioWithoutWorker) -> Iterator[Browser]:
    browser = Browser(studio)
    with TestClient(browser.http.app, base_url="http://127.0.0.1:7860") as browser.http:
        yield browser


@pytest.fixture
def hostile(tmp_path: Path, studio: StudioWithoutWorker) -> dict[str, Any]:
    """Name -> a file that is none of the uploads, in every form that a client can write."""
    uploads = studio.workspace.uploads
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    pipe, link, folder_link = uploads / "pipe", uploads / "link.png", uploads / "folder"
    for path in (pipe, link, folder_link):
        path.unlink(missing_ok=True)
    os.mkfifo(pipe)
    link.symlink_to(secret)
    folder_link.symlink_to(tmp_path)
    (uploads / "round").is_symlink() or (uploads / "round").symlink_to(uploads / "round")
    paths = {
        "outside": secret, "link": link, "below a link": folder_link / "secret.png", "pipe": pipe,
        "folder": uploads, "gone": uploads / "gone.png", "up": f"{uploads}/../../../{secret}",
        "device": "/dev/zero", "process": "/proc/self/environ", "circle": uploads / "round",
        "relative": "secret.png", "empty": "", "home": "~/x.png", "nul": f"{uploads}/a\0.png",
        "long": f"{uploads}/{'x' * 5000}", "http": "http://127.0.0.1:1/x.png",
        "https": "https://example.invalid/x.png", "data": "data:image/png;base64,AAAA",
        "file": f"file://{secret}", "served": f"/gradio_api/file={secret}", "number": 3,
    }  # fmt: skip
    return {name: path if isinstance(path, int) else str(path) for name, path in paths.items()}


def one_of_each(browser: Browser) -> list[Any]:
    """The handlers; of those that several events call, such as look and look_1, one."""
    rows = browser.config["dependencies"]
    lambdas = [one for one in rows if one["api_name"].startswith("lambda")]
    return [*{re.sub(r"_\d+$", "", one["api_name"]): one for one in rows}.values(), *lambdas]


def forms(path: Any) -> Iterator[Any]:
    """A path as a client may hand it in: plainly, nested, with an address, or as a stream."""
    file = {"path": path, "meta": META}
    yield file
    yield {"path": path}
    yield {**file, "url": "http://127.0.0.1:1/x.png"}
    yield {**file, "is_stream": True}
    yield [file]
    yield [[file]]
    yield {"value": file}
    yield {"image": file, "caption": "x"}
    yield {"value": [{"a": {"b": [file]}}], **file}
    yield {"url": path}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []

    def refused(*where: Any, **_: Any) -> None:
        asked.append(where)
        raise AssertionError(f"a connection to {where}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    return asked


def test_every_input_of_the_page_has_its_row(built: gr.Blocks) -> None:
    inputs = [part for handler in built.fns.values() for part in handler.inputs]
    assert len(inputs) > 900, "the walk over the handlers has lost its way"
    assert {type(part) for part in inputs} <= INPUTS.keys()


def test_no_handler_takes_a_file_that_is_no_upload(
    built: gr.Blocks, studio: StudioWithoutWorker, hostile: dict[str, Any]
) -> None:
    """Every handler x every input x every path x every form."""
    taken, calls = [], 0
    rows = [(name, form) for name, path in hostile.items() for form in forms(path)]
    for handler in built.fns.values():
        for part in handler.inputs:
            for name, form in rows:
                calls += 1
                try:
                    value = checked_value(part, form, studio.workspace.uploads)
                except CallError:
                    continue
                if value is not None or not isinstance(part, gr.State):
                    taken.append((handler.name, type(part).__name__, name, form))
    assert not taken
    assert calls > 900 * 200


@pytest.mark.parametrize("path", ["run/predict", "api/predict", "queue/join", "call/generate"])
def test_a_hostile_file_is_refused_before_it_is_opened(
    browser: Browser, hostile: dict[str, Any], path: str, no_network: list[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Over HTTP: each handler, each kind of component in it, the paths that would hang or leak."""
    named = ("outside", "device", "pipe", "link", "http")
    for one in browser.config["dependencies"]:
        kinds = {browser.parts[i]["type"]: place for place, i in enumerate(one["inputs"])}
        for kind, place in kinds.items():
            name = named[place % len(named)] if kind not in ("file", "uploadbutton") else None
            for each in [name] if name else named:
                data: list[Any] = [None] * len(one["inputs"])
                file = {"path": hostile[each], "url": "http://127.0.0.1:1/", "meta": META}
                data[place] = [file] if kind == "file" else file
                body = {"fn_index": one["id"], "data": data, "session_hash": "test"}
                answer = browser.http.post(f"/gradio_api/{path}", json=body)
                # the state is the server's own, whatever is sent
                refused = range(400, 500) if kind != "state" else range(200, 500)
                assert answer.status_code in refused, (one["api_name"], kind, each)
    assert not no_network and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("body", RAW_BODIES, ids=lambda body: body[:30])
def test_what_is_no_call_is_refused(
    browser: Browser, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in ("run/predict", "queue/join"):
        headers = {"content-type": "application/json"}
        answer = browser.http.post(f"/gradio_api/{path}", content=body, headers=headers)
        assert 400 <= answer.status_code < 500 and answer.json()["error"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ODD_VALUES)
def test_every_handler_answers_odd_values_in_words(
    browser: Browser, name: str, capfd: pytest.CaptureFixture[str], no_network: list[Any]
) -> None:
    """Each handler, the value in all components of one kind at once."""
    value = ODD_VALUES[name]
    for one in one_of_each(browser):
        usual = [browser.values[i] for i in one["inputs"]]
        kinds = [browser.parts[i]["type"] for i in one["inputs"]]
        for kind in dict.fromkeys(kinds):
            data = [value if own == kind else old for own, old in zip(kinds, usual, strict=True)]
            body = {"fn_index": one["id"], "data": data, "session_hash": "test"}
            sent = json.dumps(body).encode()
            answer = browser.http.post("/gradio_api/run/predict", content=sent)
            assert answer.status_code in (200, 413, 422), (one["api_name"], kind, answer.text)
            assert answer.status_code != 422 or answer.json()["error"], (one["api_name"], kind)
    assert "Traceback" not in capfd.readouterr().err and not no_network


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device", "/x/y.png"),
            "The disk reported an error: No space left on device (y.png); make room",
        ),
        (RunError("the run {name} is gone", name="a<b"), "The run a&lt;b is gone."),
    ],
)
def test_what_a_handler_cannot_do_is_said(
    studio: StudioWithoutWorker, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise error

    def build(_: Any) -> gr.Blocks:
        with Page() as blocks:
            gr.Button().click(fail, queue=False)
        return blocks

    monkeypatch.setattr(page, "build", build)
    http = TestClient(server.make_app(studio), base_url="http://127.0.0.1:7860")
    answer = http.post("/gradio_api/run/predict", json={"fn_index": 0, "data": []})
    assert answer.status_code == 422 and said in answer.json()["error"]
    assert "Traceback" not in capfd.readouterr().err


def test_gradio_checks_files_a_second_time(studio: StudioWithoutWorker, tmp_path: Path) -> None:
    """Were a call to get past ours."""
    app = server.make_app(studio)
    blocks = next(route.app for route in app.routes if hasattr(route, "app")).get_blocks()
    assert blocks.has_launched
