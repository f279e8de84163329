"""Connections to the page: so many at once, and none that keeps the server waiting for ever.

When there are too many, the one goes that has been silent longest among those that have not sent
their whole request; so half-sent requests, however many, never keep a browser out.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128  # a browser has six; with the rest of what is open, below 256 as on macOS
BACKLOG = 64  # connections that may be taken in one go before the oldest is closed
HEAD_S = 15.0  # from the first byte of a request's head to its last


class BoundedProtocol(H11Protocol):
    """Uvicorn's protocol for HTTP/1.1, with a place among the connections and a time for heads."""

    heard_at = 0.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, in the place of another where there are too many."""
        super().connection_made(transport)
        self.heard_at = self.loop.time()
        self._watch_head()
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        if len(others) > MAX_CONNECTIONS:
            victim = min(others, key=lambda one: (not one.is_asking, one.heard_at))
            self.connections.discard(victim)
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Note that there is somebody, and whether a head is complete."""
        self.heard_at = self.loop.time()
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch_head()
        super().connection_lost(exc)

    @property
    def is_asking(self) -> bool:
        """Whether its request is not whole yet."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
