"""An immutable sequence that is cheap to extend: what a fold over many events collects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

RowT = TypeVar("RowT")


class Series(Sequence[RowT], Generic[RowT]):
    """The first `length` rows of a list that later ones share with it.

    `appended` gives another sequence and leaves this one as it is, as `(*rows, row)` would; the
    rows are copied only where somebody extended the same sequence before. Equal to a tuple of the
    same rows. One thread at a time may extend it.
    """

    __slots__ = ("_length", "_rows")

    def __init__(self, rows: Iterable[RowT] = ()) -> None:
        self._rows = [*rows]
        self._length = len(self._rows)

    def appended(self, row: RowT) -> Series[RowT]:
        """The same rows with one more."""
        longer: Series[RowT] = Series.__new__(Series)
        is_longest = len(self._rows) == self._length
        longer._rows = self._rows if is_longest else self._rows[: self._length]
        longer._rows.append(row)
        longer._length = self._length + 1
        return longer

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[RowT]:
        rows = self._rows
        return (rows[index] for index in range(self._length))

    @overload
    def __getitem__(self, index: int) -> RowT: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RowT, ...]: ...
    def __getitem__(self, index: int | slice) -> RowT | tuple[RowT, ...]:
        if isinstance(index, slice):
            return tuple(self._rows[place] for place in range(*index.indices(self._length)))
        return self._rows[range(self._length)[index]]

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Series | tuple):
            return NotImplemented
        return self._length == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
