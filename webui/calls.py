"""Calls of the page's handlers, checked before Gradio opens, hashes or fetches anything in them.

Any program on this machine can call every handler with any JSON. A call names one handler and has
one value per input. Each value must be of the kind that its component sends, and a file must be one
that was uploaded: a regular file in the uploads folder, never another path, a link, a device or an
address. A refused call is answered with a sentence, and so is a handler that fails.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from sdlora.errors import SdloraError
from sdlora.messages import PAGE, Message, as_message
from webui.markup import esc

PATHS = re.compile(r"/gradio_api/((run|api)/[^/]+/?|queue/join)")
_SESSION = re.compile(r"[\w-]{1,64}")
MAX_CHOICES = 1000
MAX_NUMBER = 1e18  # larger than any field allows; floats lose whole numbers beyond 2^53
_FILE_KEYS = frozenset({"path", "url", "_type"})


class CallError(Exception):
    """A refused call: the reason for the user, and the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise CallError("a text is expected here")
    return (value or "").encode("utf-8", "replace").decode()  # replaces lone surrogates


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise CallError("a number is expected here")
    if value is not None and abs(value) > MAX_NUMBER:
        raise CallError("this number is too large")
    return value


def _slider_number(value: Any) -> float | None:
    if value is None:
        raise CallError("a number is expected here")
    return _number(value)


