"""Parsers of data from elsewhere, guarded: whatever they raise becomes one kind of error.

Pillow's readers alone raise TypeError, struct.error, AttributeError, RecursionError and more on
files that are damaged in one place; a list of what they may raise is never complete, and one file
must not end the reading of the others. So this module, and no other, catches everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ForeignDataError(ValueError):
    """A parser failed on data from elsewhere; the text says how."""


@contextmanager
def parsing(*expected: type[Exception]) -> Iterator[None]:
    """Turn all that the block raises into ForeignDataError, except what is `expected`."""
    try:
        yield
    except expected:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ForeignDataError(reason) from error
