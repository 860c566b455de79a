"""The model behind two verbs, `encode` and `decode_step`, on ONNX Runtime; owns the sessions and the KV pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE
from dragoman_server.engine.search import StepOutput
from dragoman_server.engine.slots import Move
from dragoman_server.errors import BundleError

# Positions that the pool has room for at first. It grows by doubling when a longer sentence comes.
FIRST_CAPACITY = 64


class Runner(Protocol):
    """What the engine needs of a model. Rows are rows of the KV pool; live rows are 0..n-1."""

    @property
    def kv_bytes_per_token(self) -> int:
        """What one source or target token takes up in the pool."""

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        """Encodes a batch into consecutive rows from `first_row` on, which start decoding afresh."""

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
    ) -> StepOutput:
        """Feeds row i the token `token_ids[i]` at its position `positions[i]` (0 for the first).

        Args:
            token_ids: one for each live row.
            positions: one for each live row.
            top_k: how many of the most probable tokens are wanted; fewer come where the vocabulary is smaller.
            score_ids: tokens whose log-probs are wanted, one for each row; or none.
            all_rows: rows of which the whole vocabulary is wanted.
        """

    def move_rows(self, moves: Sequence[Move]) -> None:
        """Copies rows, with everything that was encoded and decoded in them so far."""


class OnnxRunner:
    """Decodes on the CPU. Not thread-safe: the engine thread is the only one to call it.

    The pool has one array [max_rows, heads, capacity, head size] per state tensor. A step binds the first n rows of
    each as input and, at the same address, as output; the bindings are kept, so that a step allocates nothing.

    Attributes:
        max_rows: of the pool.
    """

    def __init__(self, bundle: Bundle, max_rows: int, num_threads: int) -> None:
        """Raises BundleError when ONNX Runtime cannot load the graphs."""
        manifest = bundle.manifest
        self._manifest, self.max_rows = manifest, max_rows
        self._encoder = open_session(bundle.folder / ENCODER_FILE, num_threads)
        self._decoder = open_session(bundle.folder / DECODER_STEP_FILE, num_threads)
        # By the state tensor's name. A calibrated int8 graph keeps keys and values in int8.
        self._pool: dict[str, NDArray[Any]] = {}
        types = {argument.name: argument.type for argument in self._decoder.get_inputs()}
        self._kv_dtype = np.int8 if types.get(manifest.state.self_kv[0]) == "tensor(int8)" else np.float32
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}  # by rows and k
        self._self_capacity = self._grow(manifest.state.self_kv, 1, manifest.limits.max_target_tokens, 0)
        self._cross_capacity = self._grow(manifest.state.cross_kv, 1, manifest.limits.max_source_tokens, 0)
        width = len(manifest.state.cross_kv) * manifest.architecture.num_heads * manifest.architecture.d_head
        self._last_cross_kv = np.zeros((max_rows, 1, width), np.float32)
        self._inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.zeros(max_rows, np.int64),
            "position_ids": np.zeros(max_rows, np.int64),
            "source_lengths": np.ones(max_rows, np.int32),
            "score_ids": np.zeros((max_rows, 1), np.int64),
            "last_cross_kv": self._last_cross_kv,
        }
        self._score_logprobs = np.zeros((max_rows, 1), np.float32)
        self._top: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}  # ids and log-probs by k
        self._no_rows = np.zeros(0, np.int64)
        self._nothing = np.zeros((0, manifest.architecture.vocabulary_size), np.float32)

    @property
    def max_kv_bytes(self) -> int:
        """Size of the pool when it has grown to the longest sentences in all rows."""
        limits = self._manifest.limits
        return self.kv_bytes_per_token * self.max_rows * (limits.max_source_tokens + limits.max_target_tokens)

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(self._pool[name][0, :, 0].nbytes for name in self._manifest.state.self_kv)

    def _grow(self, names: Sequence[str], length: int, limit: int, num_rows: int) -> int:
        """Makes room for `length` positions, keeping what is in the first rows; returns the new capacity."""
        capacity = FIRST_CAPACITY
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, limit)
        architecture = self._manifest.architecture
        # First, for they point into arrays that are replaced, and memory may run out half-way.
        self._bindings.clear()
        for name in names:
            pool = np.zeros((self.max_rows, architecture.num_heads, capacity, architecture.d_head), self._kv_dtype)
            if num_rows:
                old = self._pool[name]
                pool[:num_rows, :, : old.shape[2]] = old[:num_rows]
            self._pool[name] = pool
        return capacity

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        lengths = [len(source) for source in sources]
        longest = max(lengths)
        if longest > self._cross_capacity:
            limits, state = self._manifest.limits, self._manifest.state
            self._cross_capacity = self._grow(state.cross_kv, longest, limits.max_source_tokens, first_row)
        input_ids = np.full((len(sources), longest), self._manifest.pad_token_id, np.int64)
        for row, source in enumerate(sources):
            input_ids[row, : len(source)] = source
        rows = slice(first_row, first_row + len(sources))
        self._inputs["source_lengths"][rows] = lengths
        self._inputs["position_ids"][rows] = 0
        feeds = {"input_ids": input_ids, "source_lengths": self._inputs["source_lengths"][rows]}
        cross_kv, self._last_cross_kv[rows] = self._encoder.run(["cross_kv", "last_cross_kv"], feeds)
        names = self._manifest.state.cross_kv
        for name, key_value in zip(names, np.split(cross_kv, len(names), axis=1), strict=True):
            self._pool[name][rows, :, :longest] = key_value

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
    ) -> StepOutput:
        num_rows, longest = len(token_ids), max(positions) + 1
        if longest > self._self_capacity:
            limits, state = self._manifest.limits, self._manifest.state
            self._self_capacity = self._grow(state.self_kv, longest, limits.max_target_tokens, num_rows)
        self._inputs["input_ids"][:num_rows] = token_ids
        self._inputs["position_ids"][:num_rows] = positions
        self._inputs["score_ids"][: len(score_ids), 0] = score_ids
        # Few different k, for each has its bindings.
        top_k = min(1 << (top_k - 1).bit_length(), self._manifest.architecture.vocabulary_size)
        ids, logprobs = self._top_arrays(top_k)
        all_logits = all_logprobs = self._nothing
        if all_rows:
            rows = np.array(all_rows, np.int64)
            all_logits, all_logprobs = (np.empty((len(rows), self._nothing.shape[1]), np.float32) for _ in range(2))
            binding = self._bind(num_rows, top_k, rows, all_logits, all_logprobs)
        else:
            if (num_rows, top_k) not in self._bindings:
                self._bindings[num_rows, top_k] = self._bind(num_rows, top_k, self._no_rows, all_logits, all_logprobs)
            binding = self._bindings[num_rows, top_k]
        self._decoder.run_with_iobinding(binding)
        score_logprobs = self._score_logprobs[:num_rows, 0]
        return StepOutput(ids[:num_rows], logprobs[:num_rows], score_logprobs, all_logits, all_logprobs)

    def _top_arrays(self, top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if top_k not in self._top:
            shape = (self.max_rows, top_k)
            self._top[top_k] = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        return self._top[top_k]

    def _bind(
        self,
        num_rows: int,
        top_k: int,
        all_rows: NDArray[np.int64],
        all_logits: NDArray[np.float32],
        all_logprobs: NDArray[np.float32],
    ) -> ort.IOBinding:
        binding = self._decoder.io_binding()
        ids, logprobs = self._top_arrays(top_k)
        by_row: tuple[tuple[Any, dict[str, NDArray[Any]]], ...] = (
            (binding.bind_input, {**self._inputs, **self._pool}),
            (
                binding.bind_output,
                {
                    "top_ids": ids,
                    "top_logprobs": logprobs,
                    "score_logprobs": self._score_logprobs,
                    **{present(name): array for name, array in self._pool.items()},
                },
            ),
        )
        for bind, arrays in by_row:
            for name, array in arrays.items():
                _bind_array(bind, name, array[:num_rows])
        binding.bind_cpu_input("top_k", np.array([top_k], np.int64))
        _bind_array(binding.bind_input, "all_rows", all_rows)
        _bind_array(binding.bind_output, "all_logits", all_logits)
        _bind_array(binding.bind_output, "all_logprobs", all_logprobs)
        return binding

    def move_rows(self, moves: Sequence[Move]) -> None:
        lengths, positions = self._inputs["source_lengths"], self._inputs["position_ids"]
        state = self._manifest.state
        for source, target, is_sibling in moves:
            source_length, num_positions = lengths[source], positions[source] + 1
            lengths[target], positions[target] = source_length, positions[source]
            for name in state.self_kv:
                pool = self._pool[name]
                pool[target, :, :num_positions] = pool[source, :, :num_positions]
            if is_sibling:
                continue
            self._last_cross_kv[target] = self._last_cross_kv[source]
            for name in state.cross_kv:
                pool = self._pool[name]
                pool[target, :, :source_length] = pool[source, :, :source_length]


def _bind_array(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Binds memory that stays where it is for as long as the binding is used."""
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def present(name: str) -> str:
    """The graph output that continues a state input, in Hugging Face optimum's naming."""
    return name.replace("past_key_values.", "present.")


def open_session(path: Path, num_threads: int, *, saves_memory: bool = False) -> ort.InferenceSession:
    """Opens a graph; with `saves_memory` a run takes as little as it can, in place of as little time.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    options = ort.SessionOptions()
    if saves_memory:
        options.enable_mem_pattern = False
        # Uses a tensor up as soon as it is there. By default outputs of the graph come last, with all that they need.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A session's threads look out for more work for a while. After a run they must not: the encoder's would take the
    # processors away from the decoder's, and both from the Python between the steps.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what is not fatal comes as an exception
    if not _has_vnni():
        # Without VNNI instructions the fast int8 kernels add pairs of products in 16 bits, which can overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{path} cannot be loaded: {error}") from error


def _has_vnni() -> bool:
    cpu_info = Path("/proc/cpuinfo")
    return cpu_info.exists() and "vnni" in cpu_info.read_text()
