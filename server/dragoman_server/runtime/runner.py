"""The model behind two verbs, `encode` and `decode_step`, on ONNX Runtime."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Manifest, present
from dragoman_server.config import EngineOptions
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search import StepOutput
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.bindings import Bindings
from dragoman_server.runtime.kv_pool import KvPool
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.packed_products import with_packed_products
from dragoman_server.runtime.session import open_session

# From this size of its weights on a model is faster on all processors than on one while a single lane computes. Smaller
# ones wait longer for the threads of an operator than these save.
_ALONE_WEIGHT_BYTES = 24 << 20


class Sessions(NamedTuple):
    """The encoder and the decoder of a model."""

    encoder: ort.InferenceSession
    decoder: ort.InferenceSession

    @classmethod
    def open(cls, contents: Contents, num_threads: int) -> "Sessions":
        """Opens both; each run of either takes `num_threads` threads.

        Raises:
            BundleError: ONNX Runtime cannot load the graphs.
        """
        encoder = open_session(contents, ENCODER_FILE, num_threads)
        return cls(encoder, open_session(contents, DECODER_STEP_FILE, num_threads, has_few_shapes=True))


@dataclass(frozen=True)
class Graphs:
    """A model, loaded once for all lanes, which may run it at the same time.

    Two pairs of sessions, as the number of threads is that of a session: `shared` for lanes that compute beside others,
    `alone` for one that has all processors to itself, which is another pair where the model is large. They give the
    same bits.
    """

    manifest: Manifest
    shared: Sessions
    alone: Sessions

    @classmethod
    def open(cls, manifest: Manifest, contents: Contents, numbers_of_threads: Sequence[int]) -> Self:
        """Opens the sessions: for lanes that compute beside others, and for one alone, if that has more threads.

        Raises:
            BundleError: ONNX Runtime cannot load the graphs.
        """
        contents = with_packed_products(contents)
        pairs = [Sessions.open(contents, number) for number in numbers_of_threads]
        return cls(manifest, pairs[0], pairs[-1])

    @property
    def kv_dtype(self) -> type[np.generic]:
        """Of keys and values: a calibrated int8 graph keeps them in int8."""
        types = {argument.name: argument.type for argument in self.shared.decoder.get_inputs()}
        return np.int8 if types[self.manifest.state.self_kv[0]] == "tensor(int8)" else np.float32


class _Bound(NamedTuple):
    """Where a step reads and writes, and the views of what it writes."""

    binding: ort.IOBinding
    output: StepOutput


class OnnxRunner:
    """Decodes the rows of one lane on the CPU. Not thread-safe: the lane is the only one to call it.

    A step binds the first n rows of the KV pool as input and, at the same address, as output; the latest bindings are
    kept, so that a step allocates nothing.

    Args:
        graphs: shared with the runners of other lanes.
        max_rows: rows of the KV pool.

    Attributes:
        max_rows: as given.
        is_alone: whether no other lane computes, so that steps may take all processors.
    """

    def __init__(self, graphs: Graphs, max_rows: int) -> None:
        self._graphs: Graphs | None = graphs  # until it is closed
        self._manifest, self.max_rows = graphs.manifest, max_rows
        self._pool = KvPool(graphs.manifest, max_rows, graphs.kv_dtype)
        self.is_alone = False
        self._bound: Bindings[tuple[ort.InferenceSession, int, int], _Bound] = Bindings()  # by rows and k
        self._bound_generation = self._pool.generation
        self._inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros(max_rows, np.int64),
            "position_ids": self._pool.positions,
            "source_lengths": self._pool.source_lengths,
            "score_ids": np.zeros((max_rows, 1), np.int64),
        }
        self._score_logprobs = np.zeros((max_rows, 1), np.float32)
        self._top: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}  # ids and log-probs by k

    @classmethod
    def open(cls, bundle: Bundle, max_rows: int, num_threads: int, contents: Contents | None = None) -> "OnnxRunner":
        """A runner with graphs of its own, from the contents of the bundle if they are given.

        Raises:
            BundleError: as `Bundle.contents` and `Graphs.open`.
        """
        return cls(Graphs.open(bundle.manifest, contents or bundle.contents(), [num_threads]), max_rows)

    @property
    def graphs(self) -> Graphs:
        """As given; raises ValueError when the runner has been closed."""
        if self._graphs is None:
            raise ValueError("the runner is closed")
        return self._graphs

    @property
    def _sessions(self) -> Sessions:
        return self.graphs.alone if self.is_alone else self.graphs.shared

    @property
    def max_kv_bytes(self) -> int:
        """Size of the pool when it has grown to the longest sentences in all rows."""
        limits = self._manifest.limits
        return self.kv_bytes_per_token * self.max_rows * (limits.max_source_tokens + limits.max_target_tokens)

    @property
    def kv_pool_bytes(self) -> int:
        """Size of the pool at present."""
        return sum(array.nbytes for array in self._pool.arrays.values())

    @property
    def kv_bytes_per_token(self) -> int:
        return self._pool.bytes_per_token

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        feeds = encoder_feeds(sources)
        (cross_kv,) = self._sessions.encoder.run(["cross_kv"], feeds)
        self._pool.fill(first_row, cross_kv, [len(source) for source in sources])

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
            raise ValueError("the runner was opened for the whole vocabulary alone")
        num_rows = len(token_ids)
        self._place(token_ids, positions)
        self._inputs["score_ids"][: len(score_ids), 0] = score_ids
        # Few different k, for each has its bindings.
        top_k = min(1 << (top_k - 1).bit_length(), self._manifest.architecture.vocabulary_size)
        decoder = self._sessions.decoder
        if all_rows:
            bound = self._bind(num_rows, top_k, all_rows)
        else:
            bound = self._bound.of((decoder, num_rows, top_k), lambda: self._bind(num_rows, top_k, ()))
        decoder.run_with_iobinding(bound.binding)
        return bound.output

    def _place(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        """Makes room in the pool, and writes what the rows are fed where the bindings read it."""
        num_rows = len(token_ids)
        self._pool.make_room(max(positions) + 1, num_rows)
        if self._bound_generation != self._pool.generation:
            self._forget_bindings()
            self._bound_generation = self._pool.generation
        self._inputs["input_ids"][:num_rows] = token_ids
        self._inputs["position_ids"][:num_rows] = positions

    def _forget_bindings(self) -> None:
        """Those to memory that is no longer the pool's."""
        self._bound.clear()

    def move_rows(self, moves: Sequence[Move]) -> None:
        self._pool.move_rows(moves)

    def give_back_memory(self) -> None:
        """Gives back what keys and values have grown to. No row may be live, and no other call run."""
        self._forget_bindings()
        self._pool.reset()

    def close(self) -> None:
        """Gives all memory back, that of the graphs with the last of their runners. No other call may run or follow.

        Whoever still refers to the runner, such as the callback of a future, keeps next to nothing.
        """
        self._forget_bindings()
        self._pool.close()
        self._graphs = None

    def _top_arrays(self, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if top_k not in self._top:
            shape = (self.max_rows, top_k)
            self._top[top_k] = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        return self._top[top_k]

    def _bind(self, num_rows: int, top_k: int, all_rows: Sequence[int]) -> "_Bound":
        binding = self._sessions.decoder.io_binding()
        ids, logprobs = self._top_arrays(top_k)
        shape = (len(all_rows), self._manifest.architecture.vocabulary_size)
        all_logits, all_logprobs = np.empty(shape, np.float32), np.empty(shape, np.float32)
        pool = self._pool.arrays
        outputs: dict[str, NDArray[Any]] = {
            "top_ids": ids,
            "top_logprobs": logprobs,
            "score_logprobs": self._score_logprobs,
        }
        by_row: tuple[tuple[Any, dict[str, NDArray[Any]]], ...] = (
            (binding.bind_input, {**self._inputs, **pool}),
            (binding.bind_output, {**outputs, **{present(name): array for name, array in pool.items()}}),
        )
        for bind, arrays in by_row:
            for name, array in arrays.items():
                bind_array(bind, name, array[:num_rows])
        binding.bind_cpu_input("top_k", np.array([top_k], np.int64))
        binding.bind_cpu_input("all_rows", np.array(all_rows, np.int64))
        bind_array(binding.bind_output, "all_logits", all_logits)
        bind_array(binding.bind_output, "all_logprobs", all_logprobs)
        score_logprobs = self._score_logprobs[:num_rows, 0]
        output = StepOutput(ids[:num_rows], logprobs[:num_rows], score_logprobs, all_logits, all_logprobs)
        return _Bound(binding, output)


def session_threads(num_weight_bytes: int, options: EngineOptions) -> list[int]:
    """The threads of each pair of sessions that a model of this size has on the CPUs of this process."""
    num_cpus = available_cpus()
    _, num_threads = options.shape(num_cpus)
    takes_all_cpus = num_threads < num_cpus and num_weight_bytes >= _ALONE_WEIGHT_BYTES
    return [num_threads, num_cpus] if takes_all_cpus else [num_threads]


def encoder_feeds(sources: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
    """What the encoder is given for a batch: one source behind the other, and how they stand side by side.

    Returns:
        input_ids and position_ids int64 [n]; source_lengths int32 [b]; token_places int64 [b, s], which of the n tokens
        is in each place; packed_places int64 [n], in which of the b * s places each token is.
    """
    lengths = np.array([len(source) for source in sources])
    ends = lengths.cumsum()
    columns = np.arange(lengths.max())
    is_token = columns < lengths[:, None]
    return {
        "input_ids": np.fromiter(itertools.chain.from_iterable(sources), np.int64, int(ends[-1])),
        "position_ids": np.broadcast_to(columns, is_token.shape)[is_token],
        "source_lengths": lengths.astype(np.int32),
        "token_places": np.where(is_token, (ends - lengths)[:, None] + columns, 0),
        "packed_places": np.flatnonzero(is_token),
    }


def bind_array(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Binds memory that stays where it is for as long as the binding is used."""
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
