"""The weights of the output projection, from which those of a list of tokens are taken."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.graph import Model
from dragoman_server.bundle.graph_rules import VOCABULARY_BLOCK
from dragoman_server.engine.candidates import Candidates
from dragoman_server.runtime.list_graphs import BIAS, StepParts
from dragoman_server.runtime.packed_products import with_packed_products
from dragoman_server.runtime.session import open_session

_PROJECTION = "projection.onnx"
INT8_EMBEDDINGS = ("shared_embedding.weight_int8", "target_embedding.weight_int8")  # which may be the output's, too
_COMPARED_ROWS = 4096  # at a time
_LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class OutputWeights:
    """The whole vocabulary's.

    Attributes:
        rows: [V, D] or longer, floats or int8: one behind the other in memory, to read those of a list at once.
        scale: [V'] of int8 weights; else None.
        bias: [V'], zeros where the model has none; -inf where there is no token.
    """

    rows: NDArray[np.generic]
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, parts: StepParts, contents: Contents, vocabulary_size: int) -> "OutputWeights":
        """Those of a bundle: in the memory of its embeddings, where these are the same numbers, as mostly."""
        weight = contents.weights[parts.weight]
        scale = contents.weights[parts.scale] if parts.scale else None
        rows = weight if scale is None else _rows_of(weight, contents)
        bias = np.zeros(weight.shape[0 if scale is None else 1], np.float32)
        if parts.bias:
            bias[:] = contents.weights[parts.bias]
        bias[vocabulary_size:] = -np.inf
        return cls(rows, scale, bias)


def _rows_of(columns: NDArray[np.generic], contents: Contents) -> NDArray[np.generic]:
    """Columns [D, V'] as rows [V, D]."""
    for name in INT8_EMBEDDINGS:
        rows = contents.weights.get(name)
        if rows is not None and rows.shape[1] == len(columns) and rows.shape[0] <= columns.shape[1]:
            blocks = range(0, len(rows), _COMPARED_ROWS)
            if all(
                np.array_equal(rows[b : b + _COMPARED_ROWS], columns[:, b : b + _COMPARED_ROWS].T[: len(rows) - b])
                for b in blocks
            ):
                return rows
    return _transposed(columns)


def _transposed(matrix: NDArray[np.generic]) -> NDArray[np.generic]:
    """As `matrix.T.copy()`, in a tenth of the time: cache line by cache line."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for begin in range(0, len(matrix), _LINE):
        result[:, begin : begin + _LINE] = matrix[begin : begin + _LINE].T
    return result


def _rows_padded(rows: NDArray[np.generic], ids: NDArray[np.int32], size: int) -> NDArray[np.generic]:
    """Some rows [size, D], zeros behind them; without a second copy, which could have hundreds of megabytes."""
    result = np.zeros((size, rows.shape[1]), rows.dtype)
    np.take(rows, ids, axis=0, out=result[: len(ids)], mode="clip")  # by default NumPy would fill another array first
    return result


def _columns_padded(rows: NDArray[np.generic], ids: NDArray[np.int32], size: int) -> NDArray[np.generic]:
    """As `_rows_padded`, as columns [D, size]."""
    result = np.zeros((rows.shape[1], size), rows.dtype)
    for begin in range(0, len(ids), _LINE):
        some = ids[begin : begin + _LINE]
        result[:, begin : begin + len(some)] = rows[some].T
    return result


class Lists:
    """The tokens of rows, one behind the other, for a step.

    Whole blocks of them: what stands behind a row's own, -1, changes no bit of its numbers.
    """

    def __init__(self) -> None:
        self._rows: list[Candidates] = []
        self._ids = np.zeros((0, VOCABULARY_BLOCK), np.int32)

    def of(self, rows: Sequence[Candidates]) -> NDArray[np.int32]:
        """int32 [rows, n]; the same array where they are those of the step before."""
        if list(rows) != self._rows:
            width = -(-max(len(candidates.ids) for candidates in rows) // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
            self._ids = np.full((len(rows), width), -1, np.int32)
            for ids, candidates in zip(self._ids, rows, strict=True):
                ids[: len(candidates.ids)] = candidates.ids
            self._rows = list(rows)
        return self._ids


class LanguageSessions:
    """Projections with the weights of lists that many requests share, for all lanes. Thread-safe.

    A session lives as long as the object of its list: requests that have the list keep it.
    """

    def __init__(self, parts: StepParts, weights: OutputWeights, contents: Contents, num_threads: int) -> None:
        self._parts, self._weights, self._contents = parts, weights, contents
        self._num_threads = num_threads
        self._opening = threading.Lock()
        self._sessions: WeakKeyDictionary[Candidates, ort.InferenceSession] = WeakKeyDictionary()

    def __contains__(self, candidates: Candidates) -> bool:
        """Whether the session of a list is open."""
        return candidates in self._sessions

    def of(self, candidates: Candidates) -> ort.InferenceSession:
        """The session of a list, opened if it is not, one after the other; nobody waits for that of another list."""
        session = self._sessions.get(candidates)
        if session is None:
            with self._opening:
                session = self._sessions.get(candidates)
                if session is None:
                    session = self._sessions[candidates] = self._open(candidates)
        return session

    def _open(self, candidates: Candidates) -> ort.InferenceSession:
        weights, ids = self._weights, candidates.ids
        padding = -len(ids) % VOCABULARY_BLOCK
        take = _rows_padded if weights.scale is None else _columns_padded
        arrays = {self._parts.weight: take(weights.rows, ids, len(ids) + padding)}
        if weights.scale is not None:
            arrays[self._parts.scale] = np.pad(weights.scale[ids], (0, padding))
        arrays[BIAS] = np.pad(weights.bias[ids], (0, padding), constant_values=-np.inf)
        model = Model.FromString(self._parts.projection)
        for tensor in model.graph.initializer:
            if tensor.name in arrays:
                del tensor.dims[:]
                tensor.dims.extend(arrays[tensor.name].shape)
        contents = self._contents._replace(graphs={_PROJECTION: model.SerializeToString()}, weights=arrays, packed={})
        contents = with_packed_products(contents)
        return open_session(contents, _PROJECTION, self._num_threads, has_few_shapes=True)
