"""The rows of one lane in the memory that graphs for CUDA work in: keys and values, written in place by both graphs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from dragoman_server.bundle.graph import BFLOAT16, ONNX_NUMBERS
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.device_memory import Buffer, Memory

# Capacities are multiples of this, for the kernels of attention; also the first.
CAPACITY_STEP = 64


class PoolSessions(NamedTuple):
    """Of the graphs in `pool_graphs.py`."""

    move: ort.InferenceSession
    grow: ort.InferenceSession


class _Part:
    """The state tensors of one kind of attention, one behind the other: [tensors, max_rows, H, capacity, K].

    So one operator moves a row of all layers.
    """

    def __init__(self, names: Sequence[str], max_rows: int, heads: tuple[int, int], limit: int) -> None:
        self.names, self.max_rows, self.heads = tuple(names), max_rows, heads
        self.limit = capacity_for(limit)
        self.capacity = 0
        self.buffer: Buffer

    @property
    def row_shape(self) -> tuple[int, int, int]:
        num_heads, d_head = self.heads
        return num_heads, self.capacity, d_head

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names) * self.max_rows, *self.row_shape


class DevicePool:
    """Keys and values of the rows of one lane. Not thread-safe.

    Args:
        manifest: of the model.
        max_rows: rows.
        memory: that the sessions work in.
        sessions: that copy rows.
        kind: of keys and values, such as float16.

    Attributes:
        generation: of the memory; grows whenever it is another.
        bytes_per_token: what one source or target token takes up.
    """

    def __init__(self, manifest: Manifest, max_rows: int, memory: Memory, sessions: PoolSessions, kind: str) -> None:
        self._memory, self._sessions = memory, sessions
        self._element_type, self._dtype = ONNX_NUMBERS[kind], storage_dtype(kind)
        self.generation = 0
        state, limits, architecture = manifest.state, manifest.limits, manifest.architecture
        heads = architecture.num_heads, architecture.d_head
        self._self = _Part(state.self_kv, max_rows, heads, limits.max_target_tokens)
        self._cross = _Part(state.cross_kv, max_rows, heads, limits.max_source_tokens)
        self.bytes_per_token = len(state.self_kv) * architecture.num_heads * architecture.d_head * self._dtype.itemsize
        for part in (self._self, self._cross):
            self._grow(part, CAPACITY_STEP)

    @property
    def num_bytes(self) -> int:
        return sum(part.buffer.num_bytes for part in (self._self, self._cross))

    @property
    def max_bytes(self) -> int:
        """Of the pool when it has grown to the longest sentences."""
        return self.bytes_per_token * self._self.max_rows * (self._self.limit + self._cross.limit)

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
        for part, number in ((self._cross, num_source), (self._self, num_target)):
            if number > part.capacity:
                self._grow(part, number)

    def bind_self(self, bind: Any, num_rows: int, rename: Any = str) -> None:
        """Binds the first rows of self-attention's keys and values, under names that `rename` makes of the state's."""
        self._bind(self._self, bind, 0, num_rows, rename)

    def bind_cross(self, bind: Any, first_row: int, num_rows: int, rename: Any = str) -> None:
        """As `bind_self`, rows of cross-attention's from `first_row` on."""
        self._bind(self._cross, bind, first_row, num_rows, rename)

    def move_rows(self, moves: Sequence[Move]) -> None:
        """Copies rows, with everything that was encoded and decoded in them so far."""
        self._move(self._self, moves)
        self._move(self._cross, [move for move in moves if not move.is_sibling])

    def _bind(self, part: _Part, bind: Any, first_row: int, num_rows: int, rename: Any) -> None:
        row_bytes = int(np.prod(part.row_shape)) * self._dtype.itemsize
        for index, name in enumerate(part.names):
            offset = (index * part.max_rows + first_row) * row_bytes
            part.buffer.bind(bind, rename(name), (num_rows, *part.row_shape), self._element_type, offset)

    def _move(self, part: _Part, moves: Sequence[Move]) -> None:
        if not moves:
            return
        rows = np.array([(move.source, move.target) for move in moves], np.int64).T
        of_tensors = np.arange(len(part.names), dtype=np.int64)[:, None] * part.max_rows
        places = self._memory.copy(np.ascontiguousarray((rows[:, None] + of_tensors).reshape(2, -1)))
        binding = self._sessions.move.io_binding()
        part.buffer.bind(binding.bind_input, "pool", part.shape)
        places.bind(binding.bind_input, "moves", places.shape)
        part.buffer.bind(binding.bind_output, "moved", part.shape)
        self._sessions.move.run_with_iobinding(binding)

    def _grow(self, part: _Part, length: int) -> None:
        old_shape, old = part.shape, part.buffer if part.capacity else None
        capacity = part.capacity or CAPACITY_STEP
        while capacity < length:
            capacity *= 2
        part.capacity = min(capacity, part.limit)
        part.buffer = self._memory.zeros(part.shape, self._dtype)
        self.generation += 1
        if old is not None:
            binding = self._sessions.grow.io_binding()
            part.buffer.bind(binding.bind_input, "larger", part.shape)
            old.bind(binding.bind_input, "pool", old_shape)
            part.buffer.bind(binding.bind_output, "grown", part.shape)
            self._sessions.grow.run_with_iobinding(binding)


def capacity_for(num_tokens: int) -> int:
    """The next multiple of CAPACITY_STEP."""
    return -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP


def storage_dtype(kind: str) -> np.dtype[Any]:
    """The type of NumPy for memory of this type: bfloat16, which it does not have, is kept as float16."""
    return np.dtype(np.float16 if kind == BFLOAT16 else kind)
