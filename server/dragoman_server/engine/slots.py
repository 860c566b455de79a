"""Rows of the KV pool. Live rows are kept dense at the front, so that a prefix view of the pool is the batch."""

from collections.abc import Collection
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Move(NamedTuple):
    """The contents of one row must be copied to another."""

    source: int
    target: int


class Slots(Generic[T]):
    """Which occupant holds which row: occupant i holds row i, rows from `len(occupants)` on are free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._occupants: list[T] = []

    @property
    def occupants(self) -> tuple[T, ...]:
        return tuple(self._occupants)

    @property
    def num_free(self) -> int:
        return self.capacity - len(self._occupants)

    def __len__(self) -> int:
        return len(self._occupants)

    def add(self, occupant: T) -> int:
        """Gives the occupant the first free row; raises IndexError when all are taken."""
        if self.num_free == 0:
            raise IndexError(f"all {self.capacity} rows are taken")
        self._occupants.append(occupant)
        return len(self._occupants) - 1

    def remove(self, rows: Collection[int]) -> list[Move]:
        """Frees rows and closes the gaps with the last live rows; returns the copies that this takes, in any order.

        Each move reads a row that no move writes, and only as many rows move as there are gaps before the new end.
        """
        num_left = len(self._occupants) - len(rows)
        gaps = sorted(row for row in rows if row < num_left)
        movable = [row for row in range(num_left, len(self._occupants)) if row not in rows]
        moves = [Move(source, target) for source, target in zip(movable, gaps, strict=True)]
        for source, target in moves:
            self._occupants[target] = self._occupants[source]
        del self._occupants[num_left:]
        return moves

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        if len(self._occupants) > self.capacity:
            raise RuntimeError(f"{len(self._occupants)} occupants in {self.capacity} rows")
        if len({id(occupant) for occupant in self._occupants}) != len(self._occupants):
            raise RuntimeError("an occupant holds two rows")
