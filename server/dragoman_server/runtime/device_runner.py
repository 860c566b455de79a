"""The model behind two verbs, `encode` and `decode_step`, by the graphs for CUDA."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Manifest, present
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search import StepOutput
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.cuda_session import open_cuda_session
from dragoman_server.runtime.device_memory import Buffer, Memory, Staging
from dragoman_server.runtime.device_pool import DevicePool, PoolSessions
from dragoman_server.runtime.pool_graphs import grow_graph, move_graph
from dragoman_server.runtime.session import open_session

# Rows of a step that is a CUDA graph: the GPU computes more rows for longer than the host takes to start its kernels.
_MAX_CAPTURED_ROWS = 256

# Numbers of CUDA graphs. None is used again, by whatever runner: the graph would write into the pool as it was then.
_CAPTURED = itertools.count(1)
_NOT_CAPTURED = -1  # of runs that are none


class DeviceGraphs(NamedTuple):
    """A model on a device, loaded once for all its lanes."""

    manifest: Manifest
    memory: Memory
    encoder: ort.InferenceSession
    decoder: ort.InferenceSession
    pool: PoolSessions

    @classmethod
    def open(
        cls, manifest: Manifest, contents: Contents, memory: Memory, num_threads: int = 1, max_arena_bytes: int = 0
    ) -> "DeviceGraphs":
        """Opens the graphs of a bundle at fp16 or bf16.

        Args:
            manifest: of the bundle.
            contents: of the bundle.
            memory: of the device that is to compute.
            num_threads: that compute a run on a CPU.
            max_arena_bytes: of each session, on a GPU; 0 is no limit.

        Raises:
            BundleError: the device cannot run the graphs.
        """
        if memory.kind == "cpu":
            encoder = open_session(contents, ENCODER_FILE, num_threads)
            decoder = open_session(contents, DECODER_STEP_FILE, num_threads, has_few_shapes=True)
        else:
            number = memory.number
            encoder = open_cuda_session(ENCODER_FILE, number, contents, max_arena_bytes=max_arena_bytes)
            decoder = open_cuda_session(
                DECODER_STEP_FILE, number, contents, max_arena_bytes=max_arena_bytes, captures=True
            )
        return cls(manifest, memory, encoder, decoder, open_pool_sessions(memory, max_arena_bytes))


def _state_type(manifest: Manifest, decoder: ort.InferenceSession) -> str:
    """Of keys and values."""
    types = {argument.name: argument.type for argument in decoder.get_inputs()}
    name = types[manifest.state.self_kv[0]].removeprefix("tensor(").removesuffix(")")
    return "float32" if name == "float" else str(name)


def open_pool_sessions(memory: Memory, max_arena_bytes: int = 0) -> PoolSessions:
    """Opens the graphs that copy rows of keys and values; the limit is as for `DeviceGraphs.open`."""
    graphs = move_graph(), grow_graph()
    if memory.kind == "cuda":
        number = memory.number
        return PoolSessions(*(open_cuda_session(graph, number, max_arena_bytes=max_arena_bytes) for graph in graphs))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return PoolSessions(*(ort.InferenceSession(graph, options, ["CPUExecutionProvider"]) for graph in graphs))


class _Bound(NamedTuple):
    """Where a step reads and writes, and how it is run."""

    binding: ort.IOBinding
    options: ort.RunOptions
    vocabulary: tuple[NDArray[np.float32], ...]  # logits and log-probs, [rows, V] of all_rows


class DeviceRunner:
    """Decodes the rows of one lane. Not thread-safe: the lane is the only one to call it.

    A step uploads one table, runs, and fetches the best tokens. On a GPU batches are filled up to one of a few sizes
    with rows that nobody uses, so that each is a CUDA graph which is captured once and started as a whole. The longest
    lengths that the graph is told are the capacities of the pool: so the kernels that are chosen do not change as
    sentences grow.

    Args:
        graphs: shared with the runners of other lanes.
        max_rows: rows of the KV pool.
        max_captured_rows: of the largest batch that is run as a CUDA graph.

    Attributes:
        max_rows: as given.
        is_alone: of no consequence.
    """

    def __init__(self, graphs: DeviceGraphs, max_rows: int, max_captured_rows: int = _MAX_CAPTURED_ROWS) -> None:
        self._graphs: DeviceGraphs | None = graphs  # until it is closed
        self._manifest, self._memory, self.max_rows = graphs.manifest, graphs.memory, max_rows
        self._max_captured_rows = max_captured_rows if graphs.memory.kind == "cuda" else 0
        self.is_alone = False
        kind = _state_type(graphs.manifest, graphs.decoder)
        self._pool: DevicePool | None = DevicePool(graphs.manifest, max_rows, graphs.memory, graphs.pool, kind)
        self._max_kv_bytes, self._kv_bytes_per_token = self._pool.max_bytes, self._pool.bytes_per_token
        # What a step is told of each row: its token, the position of this, its last source position, a token to score.
        self._table = np.zeros((max_rows, 4), np.int32)
        _, self._positions, self._last_sources, _ = self._table.T
        memory = graphs.memory
        self._staging, self._rows = Staging(memory), Buffer(memory, self._table.shape, self._table.dtype)
        self._nothing = Buffer(memory, (1,), np.int64)  # which is somewhere, though nothing of it is used
        self._bound: dict[tuple[int, int], _Bound] = {}  # by rows and k
        self._bound_generation = 0
        self._score_logprobs = Buffer(memory, (max_rows, 1), np.float32)
        self._top: dict[int, tuple[Buffer, Buffer]] = {}  # ids and log-probs by k

    @property
    def max_kv_bytes(self) -> int:
        """Size of the pool when it has grown to the longest sentences in all rows."""
        return self._max_kv_bytes

    @property
    def kv_pool_bytes(self) -> int:
        """Size of the pool at present."""
        return self._pool.num_bytes if self._pool is not None else 0

    @property
    def kv_bytes_per_token(self) -> int:
        return self._kv_bytes_per_token

    @property
    def _open(self) -> tuple[DeviceGraphs, DevicePool]:
        if self._graphs is None or self._pool is None:
            raise ValueError("the runner is closed")
        return self._graphs, self._pool

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        graphs, pool = self._open
        lengths = np.array([len(source) for source in sources], np.int64)
        ids = np.full((len(sources), lengths.max()), self._manifest.pad_token_id, np.int64)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        pool.make_room(num_source=ids.shape[1])
        binding = graphs.encoder.io_binding()
        self._staging.bind(binding.bind_input, "input_ids", ids)
        self._staging.bind(binding.bind_input, "source_lengths", lengths)
        pool.bind_cross(binding.bind_input, first_row, len(sources))
        pool.bind_cross(binding.bind_output, first_row, len(sources), present)
        with self._memory.running():
            graphs.encoder.run_with_iobinding(binding)
        rows = slice(first_row, first_row + len(sources))
        self._positions[rows], self._last_sources[rows] = 0, lengths - 1

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
        candidates: Sequence[Candidates | None] = (),
    ) -> StepOutput:
        if any(candidates):
            raise ValueError("graphs for CUDA look at the whole vocabulary")
        graphs, pool = self._open
        num_rows = len(token_ids)
        pool.make_room(num_target=max(positions) + 1)
        if self._bound_generation != pool.generation:
            self._bound.clear()
            self._bound_generation = pool.generation
        self._fill_table(token_ids, positions, score_ids)
        # Few different k, for each has its bindings.
        top_k = min(1 << (top_k - 1).bit_length(), self._manifest.architecture.vocabulary_size)
        bound = self._bind(num_rows, top_k, all_rows) if all_rows else self._bound_step(num_rows, top_k)
        with self._memory.running():
            graphs.decoder.run_with_iobinding(bound.binding, bound.options)
        ids, logprobs = (buffer.read()[:num_rows] for buffer in self._top[top_k])
        scores = self._score_logprobs.read()[:num_rows, 0] if score_ids else np.zeros(num_rows, np.float32)
        return StepOutput(ids, logprobs, scores, *bound.vocabulary)

    def move_rows(self, moves: Sequence[Move]) -> None:
        _, pool = self._open
        if not moves:
            return
        sources, targets = [move.source for move in moves], [move.target for move in moves]
        longest_source, longest_target = (
            int(column[sources].max()) + 1 for column in (self._last_sources, self._positions)
        )
        pool.move_rows(moves, longest_source, longest_target)
        self._table[targets] = self._table[sources]

    def give_back_memory(self) -> None:
        """Gives the host's memory back. That of a GPU stays: CUDA graphs refer to it, which their session keeps."""
        if self._memory.kind == "cpu":
            _, pool = self._open
            self._bound.clear()
            pool.reset()

    def close(self) -> None:
        """Gives all memory back, that of the graphs with the last of their runners. No other call may run or follow."""
        self._memory.use()
        self._bound.clear()
        self._top.clear()
        self._staging.clear()
        self._graphs = self._pool = None

    def _fill_table(self, token_ids: Sequence[int], positions: Sequence[int], score_ids: Sequence[int]) -> None:
        """Rows that fill a batch up read one position of a source, and write the first of a target: both are free."""
        num_rows, table = len(token_ids), self._table
        table[:num_rows, 0] = token_ids
        self._positions[:num_rows] = positions
        table[:num_rows, 3] = score_ids if score_ids else 0
        table[num_rows:] = 0
        self._rows.write(table)

    def _bound_step(self, num_rows: int, top_k: int) -> _Bound:
        num_rows = self._batch_size(num_rows)
        if (num_rows, top_k) not in self._bound:
            number = next(_CAPTURED) if num_rows <= self._max_captured_rows else _NOT_CAPTURED
            self._bound[num_rows, top_k] = self._bind(num_rows, top_k, (), number)
        return self._bound[num_rows, top_k]

    def _batch_size(self, num_rows: int) -> int:
        """Of the batch that so many rows are computed in."""
        size = 1 << (num_rows - 1).bit_length()  # powers of two, and from 4 on three quarters of them
        size = size * 3 // 4 if size >= 4 and num_rows <= size * 3 // 4 else size
        size = min(size, self.max_rows)
        return size if size <= self._max_captured_rows else num_rows

    def _top_buffers(self, top_k: int) -> tuple[Buffer, Buffer]:
        if top_k not in self._top:
            shape = (self.max_rows, top_k)
            self._top[top_k] = Buffer(self._memory, shape, np.int64), Buffer(self._memory, shape, np.float32)
        return self._top[top_k]

    def _bind(self, num_rows: int, top_k: int, all_rows: Sequence[int], number: int = _NOT_CAPTURED) -> _Bound:
        """Binds a step; `number` is that of its CUDA graph."""
        graphs, pool = self._open
        binding = graphs.decoder.io_binding()
        ids, logprobs = self._top_buffers(top_k)
        self._rows.bind(binding.bind_input, "rows", (num_rows, 4))
        if all_rows:
            self._staging.bind(binding.bind_input, "all_rows", np.array(all_rows, np.int64))
        else:
            self._nothing.bind(binding.bind_input, "all_rows", (0,))
        for name, value in {
            "top_k": np.array([top_k], np.int64),
            "longest_target": np.array([pool.target_capacity], np.int32),
            "longest_source": np.array([pool.source_capacity], np.int32),
        }.items():
            binding.bind_cpu_input(name, value)
        pool.bind_self(binding.bind_input, num_rows)
        pool.bind_cross(binding.bind_input, 0, num_rows)
        pool.bind_self(binding.bind_output, num_rows, present)
        ids.bind(binding.bind_output, "top_ids", (num_rows, top_k))
        logprobs.bind(binding.bind_output, "top_logprobs", (num_rows, top_k))
        self._score_logprobs.bind(binding.bind_output, "score_logprobs", (num_rows, 1))
        shape = (len(all_rows), self._manifest.architecture.vocabulary_size)
        vocabulary = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for name, array in zip(("all_logits", "all_logprobs"), vocabulary, strict=True):
            if all_rows:
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:  # a CUDA graph may not end in the host's memory
                self._nothing.bind(binding.bind_output, name, shape, np.float32)
        options = ort.RunOptions()
        if self._memory.kind == "cuda":
            options.add_run_config_entry("gpu_graph_id", str(number))
        return _Bound(binding, options, vocabulary)
