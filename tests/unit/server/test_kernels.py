"""The compiled kernels in each of their variants, against NumPy."""

import ctypes
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dragoman_server.kernels import LIBRARY

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


class ListProductArguments(ctypes.Structure):
    """`ListProduct` of kernels.h."""

    _fields_ = (
        *((name, _pointer) for name in ("states", "quantised", "scales")),
        ("is_scaled_by_row", ctypes.c_bool),
        ("zero", ctypes.c_uint8),
        *((name, _pointer) for name in ("float_weights", "int8_weights", "weight_scales", "bias")),
        ("width", _size),
        ("ids", _pointer),
        ("count", _size),
        ("logits", _pointer),
    )


class LogProbsArguments(ctypes.Structure):
    """`LogProbs` of kernels.h."""

    _fields_ = (("logits", _pointer), ("size", _size), ("logprobs", _pointer))


def variants() -> list[str]:
    """Those that this machine can run."""
    if platform.machine() != "x86_64":
        return ["base"]
    flags = Path("/proc/cpuinfo").read_text().split()
    needed = {"sse2": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}
    return [name for name, features in needed.items() if features <= set(flags)]


@pytest.fixture(scope="module", params=variants())
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(kernel: str, variant: str, arguments: ctypes.Structure, first: int, end: int) -> None:
    function = getattr(ctypes.CDLL(str(LIBRARY)), f"{kernel}_{variant}")
    function.argtypes, function.restype = [_pointer, _size, _size], None
    function(ctypes.byref(arguments), first, end)


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


# -- lists of tokens ---------------------------------------------------------------------------------------------------


class ListCase:
    """Three rows of states, and lists of some of 300 tokens, of which the second is half as long."""

    def __init__(self, width: int, count: int, is_int8: bool) -> None:
        rng = np.random.default_rng(width + count)
        self.ids = np.sort(rng.integers(0, 300, (3, count), np.int32), axis=1)
        self.ids[1, count // 2 :] = -1
        self.bias = rng.normal(0, 1, 300).astype(np.float32)
        self.weight_scales = rng.uniform(0.001, 0.01, 300).astype(np.float32)
        self.zero = 117 if is_int8 else 0
        self.states: NDArray[Any]
        self.weights: NDArray[Any]
        if is_int8:
            self.states = rng.integers(0, 256, (3, width), np.uint8)
            self.weights = rng.integers(-127, 128, (300, width), np.int8)
            # The largest sums that there are.
            self.states[0], self.weights[self.ids[0, 0]] = 255, -127
        else:
            self.states, self.weights = (rng.normal(0, 1, (n, width)).astype(np.float32) for n in (3, 300))

    def run(self, variant: str, scales: Floats, row: int | None = None) -> Floats:
        rows = slice(None) if row is None else slice(row, row + 1)
        states, ids = np.ascontiguousarray(self.states[rows]), np.ascontiguousarray(self.ids[rows])
        scales = np.ascontiguousarray(scales[rows]) if len(scales) > 1 else scales
        logits = np.zeros(ids.shape, np.float32)
        is_int8 = states.dtype == np.uint8
        of_kind = [states.ctypes.data, None] if not is_int8 else [None, states.ctypes.data]
        weights = [self.weights.ctypes.data, None] if not is_int8 else [None, self.weights.ctypes.data]
        arguments = ListProductArguments(
            *of_kind,
            scales.ctypes.data,
            len(scales) > 1,
            self.zero,
            *weights,
            self.weight_scales.ctypes.data,
            self.bias.ctypes.data,
            states.shape[1],
            ids.ctypes.data,
            ids.shape[1],
            logits.ctypes.data,
        )
        call("list_product", variant, arguments, 0, len(ids) * -(-ids.shape[1] // 64))
        return logits

    def expected(self, scales: Floats) -> NDArray[np.float64]:
        states, weights = self.states.astype(np.float64) - self.zero, self.weights.astype(np.float64)
        if self.states.dtype == np.uint8:
            states, weights = states * scales[:, None], weights * self.weight_scales[:, None]
        found = np.take_along_axis(states @ weights.T + self.bias, np.maximum(self.ids, 0), axis=1)
        return np.where(self.ids < 0, -np.inf, found)


@pytest.mark.parametrize("width", [1, 16, 30, 64, 512])
@pytest.mark.parametrize("count", [1, 5, 64, 201])
@pytest.mark.parametrize("is_int8", [False, True])
def test_products_with_lists_are_those_of_numpy(variant: str, width: int, count: int, is_int8: bool) -> None:
    case = ListCase(width, count, is_int8)
    for scales in (np.array([0.013], np.float32), np.array([0.013, 0.5, 2.0], np.float32)):
        found = case.run(variant, scales)
        np.testing.assert_allclose(found, case.expected(scales), rtol=2e-5, atol=2e-4)
        for row in range(3):  # alone: the same bits
            assert case.run(variant, scales, row).tobytes() == found[row].tobytes()


def test_sums_of_integers_are_exact(variant: str) -> None:
    case, one = ListCase(512, 201, is_int8=True), np.ones(1, np.float32)
    case.bias[:], case.weight_scales[:] = 0.0, 1.0
    assert case.run(variant, one).tolist() == case.expected(one).tolist()
    assert case.run(variant, one)[0, 0] == 512 * (255 - 117) * -127


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
