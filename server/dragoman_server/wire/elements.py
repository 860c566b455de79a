"""A repeated field of a request, of which nothing but the number is looked at before that number is known to be right.

A message of a few megabytes has millions of empty elements. To make an object of Python of each takes many seconds, in
which nobody else is served, and a gigabyte.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

_T = TypeVar("_T")


class Elements(Sequence[_T], Generic[_T]):
    """What a repeated field has, read all at once when one of them is asked for; the length alone reads none.

    Args:
        read: makes of an element what it is here.
        field: the elements.
    """

    def __init__(self, read: Callable[[Any], _T], field: Sequence[Any]) -> None:
        self._read, self._field = read, field
        self._elements: tuple[_T, ...] | None = None

    def __len__(self) -> int:
        return len(self._field)

    @overload
    def __getitem__(self, index: int) -> _T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[_T, ...]: ...

    def __getitem__(self, index: int | slice) -> _T | tuple[_T, ...]:
        return self._all()[index]

    def __iter__(self) -> Iterator[_T]:
        return iter(self._all())

    def _all(self) -> tuple[_T, ...]:
        if self._elements is None:
            self._elements = tuple(map(self._read, self._field))
        return self._elements
