"""The rows of one lane in the memory that graphs for CUDA work in: keys and values, written in place by both graphs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from dragoman_server.bundle.graph import BFLOAT16, ONNX_NUMBERS
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.slots import Move
from dragoman_server.errors import StartError
from dragoman_server.runtime.device_memory import Buffer, Memory, Staging

# Capacities are multiples of this, for the kernels of attention; also the first.
CAPACITY_STEP = 64

# Rows are moved by whole multiples of so many positions, of which a capacity is one.
_POSITIONS_STEP = 16

# What the graphs that copy rows take for one element, and as many of these as CUDA's kernels can count.
_ELEMENT_BYTES = 8
_MAX_ELEMENTS = 2**31 - 1


class PoolSessions(NamedTuple):
    """Of the graphs in `pool_graphs.py`."""

    move: ort.InferenceSession
    grow: ort.InferenceSession


@dataclass(frozen=True)
class _Part:
    """The state tensors of one kind of attention, one behind the other: [tensors * max_rows, H, capacity, K].

    So one operator moves a row of all layers.
    """

    names: tuple[str, ...]
    shape: tuple[int, int, int, int]
    buffer: Buffer

    @property
    def capacity(self) -> int:
        return self.shape[2]


class DevicePool:
    """Keys and values of the rows of one lane. Not thread-safe.

    Args:
        manifest: of the model.
        max_rows: rows.
        memory: that the sessions work in.
        sessions: that copy rows.
        kind: of keys and values, such as float16.

    Raises:
        StartError: so many rows of this model cannot be addressed.

    Attributes:
        generation: of the memory; grows whenever it is another.
        bytes_per_token: what one source or target token takes up.
    """

    def __init__(self, manifest: Manifest, max_rows: int, memory: Memory, sessions: PoolSessions, kind: str) -> None:
        self._manifest, self._max_rows = manifest, max_rows
        self._memory, self._sessions, self._staging = memory, sessions, Staging(memory)
        self._element_type, self._dtype = ONNX_NUMBERS[kind], storage_dtype(kind)
        architecture, limits, self.generation = manifest.architecture, manifest.limits, 0
        self._width = architecture.d_head * self._dtype.itemsize // _ELEMENT_BYTES  # of what the sessions copy
        num_tensors = len(manifest.state.self_kv)
        self.bytes_per_token = num_tensors * architecture.num_heads * architecture.d_head * self._dtype.itemsize
        longest = capacity_for(max(limits.max_source_tokens, limits.max_target_tokens))
        if (size := self.bytes_per_token * max_rows * longest) > _ELEMENT_BYTES * _MAX_ELEMENTS:
            raise StartError(
                f"max_running is {max_rows}: the keys and values of so many rows of {longest} tokens take up {size} "
                f"bytes for one kind of attention, and no more than {_ELEMENT_BYTES * _MAX_ELEMENTS} can be addressed"
            )
        self._self: _Part
        self._cross: _Part
        self.reset()

    def reset(self) -> None:
        """Forgets all rows. The pool is as small as at first."""
        state = self._manifest.state
        self._self, self._cross = (self._part(names, CAPACITY_STEP) for names in (state.self_kv, state.cross_kv))
        self.generation += 1

    @property
    def num_bytes(self) -> int:
        return sum(part.buffer.num_bytes for part in (self._self, self._cross))

    @property
    def max_bytes(self) -> int:
        """Of the pool when it has grown to the longest sentences."""
        limits = self._manifest.limits
        capacities = capacity_for(limits.max_source_tokens) + capacity_for(limits.max_target_tokens)
        return self.bytes_per_token * self._max_rows * capacities

    @property
    def target_capacity(self) -> int:
        """In tokens."""
        return self._self.capacity

    @property
    def source_capacity(self) -> int:
        """In tokens."""
        return self._cross.capacity

    def make_room(self, num_source: int = 0, num_target: int = 0) -> None:
        """Makes room for so many positions, and keeps what is there."""
        limits = self._manifest.limits
        if num_source > self._cross.capacity:
            self._cross = self._grown(self._cross, num_source, limits.max_source_tokens)
        if num_target > self._self.capacity:
            self._self = self._grown(self._self, num_target, limits.max_target_tokens)

    def bind_self(self, bind: Any, num_rows: int, rename: Callable[[str], str] = str) -> None:
        """Binds the first rows of self-attention's keys and values, under names that `rename` makes of the state's."""
        self._bind(self._self, bind, 0, num_rows, rename)

    def bind_cross(self, bind: Any, first_row: int, num_rows: int, rename: Callable[[str], str] = str) -> None:
        """As `bind_self`, rows of cross-attention's from `first_row` on."""
        self._bind(self._cross, bind, first_row, num_rows, rename)

    def move_rows(self, moves: Sequence[Move], num_source: int, num_target: int) -> None:
        """Copies the first positions of rows to others, so many of cross- and of self-attention."""
        self._move(self._self, moves, num_target)
        self._move(self._cross, [move for move in moves if not move.is_sibling], num_source)

    def _bind(self, part: _Part, bind: Any, first_row: int, num_rows: int, rename: Callable[[str], str]) -> None:
        row_shape = part.shape[1:]
        row_bytes = math.prod(row_shape) * self._dtype.itemsize
        for index, name in enumerate(part.names):
            offset = (index * self._max_rows + first_row) * row_bytes
            part.buffer.bind(bind, rename(name), (num_rows, *row_shape), self._element_type, offset)

    def _move(self, part: _Part, moves: Sequence[Move], num_positions: int) -> None:
        if not moves:
            return
        num_rows, num_heads, capacity, _ = part.shape
        rows = np.array([(move.source, move.target) for move in moves], np.int64).T
        of_tensors = np.arange(len(part.names), dtype=np.int64)[:, None] * self._max_rows
        moved = (rows[:, None] + of_tensors).reshape(2, -1, 1) * (num_heads * capacity)
        # Few sizes, for the allocator keeps the memory of each.
        num_positions = -(-num_positions // _POSITIONS_STEP) * _POSITIONS_STEP
        offsets = (np.arange(num_heads)[:, None] * capacity + np.arange(num_positions)).reshape(-1)
        binding = self._sessions.move.io_binding()
        self._staging.bind(binding.bind_input, "moves", moved)
        self._staging.bind(binding.bind_input, "offsets", offsets)
        places = num_rows * num_heads * capacity, self._width
        part.buffer.bind(binding.bind_input, "pool", places, np.int64)
        part.buffer.bind(binding.bind_output, "moved", places, np.int64)
        with self._memory.running():
            self._sessions.move.run_with_iobinding(binding)

    def _grown(self, part: _Part, length: int, limit: int) -> _Part:
        """The part with room for `length` positions, and what is in it."""
        capacity = part.capacity
        while capacity < length:
            capacity *= 2
        grown = self._part(part.names, min(capacity, capacity_for(limit)))
        binding = self._sessions.grow.io_binding()
        part.buffer.bind(binding.bind_input, "pool", (*part.shape[:3], self._width), np.int64)
        for bind, name in ((binding.bind_input, "larger"), (binding.bind_output, "grown")):
            grown.buffer.bind(bind, name, (*grown.shape[:3], self._width), np.int64)
        with self._memory.running():
            self._sessions.grow.run_with_iobinding(binding)
        self.generation += 1
        return grown

    def _part(self, names: Sequence[str], capacity: int) -> _Part:
        architecture = self._manifest.architecture
        shape = (len(names) * self._max_rows, architecture.num_heads, capacity, architecture.d_head)
        return _Part(tuple(names), shape, Buffer(self._memory, shape, self._dtype))


def capacity_for(num_tokens: int) -> int:
    """The next multiple of CAPACITY_STEP."""
    return -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP


def storage_dtype(kind: str) -> np.dtype[Any]:
    """The type of NumPy for memory of this type: bfloat16, which it does not have, is kept as float16."""
    return np.dtype(np.float16 if kind == BFLOAT16 else kind)
