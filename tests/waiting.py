"""Waiting in tests for what another process or thread does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], within_s: float = 60) -> None:
    """Return once the condition holds; fail when it does not within that time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
