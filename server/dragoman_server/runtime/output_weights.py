"""The weights of the output projection, from which those of a list of tokens are taken."""

import threading
from collections.abc import Collection, Iterable, Sequence
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
from dragoman_server.runtime.session import open_session, sums_int8_exactly

_PROJECTION = "projection.onnx"
INT8_EMBEDDINGS = ("shared_embedding.weight_int8", "target_embedding.weight_int8")  # which may be the output's, too
# From this share of the vocabulary on, all of it is computed: its weights are packed once, those of lists at each step.
_WIDE_SHARE = 0.4
_LISTS_STEP = 512  # tokens by which the room of a union grows
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
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    _transpose(matrix, result)
    return result


def _transpose(matrix: NDArray[np.generic], result: NDArray[np.generic]) -> None:
    """As `result[:] = matrix.T`, in a tenth of the time: cache line by cache line."""
    for begin in range(0, len(matrix), _LINE):
        result[:, begin : begin + _LINE] = matrix[begin : begin + _LINE].T


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


class CandidateUnion:
    """The weights of all tokens that any row of a lane may have, and where each row's own are among them.

    A row's numbers do not depend on the union: a product of int8 is exact, one of floats has the same order of
    summation in every column, and softmax sees the row's own tokens alone, in their own order, and behind them zeros.

    Attributes:
        weight: [room, D] floats, or int8 [D, room].
        scale: [room], of int8 weights; else None.
        bias: [room]; -inf where no token is, as in the first place.
        places: int32 [rows, n], of each row's tokens in the union; the first place behind them.
        ids: int32 [rows, n], the tokens; -1 behind them.
        is_wide: whether the whole vocabulary is computed: its weights are in the session, which is faster where the
            tokens are many, and exact for int8 on all processors. Floats would be added up in another order.
    """

    def __init__(self, weights: OutputWeights) -> None:
        self._weights = weights
        self._sums_lists_exactly = sums_int8_exactly()
        self._place_of = np.zeros(len(weights.bias), np.int32)  # by token; 0 is none
        self._used = np.zeros(0, np.int32)  # tokens of the places from 1 on
        self._rows: list[Candidates] = []
        self._places_of: dict[Candidates, NDArray[np.int32]] = {}
        self._make_room(0)
        self.places = np.zeros((0, VOCABULARY_BLOCK), np.int32)
        self.ids = np.zeros((0, VOCABULARY_BLOCK), np.int32)
        self.is_wide = False

    def update(self, rows: Sequence[Candidates]) -> None:
        """Follows the rows; does nothing where they are those of the step before."""
        if list(rows) == self._rows:
            return
        self._rows = list(rows)
        distinct = dict.fromkeys(rows)
        width = -(-max(len(c.ids) for c in distinct) // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
        self.ids = np.full((len(rows), width), -1, np.int32)
        for row, candidates in enumerate(rows):
            self.ids[row, : len(candidates.ids)] = candidates.ids
        self.is_wide = self.scale is not None and (
            not self._sums_lists_exactly or self._num_tokens(distinct) > _WIDE_SHARE * len(self._place_of)
        )
        if not self.is_wide:
            self._find_places(distinct)

    def _num_tokens(self, distinct: Iterable[Candidates]) -> int:
        is_token = np.zeros(len(self._place_of), np.bool_)
        for candidates in distinct:
            is_token[candidates.ids] = True
        return int(np.count_nonzero(is_token))

    def _find_places(self, distinct: Collection[Candidates]) -> None:
        self._places_of = {c: places for c, places in self._places_of.items() if c in distinct}
        new = [candidates for candidates in distinct if candidates not in self._places_of]
        missing = self._missing(new)
        if 1 + len(self._used) + len(missing) > len(self.bias):
            # Tokens of rows that have left go first.
            self._place_of[self._used] = 0
            self._places_of = {}
            new, missing = list(distinct), np.unique(np.concatenate([c.ids for c in distinct]))
            self._used = missing[:0]
            self._make_room(1 + len(missing))
        self._add(missing)
        for candidates in new:
            self._places_of[candidates] = self._place_of[candidates.ids]
        self.places = np.zeros(self.ids.shape, np.int32)
        for row, candidates in enumerate(self._rows):
            self.places[row, : len(candidates.ids)] = self._places_of[candidates]

    def _missing(self, new: Sequence[Candidates]) -> NDArray[np.int32]:
        found = [c.ids[self._place_of[c.ids] == 0] for c in new]
        return np.unique(np.concatenate(found)) if found else self._used[:0]

    def _make_room(self, num_places: int) -> None:
        room = -(-max(num_places, 1) // _LISTS_STEP) * _LISTS_STEP
        rows, scale = self._weights.rows, self._weights.scale
        shape = (room, rows.shape[1]) if scale is None else (rows.shape[1], room)
        self.weight: NDArray[np.generic] = np.zeros(shape, rows.dtype)
        self.scale = None if scale is None else np.zeros(room, np.float32)
        self.bias = np.full(room, -np.inf, np.float32)

    def _add(self, ids: NDArray[np.int32]) -> None:
        if not len(ids):
            return
        begin = 1 + len(self._used)
        places = slice(begin, begin + len(ids))
        taken = self._weights.rows[ids]
        if self.scale is None or self._weights.scale is None:
            self.weight[places] = taken
        else:
            _transpose(taken, self.weight[:, places])
            self.scale[places] = self._weights.scale[ids]
        self.bias[places] = self._weights.bias[ids]
        self._place_of[ids] = np.arange(begin, begin + len(ids), dtype=np.int32)
        self._used = np.concatenate([self._used, ids])


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
        contents = self._contents._replace(graphs={_PROJECTION: model.SerializeToString()}, weights=arrays)
        return open_session(contents, _PROJECTION, self._num_threads, has_few_shapes=True)
