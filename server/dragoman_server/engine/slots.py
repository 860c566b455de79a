"""Rows of the KV pool. Live rows are kept dense at the front, so that a prefix view of the pool is the batch."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from dragoman_server.engine.sequence import Sequence, SequenceGroup


class Move(NamedTuple):
    """The contents of one row must be copied to another."""

    source: int
    target: int
    is_sibling: bool  # the target was a row of the same group: it has the same source sentence already


class Slots:
    """Which sequence holds which row: the i-th holds row i, rows from `len(sequences)` on are free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._sequences: list[Sequence] = []

    @property
    def sequences(self) -> list[Sequence]:
        """By row. Not to be changed."""
        return self._sequences

    def add(self, sequence: Sequence) -> None:
        """Gives a new sequence the first free row; raises IndexError when all are taken."""
        if len(self._sequences) == self.capacity:
            raise IndexError(f"all {self.capacity} rows are taken")
        sequence.row = len(self._sequences)
        self._sequences.append(sequence)

    def advance(self, survivors: Iterable[Sequence]) -> list[Move]:
        """Replaces the sequences by those that continue them, each of which says in `row` which one.

        A row may be continued by none, which frees it, by one, which stays in it, or by several, the first of which
        stays. Returns the copies that this takes, in any order: none reads a row that another writes. Only what does
        not stay is moved, into rows that its own group gave up where there are such, and only so far that the live
        rows are dense again.

        Raises:
            IndexError: there are more survivors than rows.
        """
        old = self._sequences
        stays: list[Sequence | None] = [None] * len(old)
        extras: list[Sequence] = []
        for sequence in survivors:
            if stays[sequence.row] is None:
                stays[sequence.row] = sequence
            else:
                extras.append(sequence)
        if not extras and None not in stays:
            self._sequences = [sequence for sequence in stays if sequence is not None]
            return []
        num_live = len(stays) - stays.count(None) + len(extras)
        if num_live > self.capacity:
            raise IndexError(f"{num_live} sequences do not fit into {self.capacity} rows")
        gaps: defaultdict[SequenceGroup | None, list[int]] = defaultdict(list)  # by the group that gave the row up
        for row, stayer in enumerate(stays[:num_live]):
            if stayer is None:
                gaps[old[row].group].append(row)
        gaps[None].extend(range(len(stays), num_live))
        moves, left = [], []
        for sequence in (*extras, *(sequence for sequence in stays[num_live:] if sequence is not None)):
            if own := gaps.get(sequence.group):
                moves.append((sequence, own.pop(), True))
            else:
                left.append(sequence)
        others = itertools.chain.from_iterable(gaps.values())
        moves += [(sequence, row, False) for sequence, row in zip(left, others, strict=True)]
        stays[num_live:] = [None] * (num_live - len(stays))
        result = [Move(sequence.row, row, is_sibling) for sequence, row, is_sibling in moves]
        for sequence, row, _ in moves:
            stays[row], sequence.row = sequence, row
        self._sequences = [sequence for sequence in stays if sequence is not None]
        return result

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        if len(self._sequences) > self.capacity:
            raise RuntimeError(f"{len(self._sequences)} sequences in {self.capacity} rows")
        if len({id(sequence) for sequence in self._sequences}) != len(self._sequences):
            raise RuntimeError("a sequence holds two rows")
        for row, sequence in enumerate(self._sequences):
            if sequence.row != row:
                raise RuntimeError(f"the sequence in row {row} takes itself to be in row {sequence.row}")