def _boolean(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise CallError("true or false is expected here")
    return bool(value)


def _choice(value: Any) -> Any:
    """A choice as text, or as a number: Gradio compares a number with the choices itself."""
    return value if isinstance(value, (int, float)) else _optional_text(value)


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _required_choice(value: Any) -> Any:
    if value is None:
        raise CallError("one of the choices is expected here")
    return _choice(value)


def _choices(value: Any) -> list[Any]:
    if not isinstance(value, (list, type(None))) or len(value or ()) > MAX_CHOICES:
        raise CallError("a list of choices is expected here")
    return [_required_choice(each) for each in value or ()]


def uploaded(value: Any, folder: Path) -> dict[str, Any]:
    """An uploaded file reduced to its path and name. CallError unless it is a regular file in the
    uploads `folder`."""
    path = value.get("path") if isinstance(value, dict) else None
    name = value.get("orig_name") if isinstance(value, dict) else None
    try:
        place = Path(os.path.abspath(path))  # type: ignore[arg-type]
        inside = place.resolve().is_relative_to(folder.resolve()) and place.is_relative_to(folder)
        if not inside or not stat.S_ISREG(place.lstat().st_mode):
            raise ValueError
    except (OSError, TypeError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        raise CallError("this file is not among those uploaded here; choose it again") from None
    return {
        "path": str(place),
        "orig_name": name[:255] if isinstance(name, str) else place.name,
        "meta": {"_type": "gradio.FileData"},
    }


ValueCheck = Callable[[Any, Path], Any]


def _ignoring_folder(check: Callable[[Any], Any]) -> ValueCheck:
    return lambda value, folder: check(value)


def _file(value: Any, folder: Path) -> Any:
    return None if value is None else uploaded(value, folder)


def _files(value: Any, folder: Path) -> Any:
    if not isinstance(value, (list, type(None))) or len(value or ()) > MAX_CHOICES:
        raise CallError("a list of files is expected here")
    return [uploaded(each, folder) for each in value] if value else None


def _takes_several(part: Component) -> bool:
    return getattr(part, "multiselect", False) or getattr(part, "file_count", "") in (
        *("multiple", "directory"),
    )


# Component class -> checks of its value: a single one, and a list where it takes several. A class
# without a row takes no value.
INPUTS: Mapping[type[Component], tuple[ValueCheck, ValueCheck]] = {
    kind: (_ignoring_folder(alone), _ignoring_folder(several))
    for kind, alone, several in (
        (gr.Textbox, _text, _text),
        (gr.HTML, _text, _text),
        (gr.Button, _text, _text),
        (gr.Number, _number, _number),
        (gr.Slider, _slider_number, _slider_number),
        (gr.Timer, _number, _number),
        (gr.Checkbox, _boolean, _boolean),
        (gr.Radio, _required_choice, _required_choice),
        (gr.Dropdown, _choice, _choices),
        (gr.CheckboxGroup, _choices, _choices),
        # its value stays on the server
        (gr.State, lambda value: None, lambda value: None),
    )
} | {gr.File: (_file, _files), gr.UploadButton: (_file, _files)}


def checked_value(part: Any, value: Any, folder: Path) -> Any:
    """The value to hand to the handler. CallError: `part` cannot send such a value."""
    if type(part) not in INPUTS:
        raise CallError(f"a {type(part).__name__} takes no value here")
    try:
        if getattr(part, "allow_custom_value", False) and not _takes_several(part):
            return _optional_text(value)
        return INPUTS[type(part)][_takes_several(part)](value, folder)
    except CallError as error:
        raise CallError(f"{getattr(part, 'label', None) or 'a field'}: {error}") from None


def _contains_file(value: Any) -> bool:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.keys() & _FILE_KEYS:
                return True
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def checked_call(body: bytes, page: gr.Blocks, folder: Path) -> dict[str, Any]:
    """The call with nothing but checked values, to hand to Gradio. CallError: it is refused."""
    try:
        call = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise CallError("the call is not JSON", 400) from None
    values = call.get("data") if isinstance(call, dict) else None
    if not isinstance(values, list):
        raise CallError("a call is an object with a list of data", 400)
    index = call.get("fn_index")
    handler = page.fns.get(index) if type(index) is int else None
    if handler is None:
        raise CallError("there is no such handler; load the page again", 404)
    session, trigger = call.get("session_hash"), call.get("trigger_id")
    if session is not None and not (isinstance(session, str) and _SESSION.fullmatch(session)):
        raise CallError("the session's name is not one that this page gives")
    if trigger is not None and type(trigger) is not int:
        raise CallError("a trigger is a number")
    if len(values) != len(handler.inputs):
        raise CallError(f"{len(handler.inputs)} values are expected; load the page again")
    if _contains_file(call.get("event_data")):
        raise CallError("an event brings no files")
    pairs = zip(handler.inputs, values, strict=True)
    return {
        "data": [checked_value(part, value, folder) for part, value in pairs],
        "fn_index": index,
        "session_hash": session,
        "trigger_id": trigger,
        "event_data": call.get("event_data"),
    }


class CallCheck:
    """ASGI middleware that passes only checked calls on to `page` and answers others with a status
    of the 400s."""

    def __init__(self, app: ASGIApp, page: gr.Blocks, folder: Path) -> None:
        self.app, self.page, self.folder = app, page, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a call; pass every other request on."""
        if scope["type"] != "http" or not PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        try:
            call = json.dumps(checked_call(body, self.page, self.folder)).encode()
        except CallError as error:
            refusal = {"error": esc(str(error)), "detail": esc(str(error))}
            await JSONResponse(refusal, error.status)(scope, receive, send)
            return
        own = {b"content-length": str(len(call)).encode(), b"content-type": b"application/json"}
        rest = [pair for pair in scope["headers"] if pair[0] not in own]
        answer = _ErrorStatus(send)
        scope = {**scope, "headers": [*rest, *own.items()]}
        await self.app(scope, _replay_body(call, receive), answer.send)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client has disconnected."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    waiting: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return waiting.pop() if waiting else await receive()

    return replay


class _ErrorStatus:
    """Sender that turns Gradio's status 500 into 422 where the body holds an error message: the
    cause is then the call or the disk, not a bug of the server."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: MutableMapping[str, Any] | None = None

    async def send(self, message: Event) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self._start = message
            return
        if self._start is not None:
            status = 422 if _has_error_message(message.get("body", b"")) else 500
            await self._send({**self._start, "status": status})
            self._start = None
        await self._send(message)


def _has_error_message(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and bool(answer.get("error"))


class Page(gr.Blocks):  # type: ignore[misc]
    """Gradio's Blocks, whose handlers answer with a message in place of a bare error."""

    async def preprocess_data(self, *args: Any, **options: Any) -> Any:
        """As Gradio's; a value that is not among the choices is the caller's error and is not
        logged."""
        try:
            return await super().preprocess_data(*args, **options)
        except gr.Error as error:
            raise _gradio_error(error.message) from None

    async def call_function(self, *args: Any, **options: Any) -> Any:
        """As Gradio's; errors for the user, and of the disk, become messages."""
        try:
            return await super().call_function(*args, **options)
        except SdloraError as error:
            raise _gradio_error(error.message) from None
        except (OSError, sqlite3.Error) as error:
            raise _gradio_error(disk_error(error)) from None


def disk_error(error: OSError | sqlite3.Error) -> Message:
    """Message for an error of the disk or the database."""
    name = getattr(error, "filename", None)
    return Message(
        "the disk reported an error: {why}{where}; make room on it, check that the workspace "
        "folder exists and is writable, then try again",
        why=getattr(error, "strerror", None) or str(error),
        where=f" ({Path(os.fsdecode(name)).name})" if isinstance(name, (str, bytes)) else "",
    )


def _gradio_error(message: str) -> gr.Error:
    text = " ".join(as_message(message).sentences(PAGE))
    return gr.Error(esc(text), title="Not done", print_exception=False)
