"""The rows of one lane: keys and values in the host's memory, bound in place by the decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.memory import zeros
from dragoman_server.runtime.row_arrays import RowArrays

# Positions that the pool has room for at first. It grows by doubling when a longer sentence comes. The smaller it is,
# the closer together lies what a step reads.
FIRST_CAPACITY = 32


class KvPool:
    """Arrays [max_rows, heads, capacity, head size], one per state tensor, and how much of each row is in use.

    Not thread-safe. Memory is only taken up by rows that were used.

    Args:
        manifest: of the model.
        max_rows: rows.
        dtype: of keys and values.

    Attributes:
        generation: of the arrays.
        bytes_per_token: what one source or target token takes up.
        source_lengths: [max_rows], in tokens.
        positions: [max_rows], of the token that was fed last.
    """

    def __init__(self, manifest: Manifest, max_rows: int, dtype: DTypeLike) -> None:
        self._manifest, self._max_rows, self._dtype = manifest, max_rows, dtype
        self.generation = 0  # grows whenever arrays are replaced: what was bound before is no longer there
        self._arrays: dict[str, NDArray[Any]] = {}  # by the state tensor's name
        self._rows: dict[tuple[str, ...], RowArrays] = {}  # of those of a kind, by their names
        self._self_capacity = self._cross_capacity = 0
        self.reset()
        self.bytes_per_token = sum(self._arrays[name][0, :, 0].nbytes for name in manifest.state.self_kv)
        self.source_lengths = np.ones(max_rows, np.int32)
        self.positions = np.zeros(max_rows, np.int64)

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """By the state tensor's name."""
        return self._arrays

    def reset(self) -> None:
        """Forgets all rows and gives their memory back. The pool is as small as at first."""
        state, limits = self._manifest.state, self._manifest.limits
        self._self_capacity = self._grow(state.self_kv, 1, limits.max_target_tokens, 0)
        self._cross_capacity = self._grow(state.cross_kv, 1, limits.max_source_tokens, 0)

    def close(self) -> None:
        """Gives all memory back; there are no rows any more."""
        self._arrays, self._rows = {}, {}

    def fill(self, first_row: int, cross_kv: NDArray[Any], lengths: Sequence[int]) -> None:
        """Puts encoded sources into consecutive rows, which start decoding afresh.

        Args:
            first_row: that of the first source.
            cross_kv: [b, state tensors * heads, s, head size].
            lengths: in tokens, of each source.
        """
        longest, names = cross_kv.shape[2], self._manifest.state.cross_kv
        if longest > self._cross_capacity:
            limit = self._manifest.limits.max_source_tokens
            self._cross_capacity = self._grow(names, longest, limit, first_row)
        rows = slice(first_row, first_row + len(lengths))
        self.source_lengths[rows], self.positions[rows] = lengths, 0
        for name, key_value in zip(names, np.split(cross_kv, len(names), axis=1), strict=True):
            self._arrays[name][rows, :, :longest] = key_value

    def make_room(self, num_positions: int, num_rows: int) -> None:
        """Makes room for so many target positions; keeps what is in the first rows."""
        if num_positions > self._self_capacity:
            names, limit = self._manifest.state.self_kv, self._manifest.limits.max_target_tokens
            self._self_capacity = self._grow(names, num_positions, limit, num_rows)

    def move_rows(self, moves: Sequence[Move]) -> None:
        """Copies rows, with everything that was encoded and decoded in them so far."""
        lengths, positions, state = self.source_lengths, self.positions, self._manifest.state
        decoded: list[tuple[int, int, int]] = []
        encoded: list[tuple[int, int, int]] = []
        for source, target, is_sibling in moves:
            source_length, position = int(lengths[source]), int(positions[source])
            lengths[target], positions[target] = source_length, position
            decoded.append((source, target, position + 1))
            if not is_sibling:
                encoded.append((source, target, source_length))
        self._rows[state.self_kv].move(decoded)
        self._rows[state.cross_kv].move(encoded)

    def _grow(self, names: tuple[str, ...], length: int, limit: int, num_rows: int) -> int:
        """Makes room for `length` positions, keeping what is in the first rows; returns the new capacity."""
        capacity = FIRST_CAPACITY
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, limit)
        architecture = self._manifest.architecture
        shape = (self._max_rows, architecture.num_heads, capacity, architecture.d_head)
        grown = {name: zeros(shape, self._dtype) for name in names}
        if num_rows:
            for name, array in grown.items():
                old = self._arrays[name]
                array[:num_rows, :, : old.shape[2]] = old[:num_rows]
        # All at once, or none where memory runs out half-way: the operators want arrays of the same capacity.
        self.generation += 1
        self._arrays |= grown
        self._rows[names] = RowArrays([*grown.values()])
        return capacity
