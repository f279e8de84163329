"""Calls of the page's handlers, judged before Gradio opens, hashes or fetches anything of them.

Anyone on this machine can call every handler with any JSON. A call names one handler and brings one
value per input; each value must be what its component sends, and a file must be one that was
uploaded: a regular file in the uploads folder, never a path elsewhere, a link, a device or an
address. What is refused is said in a sentence, and so is what a handler could not do.
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
MAX_NUMBER = 1e18  # beyond it no field goes, and whole numbers are no longer whole
_FILE_KEYS = frozenset({"path", "url", "_type"})


class CallError(Exception):
    """A call that is not taken, in words, with the status to answer with."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise CallError("a text is expected here")
    return (value or "").encode("utf-8", "replace").decode()  # half a letter is none


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise CallError("a number is expected here")
    if value is not None and abs(value) > MAX_NUMBER:
        raise CallError("a smaller number is expected here")
    return value


def _slid(value: Any) -> float | None:
    if value is None:
        raise CallError("a number is expected here")
    return _number(value)


def _switch(value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise CallError("true or false is expected here")
    return bool(value)


def _choice(value: Any) -> Any:
    """A number is one where Gradio knows all choices: it looks for it among them."""
    return value if isinstance(value, (int, float)) else _written(value)


def _written(value: Any) -> str | None:
    return None if value is None else _text(value)


def _chosen(value: Any) -> Any:
    if value is None:
        raise CallError("one of the choices is expected here")
    return _choice(value)


def _choices(value: Any) -> list[Any]:
    if not isinstance(value, (list, type(None))) or len(value or ()) > MAX_CHOICES:
        raise CallError("a list of choices is expected here")
    return [_chosen(each) for each in value or ()]


def uploaded(value: Any, folder: Path) -> dict[str, Any]:
    """A file that a client hands in, with nothing but its place and name. CallError unless it is a
    regular file in the uploads `folder`."""
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


Judge = Callable[[Any, Path], Any]


def _plainly(check: Callable[[Any], Any]) -> Judge:
    return lambda value, folder: check(value)


def _one_file(value: Any, folder: Path) -> Any:
    return None if value is None else uploaded(value, folder)


def _files(value: Any, folder: Path) -> Any:
    if not isinstance(value, (list, type(None))) or len(value or ()) > MAX_CHOICES:
        raise CallError("a list of files is expected here")
    return [uploaded(each, folder) for each in value] if value else None


def _is_several(part: Component) -> bool:
    return getattr(part, "multiselect", False) or getattr(part, "file_count", "") in (
        *("multiple", "directory"),
    )


# A kind of component -> what it may send: alone, or where it takes several. One that has no row
# takes nothing.
INPUTS: Mapping[type[Component], tuple[Judge, Judge]] = {
    kind: (_plainly(alone), _plainly(several))
    for kind, alone, several in (
        (gr.Textbox, _text, _text),
        (gr.HTML, _text, _text),
        (gr.Button, _text, _text),
        (gr.Number, _number, _number),
        (gr.Slider, _slid, _slid),
        (gr.Timer, _number, _number),
        (gr.Checkbox, _switch, _switch),
        (gr.Radio, _chosen, _chosen),
        (gr.Dropdown, _choice, _choices),
        (gr.CheckboxGroup, _choices, _choices),
        # Its value is the server's own
        (gr.State, lambda value: None, lambda value: None),
    )
} | {gr.File: (_one_file, _files), gr.UploadButton: (_one_file, _files)}


def judged(part: Any, value: Any, folder: Path) -> Any:
    """A value as the handler may have it. CallError: it is none that `part` sends."""
    if type(part) not in INPUTS:
        raise CallError(f"nothing is taken from a {type(part).__name__} here")
    try:
        if getattr(part, "allow_custom_value", False) and not _is_several(part):
            return _written(value)
        return INPUTS[type(part)][_is_several(part)](value, folder)
    except CallError as error:
        raise CallError(f"{getattr(part, 'label', None) or 'a field'}: {error}") from None


def _holds_a_file(value: Any) -> bool:
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


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def checked_call(body: bytes, page: gr.Blocks, folder: Path) -> dict[str, Any]:
    """A call as Gradio may have it, with nothing in it but what was judged. CallError: it is not
    taken."""
    try:
        call = json.loads(body, parse_constant=_no_constant)
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
    if _holds_a_file(call.get("event_data")):
        raise CallError("an event brings no files")
    pairs = zip(handler.inputs, values, strict=True)
    return {
        "data": [judged(part, value, folder) for part, value in pairs],
        "fn_index": index,
        "session_hash": session,
        "trigger_id": trigger,
        "event_data": call.get("event_data"),
    }


class CallCheck:
    """ASGI middleware that lets checked calls alone through to `page`, and answers with a status
    that blames the call where the call was wrong."""

    def __init__(self, app: ASGIApp, page: gr.Blocks, folder: Path) -> None:
        self.app, self.page, self.folder = app, page, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a call; everything else passes."""
        if scope["type"] != "http" or not PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        try:
            call = json.dumps(checked_call(body, self.page, self.folder)).encode()
        except CallError as error:
            said = {"error": esc(str(error)), "detail": esc(str(error))}
            await JSONResponse(said, error.status)(scope, receive, send)
            return
        own = {b"content-length": str(len(call)).encode(), b"content-type": b"application/json"}
        rest = [pair for pair in scope["headers"] if pair[0] not in own]
        answer = _Answer(send)
        scope = {**scope, "headers": [*rest, *own.items()]}
        await self.app(scope, _replayed(call, receive), answer.send)


async def _whole(receive: Receive) -> bytes | None:
    """The body; None when the sender went away."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    waiting: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return waiting.pop() if waiting else await receive()

    return replay


class _Answer:
    """Passes an answer on. Gradio calls every error the server's; one that is said in words is of
    the call or of the disk, and is answered with 422."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: MutableMapping[str, Any] | None = None

    async def send(self, message: Event) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self._start = message
            return
        if self._start is not None:
            status = 422 if _is_said(message.get("body", b"")) else 500
            await self._send({**self._start, "status": status})
            self._start = None
        await self._send(message)


def _is_said(body: bytes) -> bool:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and bool(answer.get("error"))


class Page(gr.Blocks):
    """Gradio's blocks, whose handlers say what could not be done in place of a bare error."""

    async def preprocess_data(self, *args: Any, **options: Any) -> Any:
        """Gradio's; a value that is not on offer is the caller's mistake, and not logged."""
        try:
            return await super().preprocess_data(*args, **options)
        except gr.Error as error:
            raise _in_words(error.message) from None

    async def call_function(self, *args: Any, **options: Any) -> Any:
        """Gradio's; what a user can mend, and what a disk does not do, is said in words."""
        try:
            return await super().call_function(*args, **options)
        except SdloraError as error:
            raise _in_words(error.message) from None
        except (OSError, sqlite3.Error) as error:
            raise _in_words(failed_disk(error)) from None


def failed_disk(error: OSError | sqlite3.Error) -> Message:
    """What to say of a disk that did not do what was asked of it."""
    name = getattr(error, "filename", None)
    return Message(
        "the disk did not do this: {why}{where}; make room on it and see that the workspace is "
        "where it was and can be written, then try again",
        why=getattr(error, "strerror", None) or str(error),
        where=f" ({Path(os.fsdecode(name)).name})" if isinstance(name, (str, bytes)) else "",
    )


def _in_words(message: str) -> gr.Error:
    words = " ".join(as_message(message).sentences(PAGE))
    return gr.Error(esc(words), title="Not done", print_exception=False)
