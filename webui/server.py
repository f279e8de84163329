"""Server of the page on this machine: our own app with the guard outermost and Gradio inside.

One page per workspace: a second one points to the first. The port is bound before anything else
starts, so that a taken port is reported at once. No torch here: the worker does what needs a
device.
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
MAX_SESSIONS = 64  # open pages whose state Gradio keeps, each with a copy of every field
PORT_TAKEN = 3  # exit code when the requested port is taken


def make_app(app_state: AppState) -> FastAPI:
    """The app, with every feature of Gradio that is not used turned off; the uploads folder is
    emptied."""
    empty_uploads(app_state.workspace.uploads)  # before Gradio reads the folder's path, once
    app, blocks = FastAPI(openapi_url=None, docs_url=None, redoc_url=None), page.build(app_state)
    blocks.state_session_capacity = MAX_SESSIONS
    # without it a mounted page skips Gradio's own check of files
    blocks.has_launched = True
    # A CORS policy of our own keeps Gradio from adding one that reflects the caller's origin.
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(FirstPaint, make=partial(panel, app_state, page.HEAD))
    app.add_middleware(CallCheck, page=blocks, folder=app_state.workspace.uploads)
    app.add_middleware(UploadCheck, folder=app_state.workspace.uploads)
    app.add_middleware(RequestGuard)  # added last: outermost
    app.include_router(app_state.media.router)
    mounted: FastAPI = gr.mount_gradio_app(
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
    return mounted


def bind(port: int | None) -> socket.socket:
    """Listening socket at `port`, or at 7860 or the next free port. BusyError: it is taken;
    SettingsError: it is not a port, or not permitted to this user."""
    if port is not None and not 1 <= port <= HIGHEST_PORT:
        raise SettingsError(
            "port {port} is not a port number; use 1024 to {highest}",
            port=port,
            highest=HIGHEST_PORT,
        )
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
    # Windows lets two programs share a port without SO_EXCLUSIVEADDRUSE; Linux does not, but keeps
    # a port for a minute after its program has ended without SO_REUSEADDR.
    exclusive: int = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listener.setsockopt(socket.SOL_SOCKET, exclusive, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except PermissionError:
        listener.close()
        raise SettingsError(
            "port {port} is not permitted to this user; use 1024 to {highest}",
            port=port,
            highest=HIGHEST_PORT,
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
    """Serve until Ctrl+C; returns the exit code. A training continues without the page."""
    app_state = AppState(workspace)
    try:
        listener = bind(port)
    except BusyError as error:
        first = app_state.queue.holder("page")
        if first is None:
            print(f"error: {error}", file=sys.stderr)
            return PORT_TAKEN
        return _point_to(first.note, open_browser)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    first = app_state.queue.acquire_lock("page", address)
    if first:
        listener.close()
        return _point_to(first.note, open_browser)
    ended = threading.Event()
    try:
        sweep_for_ever(workspace.uploads)
        server = _Server(_config(make_app(app_state)))
        app_state.wake()
        keep = partial(app_state.keep_worker_running, TIMES.beat, ended)
        threading.Thread(target=keep, daemon=True).start()
        print(f"sdlora is at {address}\nCtrl+C stops the page; a training continues.", flush=True)
        if open_browser:
            _open(address)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        ended.set()
        with suppress(RunError):  # the workspace may be gone
            app_state.queue.release_lock("page")
        listener.close()
    return 0


class _Server(uvicorn.Server):
    """Server that shuts down without warnings about open tabs, each of which keeps a request
    open."""

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
    # The socket listens already, so the browser waits; in a thread, for some browsers block.
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
