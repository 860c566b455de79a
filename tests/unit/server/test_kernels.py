"""The compiled kernels in each of their variants, against NumPy."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from support.kernels import call, variants

Floats = NDArray[np.float32]

_size, _pointer = ctypes.c_size_t, ctypes.c_void_p


class AttentionArguments(ctypes.Structure):
    """`Attention` of kernels.h."""

    _fields_ = (
        ("queries", _pointer),
        ("row_width", _size),
        ("appends", ctypes.c_bool),
        ("is_int8", ctypes.c_bool),
        ("keys", _pointer),
        ("values", _pointer),
        ("last", _pointer),
        ("bias", _pointer),
        ("bias_row", _size),
        ("bias_head", _size),
        ("out", _pointer),
        ("quantised", _pointer),
        ("inverse_scale", ctypes.c_float),
        ("zero", ctypes.c_float),
        ("heads", _size),
        ("capacity", _size),
        ("width", _size),
        ("scale", ctypes.c_float),
    )


class BestArguments(ctypes.Structure):
    """`Best` of kernels.h."""

    _fields_ = (
        ("logits", _pointer),
        ("size", _size),
        ("count", _size),
        ("score_ids", _pointer),
        ("ids", _pointer),
        ("logprobs", _pointer),
        ("score_logprobs", _pointer),
    )


class NormArguments(ctypes.Structure):
    """`Norm` of kernels.h."""

    _fields_ = (
        *((name, _pointer) for name in ("left", "right", "weight", "bias", "sums", "normed", "quantised")),
        ("width", _size),
        ("is_centred", ctypes.c_bool),
        *((name, ctypes.c_float) for name in ("epsilon", "inverse_scale", "zero")),
    )


class ActivateArguments(ctypes.Structure):
    """`Activate` of kernels.h."""

    _fields_ = (
        ("numbers", _pointer),
        ("out", _pointer),
        ("is_silu", ctypes.c_bool),
        ("inverse_scale", ctypes.c_float),
        ("zero", ctypes.c_float),
    )


class LogProbsArguments(ctypes.Structure):
    """`LogProbs` of kernels.h."""

    _fields_ = (("logits", _pointer), ("size", _size), ("logprobs", _pointer))


@pytest.fixture(scope="module", params=variants())
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- attention ---------------------------------------------------------------------------------------------------------


class Case:
    """Random queries, keys and values of some rows, of which each has a last position of its own."""

    def __init__(self, lasts: Sequence[int], heads: int, width: int, dtype: type[np.generic], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.heads, self.width, self.capacity = heads, width, max(lasts) + 3
        self.last = np.array(lasts, np.int32)
        shape = (len(lasts), heads, self.capacity, width)
        if dtype is np.int8:
            self.keys, self.values = (rng.integers(-128, 128, shape, np.int8) for _ in range(2))
            self.queries = rng.normal(0, 0.01, (len(lasts), 3, heads, width)).astype(np.float32)
            self.queries[:, 1:] *= 10_000
        else:
            self.keys, self.values = (rng.normal(0, 1, shape).astype(np.float32) for _ in range(2))
            self.queries = rng.normal(0, 1, (len(lasts), 3, heads, width)).astype(np.float32)
        self.bias = rng.normal(0, 1, (len(lasts), heads, self.capacity)).astype(np.float32)

    def run(
        self,
        variant: str,
        *,
        appends: bool = False,
        has_bias: bool = False,
        rows: slice = slice(None),
        scale: float = 0.0,
        zero: int = 0,
    ) -> NDArray[Any]:
        """[rows, heads, width]; as integers if there is a scale."""
        queries, last, bias = self.queries[rows], self.last[rows], self.bias[rows]
        queries = np.ascontiguousarray(queries if appends else queries[:, :1])
        self.pools = [np.ascontiguousarray(pool[rows]) for pool in (self.keys, self.values)]
        out: NDArray[Any] = np.full((len(last), self.heads, self.width), 77, np.uint8 if scale else np.float32)
        arguments = AttentionArguments(
            queries.ctypes.data,
            queries[0].size,
            appends,
            self.keys.dtype == np.int8,
            *(pool.ctypes.data for pool in self.pools),
            last.ctypes.data,
            bias.ctypes.data if has_bias else None,
            bias[0].size,
            self.capacity,
            None if scale else out.ctypes.data,
            out.ctypes.data if scale else None,
            1 / scale if scale else 0.0,
            zero,
            self.heads,
            self.capacity,
            self.width,
            self.width**-0.5,
        )
        call("attend", variant, arguments, 0, len(last) * self.heads)
        return out

    def expected(self, *, appends: bool = False, has_bias: bool = False) -> NDArray[np.float64]:
        keys, values = (pool.astype(np.float64) for pool in (self.keys, self.values))
        rows = np.arange(len(self.last))
        if appends:
            new = self.queries[:, 1:].astype(np.float64)
            if self.keys.dtype == np.int8:
                new = np.clip(np.rint(new), -128, 127)
            keys[rows, :, self.last], values[rows, :, self.last] = new[:, 0], new[:, 1]
        scores = np.einsum("bhw,bhpw->bhp", self.queries[:, 0], keys) * self.width**-0.5
        if has_bias:
            scores += self.bias
        scores[np.broadcast_to(np.arange(self.capacity) > self.last[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed: NDArray[np.float64] = np.einsum("bhp,bhpw->bhw", weights / weights.sum(-1, keepdims=True), values)
        return mixed


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("width", [16, 32, 64, 80, 128])
@pytest.mark.parametrize("appends", [False, True])
def test_attention_is_that_of_numpy(variant: str, width: int, dtype: type[np.generic], appends: bool) -> None:
    case = Case([0, 3, 15, 16, 17, 40], 3, width, dtype)
    tolerance = 1e-3 if dtype is np.int8 else 1e-5
    for has_bias in (False, True):
        found = case.run(variant, appends=appends, has_bias=has_bias)
        assert np.abs(found - case.expected(appends=appends, has_bias=has_bias)).max() < tolerance


@given(lasts=st.lists(st.integers(0, 70), min_size=1, max_size=6), seed=st.integers(0, 9), appends=st.booleans())
def test_a_row_has_the_same_bits_alone_and_with_anything_behind_its_last_position(
    variant: str, lasts: list[int], seed: int, appends: bool
) -> None:
    case = Case(lasts, 2, 32, np.float32, seed)
    together = case.run(variant, appends=appends)
    for pool in (case.keys, case.values):
        pool[np.broadcast_to(np.arange(case.capacity)[:, None] > case.last[:, None, None, None], pool.shape)] = np.nan
    for row in range(len(lasts)):
        assert case.run(variant, appends=appends, rows=slice(row, row + 1)).tobytes() == together[row].tobytes()


def test_what_is_appended_is_rounded_to_even_and_kept_within_bounds(variant: str) -> None:
    case = Case([2], 1, 16, np.int8)
    case.queries[0, 1, 0] = [0.5, 1.5, -0.5, -1.5, 126.6, 127.4, 127.6, 1e9, -127.5, -128.4, -128.6, -1e9, 0, 1, 2, 3]
    case.run(variant, appends=True)
    keys = case.pools[0]
    assert keys[0, 0, 2].tolist() == [0, 2, 0, -2, 127, 127, 127, 127, -128, -128, -128, -128, 0, 1, 2, 3]
    assert (keys[0, 0, [0, 1, 3, 4]] == case.keys[0, 0, [0, 1, 3, 4]]).all()


def test_no_number_stays_none(variant: str) -> None:
    case = Case([20, 20], 2, 16, np.float32)
    case.keys[1, 1, 5, 3] = np.nan
    found = case.run(variant)
    assert np.isnan(found[1, 1]).all()
    assert np.isfinite(found[0]).all()
    assert np.isfinite(found[1, 0]).all()


# -- norms and nonlinearities, as integers -----------------------------------------------------------------------------


def quantised(values: NDArray[np.float64], scale: float, zero: int) -> NDArray[np.float64]:
    """As numbers, not rounded: whoever rounds may do so either way at a half."""
    return np.clip(values / scale + zero, 0, 255)


@pytest.mark.parametrize("width", [16, 48, 512])
@pytest.mark.parametrize("has_right", [False, True])
@pytest.mark.parametrize("is_centred", [False, True])
def test_norms_are_those_of_numpy(variant: str, width: int, has_right: bool, is_centred: bool) -> None:
    rng = np.random.default_rng(width)
    left, right = rng.normal(1, 3, (2, 5, width)).astype(np.float32)
    weight, bias = rng.normal(1, 0.1, (2, width)).astype(np.float32)
    found: list[Floats] = [np.zeros_like(left) for _ in range(2)]
    integers = np.zeros(left.shape, np.uint8)
    arrays = [left, right if has_right else None, weight, bias if is_centred else None, *found, integers]
    pointers = [None if array is None else array.ctypes.data for array in arrays]
    arguments = NormArguments(*pointers, width, is_centred, 1e-5, 1 / 0.02, 120.0)
    call("norm", variant, arguments, 0, 5)
    sums, normed = found
    x = left.astype(np.float64) + (right if has_right else 0.0)
    assert np.abs(sums - x).max() < 1e-5
    centred = x - x.mean(1, keepdims=True) if is_centred else x
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + (bias if is_centred else 0.0)
    assert np.abs(normed - expected).max() < 1e-5
    assert np.abs(integers - quantised(expected, 0.02, 120)).max() < 0.501
    # Alone, and with nobody who wants the sums: the same bits.
    again = np.zeros(width, np.uint8)
    alone = [array if array is None or array.ndim == 1 else array[3] for array in arrays[:4]]
    pointers = [None if array is None else array.ctypes.data for array in (*alone, None, None, again)]
    call("norm", variant, NormArguments(*pointers, width, is_centred, 1e-5, 1 / 0.02, 120.0), 0, 1)
    assert again.tolist() == integers[3].tolist()


@pytest.mark.parametrize("is_silu", [False, True])
def test_nonlinearities_are_those_of_numpy(variant: str, is_silu: bool) -> None:
    numbers = np.linspace(-100, 100, 4096, dtype=np.float32)
    numbers[:4] = [-1e30, 1e30, -0.0, 0.0]
    out = np.zeros(4096, np.uint8)
    call("activate", variant, ActivateArguments(numbers.ctypes.data, out.ctypes.data, is_silu, 1 / 0.03, 27.0), 0, 256)
    wide = numbers.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide)) if is_silu else np.maximum(wide, 0)
    assert np.abs(out - quantised(expected, 0.03, 27)).max() < 0.501


def test_attention_gives_integers_where_they_are_wanted(variant: str) -> None:
    case = Case([5, 9], 2, 32, np.int8)
    assert np.abs(case.run(variant, scale=0.7, zero=127) - quantised(case.expected(), 0.7, 127)).max() < 0.51


# -- the best tokens ---------------------------------------------------------------------------------------------------


def best(
    variant: str, logits: Floats, count: int, score_ids: Sequence[int]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    rows, size = logits.shape
    scored = np.array(score_ids, np.int64)
    ids, logprobs = np.zeros((rows, count), np.int64), np.zeros((rows, count), np.float32)
    score_logprobs = np.zeros(rows, np.float32)
    arrays = (array.ctypes.data for array in (scored, ids, logprobs, score_logprobs))
    call("find_best", variant, BestArguments(logits.ctypes.data, size, count, *arrays), 0, rows)
    return ids, logprobs, score_logprobs


def log_probs(variant: str, logits: Floats) -> Floats:
    found = np.zeros_like(logits)
    arguments = LogProbsArguments(logits.ctypes.data, logits.shape[1], found.ctypes.data)
    call("log_probs", variant, arguments, 0, len(logits))
    return found


@pytest.mark.parametrize("size", [1, 7, 16, 63, 64, 65, 1000, 58_101])
def test_log_probs_are_those_of_numpy_and_the_best_have_the_same_bits(variant: str, size: int) -> None:
    logits = np.random.default_rng(size).normal(0, 5, (3, size)).astype(np.float32)
    wide = logits.astype(np.float64)
    expected = (
        wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True)) - wide.max(1, keepdims=True)
    )
    found = log_probs(variant, logits)
    assert np.abs(found - expected).max() < 1e-5
    count, scored = min(size, 10), [0, size // 2, size - 1]
    ids, logprobs, score_logprobs = best(variant, logits, count, scored)
    assert ids.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :count].tolist()
    assert logprobs.tobytes() == np.take_along_axis(found, ids, axis=1).tobytes()
    assert score_logprobs.tobytes() == found[[0, 1, 2], scored].tobytes()


@given(
    logits=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=200), elements=st.integers(-3, 3)),
    data=st.data(),
)
def test_of_equal_tokens_that_of_the_lower_id_is_better(variant: str, logits: Floats, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, logits.shape[1]))
    ids, _, _ = best(variant, logits, count, [0] * len(logits))
    assert ids.tolist() == np.argsort(-logits, axis=1, kind="stable")[:, :count].tolist()


def test_all_tokens_of_a_large_vocabulary_are_sorted(variant: str) -> None:
    logits = np.random.default_rng(0).integers(-9, 9, (1, 100_000)).astype(np.float32)
    ids, logprobs, _ = best(variant, logits, 100_000, [0])
    assert ids.tolist() == np.argsort(-logits, axis=1, kind="stable").tolist()
    assert (np.diff(logprobs) <= 0).all()


def test_banned_tokens_come_last_and_no_number_stays_none(variant: str) -> None:
    logits = np.zeros((3, 100), np.float32)
    logits[0, 1:] = -np.inf
    logits[1, 50] = np.nan
    ids, logprobs, _ = best(variant, logits, 3, [0, 0, 0])
    assert ids[0].tolist() == [0, 1, 2]
    assert logprobs[0].tolist() == [0.0, -np.inf, -np.inf]
    assert np.isnan(logprobs[1]).all()
    assert np.isfinite(logprobs[2]).all()
