"""The model behind two verbs, `encode` and `decode_step`, on ONNX Runtime; owns the sessions and the KV pool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import DECODER_STEP_FILE, ENCODER_FILE, Bundle
from dragoman_server.engine.slots import Move
from dragoman_server.errors import BundleError


class StepOutput(NamedTuple):
    """Views that the next step overwrites. Natural logarithms."""

    top_ids: NDArray[np.int64]  # [rows, k], the most probable tokens of each row, best first
    top_logprobs: NDArray[np.float32]  # [rows, k]
    score_logprobs: NDArray[np.float32]  # [rows], log-probs of the `score_ids` that were asked about


class Runner(Protocol):
    """What the engine needs of a model. Rows are rows of the KV pool; live rows are 0..n-1."""

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        """Encodes a batch into consecutive rows from `first_row` on, which start decoding afresh."""

    def decode_step(
        self, token_ids: Sequence[int], positions: Sequence[int], score_ids: Sequence[int] | None = None
    ) -> StepOutput:
        """Feeds row i the token `token_ids[i]` at its position `positions[i]` (0 for the first)."""

    def move_rows(self, moves: Sequence[Move]) -> None:
        """Copies rows, with everything that was encoded and decoded in them so far."""


class OnnxRunner:
    """Decodes on the CPU. Not thread-safe: the engine thread is the only one to call it.

    The pool has one array [max_rows, heads, capacity, head size] per state tensor. A step binds the first n rows of
    each as input and, at the same address, as output; one binding per n is kept, so that a step allocates nothing.
    Pages of the pool take up memory only once they have been written to.
    """

    def __init__(self, bundle: Bundle, max_rows: int, num_threads: int, top_k: int = 1) -> None:
        """Raises BundleError when ONNX Runtime cannot load the graphs or they are not what the manifest says."""
        manifest = bundle.manifest
        self.pad_token_id = manifest.pad_token_id
        self._encoder = open_session(bundle.folder / ENCODER_FILE, num_threads)
        self._decoder = open_session(bundle.folder / DECODER_STEP_FILE, num_threads)
        self._bindings: dict[int, ort.IOBinding] = {}

        self._encoder_outputs = tuple(present(name) for name in manifest.state.cross_kv)
        heads, d_head, limits = manifest.architecture.num_heads, manifest.architecture.d_head, manifest.limits
        shapes = dict.fromkeys(manifest.state.self_kv, (max_rows, heads, limits.max_target_tokens, d_head))
        shapes |= dict.fromkeys(manifest.state.cross_kv, (max_rows, heads, limits.max_source_tokens, d_head))
        self._pool = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self._self_pool = tuple(self._pool[name] for name in manifest.state.self_kv)
        self._cross_pool = tuple(self._pool[name] for name in manifest.state.cross_kv)
        self._source_lengths = np.ones(max_rows, np.int32)
        self._input_ids = np.zeros(max_rows, np.int64)
        self._position_ids = np.zeros(max_rows, np.int64)
        self._score_ids = np.zeros((max_rows, 1), np.int64)
        self._top_k = np.array([top_k], np.int64)
        self._inputs: dict[str, NDArray[Any]] = {
            "input_ids": self._input_ids,
            "position_ids": self._position_ids,
            "source_lengths": self._source_lengths,
            "score_ids": self._score_ids,
            **self._pool,
        }
        self._top_ids = np.zeros((max_rows, top_k), np.int64)
        self._top_logprobs = np.zeros((max_rows, top_k), np.float32)
        self._score_logprobs = np.zeros((max_rows, 1), np.float32)
        self._outputs: dict[str, NDArray[Any]] = {
            "top_ids": self._top_ids,
            "top_logprobs": self._top_logprobs,
            "score_logprobs": self._score_logprobs,
            **{present(name): array for name, array in self._pool.items()},
        }
        self._check_graphs(bundle.folder)

    def _check_graphs(self, folder: Path) -> None:
        expected = {DECODER_STEP_FILE: {*self._inputs, "top_k"}, ENCODER_FILE: {"input_ids", "attention_mask"}}
        for file, session in ((DECODER_STEP_FILE, self._decoder), (ENCODER_FILE, self._encoder)):
            inputs = {argument.name for argument in session.get_inputs()}
            if inputs != expected[file]:
                raise BundleError(f"{folder / file} has inputs {sorted(inputs)}, not {sorted(expected[file])}")
        outputs = {argument.name for argument in self._decoder.get_outputs()}
        if outputs != self._outputs.keys():
            raise BundleError(
                f"{folder / DECODER_STEP_FILE} has outputs {sorted(outputs)}, not {sorted(self._outputs)}"
            )

    @property
    def kv_bytes(self) -> int:
        """Size of the pool."""
        return sum(pool.nbytes for pool in self._pool.values())

    @property
    def kv_bytes_per_token(self) -> int:
        """What one source or target token takes up in the pool."""
        return sum(pool[0, :, 0].nbytes for pool in self._self_pool)

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        lengths = [len(source) for source in sources]
        input_ids = np.full((len(sources), max(lengths)), self.pad_token_id, np.int64)
        attention_mask = np.zeros(input_ids.shape, np.int32)
        for row, source in enumerate(sources):
            input_ids[row, : len(source)] = source
            attention_mask[row, : len(source)] = 1
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        key_values = self._encoder.run(self._encoder_outputs, feeds)
        rows = slice(first_row, first_row + len(sources))
        self._source_lengths[rows] = lengths
        self._position_ids[rows] = 0
        for pool, key_value in zip(self._cross_pool, key_values, strict=True):
            pool[rows, :, : max(lengths)] = key_value

    def decode_step(
        self, token_ids: Sequence[int], positions: Sequence[int], score_ids: Sequence[int] | None = None
    ) -> StepOutput:
        num_rows = len(token_ids)
        self._input_ids[:num_rows] = token_ids
        self._position_ids[:num_rows] = positions
        if score_ids is not None:
            self._score_ids[:num_rows, 0] = score_ids
        if num_rows not in self._bindings:
            self._bindings[num_rows] = self._bind(num_rows)
        self._decoder.run_with_iobinding(self._bindings[num_rows])
        return StepOutput(self._top_ids[:num_rows], self._top_logprobs[:num_rows], self._score_logprobs[:num_rows, 0])

    def _bind(self, num_rows: int) -> ort.IOBinding:
        binding = self._decoder.io_binding()
        for arrays, bind in ((self._inputs, binding.bind_input), (self._outputs, binding.bind_output)):
            for name, array in arrays.items():
                view = array[:num_rows]
                bind(name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        binding.bind_input("top_k", "cpu", 0, np.int64, (1,), self._top_k.ctypes.data)
        return binding

    def move_rows(self, moves: Sequence[Move]) -> None:
        for source, target in moves:
            source_length, num_positions = self._source_lengths[source], self._position_ids[source] + 1
            self._source_lengths[target] = source_length
            self._position_ids[target] = num_positions - 1
            for pool in self._self_pool:
                pool[target, :, :num_positions] = pool[source, :, :num_positions]
            for pool in self._cross_pool:
                pool[target, :, :source_length] = pool[source, :, :source_length]


def present(name: str) -> str:
    """The graph output that continues a state input, in Hugging Face optimum's naming."""
    return name.replace("past_key_values.", "present.")


def open_session(path: Path, num_threads: int) -> ort.InferenceSession:
    """Raises BundleError when ONNX Runtime refuses the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
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
