"""Serve the page on this machine: our own app, the guard outermost, Gradio inside.

One page per workspace: a second one points to the first. The port is ours before anything else
starts, so a taken one is said at once. No torch here: what needs a device is the worker's.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from sdlora.errors import BusyError, RunError, SettingsError
from sdlora.jobs.heartbeat import TIMES
from sdlora.messages import Message
from sdlora.workspace import Workspace
from webui import page, theme
from webui.app_state import AppState
from webui.calls import CallCheck
from webui.connections import BACKLOG, BoundedProtocol
from webui.first_paint import FirstPaint, panel
from webui.guards import RequestGuard
from webui.uploads import MAX_UPLOAD_MIB, MIB, UploadCheck, empty_uploads, sweep_for_ever

HOST = "127.0.0.1"
PORT = 7860
PORTS_TRIED = 20
HIGHEST_PORT = 65_535
MAX_SESSIONS = 64  # opened pages that Gradio remembers, each with a copy of every field
PORT_TAKEN = 3  # the exit code, when the user insisted on a port


def make_app(studio: AppState) -> FastAPI:
    """The app with every switch of Gradio that would do more than we use turned off; its uploads
    are empty."""
    empty_uploads(studio.workspace.uploads)  # first: Gradio asks once where they go
    app, blocks = FastAPI(openapi_url=None, docs_url=None, redoc_url=None), page.build(studio)
    blocks.state_session_capacity = MAX_SESSIONS
    # Gradio's own check of files is off in a mounted page unless it takes it for launched
    blocks.has_launched = True
    # A CORS policy of our own keeps Gradio from adding one that reflects the caller's origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(FirstPaint, make=partial(panel, studio, page.HEAD))
    app.add_middleware(CallCheck, page=blocks, folder=studio.workspace.uploads)
    app.add_middleware(UploadCheck, folder=studio.workspace.uploads)
    app.add_middleware(RequestGuard)  # added last: outermost
    app.include_router(studio.media.router)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=HOST,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_UPLOAD_MIB * MIB,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        favicon_path=None,
        footer_links=[],
        theme=theme.theme(),
        css=theme.CSS,
        head=theme.head(),
    )


def bind(port: int | None) -> socket.socket:
    """A listening socket at `port`, or at 7860 or the next free one. BusyError: it is taken;
    SettingsError: it is none, or not for this user."""
    if port is not None and not 1 <= port <= HIGHEST_PORT:
        raise SettingsError("port {port} is none; use 1024 to {most}", port=port, most=HIGHEST_PORT)
    ports = [port] if port is not None else range(PORT, PORT + PORTS_TRIED)
    for number in ports:
        listener = _listen(number)
        if listener:
            return listener
    if port is None:
        raise BusyError(
            "the ports {first} to {last} are all taken; free one",
            first=PORT,
            last=PORT + PORTS_TRIED - 1,
        )
    free = next((n for n in range(port + 1, min(port + 100, HIGHEST_PORT)) if _is_free(n)), None)
    advice = Message("; {free} is free: --port {free}", free=free) if free else ""
    raise BusyError("port {port} is taken by another program{advice}", port=port, advice=advice)


def _listen(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Windows lets two programs share a port unless one says no; Linux says no by itself, but keeps
    # a port for a minute after its program has gone unless one says yes.
    exclusive: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listener.setsockopt(socket.SOL_SOCKET, exclusive, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except PermissionError:
        listener.close()
        raise SettingsError(
            "port {port} is not for this user; use 1024 to {most}", port=port, most=HIGHEST_PORT
        ) from None
    except OSError:
        listener.close()
        return None
    return listener


def _is_free(port: int) -> bool:
    try:
        listener = _listen(port)
    except SettingsError:
        return False
    if listener:
        listener.close()
    return listener is not None


def serve(workspace: Workspace, port: int | None = None, open_browser: bool = False) -> int:
    """Serve until Ctrl+C; returns the exit code. A training goes on without the page."""
    studio = AppState(workspace)
    try:
        listener = bind(port)
    except BusyError as error:
        first = studio.queue.holder("page")
        if first is None:
            print(f"error: {error}", file=sys.stderr)
            return PORT_TAKEN
        return _point_to(first.note, open_browser)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    first = studio.queue.acquire_lock("page", address)
    if first:
        listener.close()
        return _point_to(first.note, open_browser)
    ended = threading.Event()
    try:
        sweep_for_ever(workspace.uploads)
        server = _Server(_config(make_app(studio)))
        studio.wake()
        tending = (TIMES.beat, ended)
        threading.Thread(target=studio.tend, args=tending, daemon=True).start()
        print(f"sdlora is at {address}\nCtrl+C ends the page; a training goes on.", flush=True)
        if open_browser:
            _open(address)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        ended.set()
        with suppress(RunError):  # the workspace may be gone
            studio.queue.release_lock("page")
        listener.close()
    return 0


class _Server(uvicorn.Server):
    """Ends without a word about open tabs: each keeps a request open for as long as it lives."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def _point_to(address: str, open_browser: bool) -> int:
    print(f"sdlora serves this workspace already, at {address}", flush=True)
    if open_browser:
        webbrowser.open(address)
    return 0


def _open(address: str) -> None:
    # The socket listens already, so the browser waits for the answer; some browsers block us.
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
