"""Limits on connections to the page: their number, and the time that a request's head may take.

When there are too many, the connection that has been silent longest among those whose request is
incomplete is closed; so half-sent requests, however many, never keep a browser out.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128  # a browser has six; with the rest of what is open, below 256 as on macOS
BACKLOG = 64  # connections that may be taken in one go before the oldest is closed
HEAD_S = 15.0  # from the first byte of a request's head to the last


class BoundedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with a limit on connections and a timeout for request heads."""

    heard_at = 0.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Accept a connection; close another one where there are too many."""
        super().connection_made(transport)
        self.heard_at = self.loop.time()
        self._watch_head()
        others = [each for each in self.connections if isinstance(each, BoundedProtocol)]
        if len(others) > MAX_CONNECTIONS:
            victim = min(
                others, key=lambda connection: (not connection.is_incomplete, connection.heard_at)
            )
            self.connections.discard(victim)
            victim.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Note the time of the data, and whether the request's head is complete."""
        self.heard_at = self.loop.time()
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._unwatch_head()
        super().connection_lost(exc)

    @property
    def is_incomplete(self) -> bool:
        """True while the request is incomplete."""
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
