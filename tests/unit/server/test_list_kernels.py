"""The compiled products with lists of tokens in each of their variants, against NumPy."""

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.kernels import call, variants

Floats = NDArray[np.float32]

_size, _pointer = ctypes.c_size_t, ctypes.c_void_p


class ListProductArguments(ctypes.Structure):
    """`ListProduct` of kernels.h."""

    _fields_ = (
        *((name, _pointer) for name in ("states", "quantised", "scales")),
        ("is_scaled_by_row", ctypes.c_bool),
        ("zero", ctypes.c_uint8),
        *((name, _pointer) for name in ("float_weights", "int8_weights", "weight_scales", "bias")),
        ("rows", _size),
        ("width", _size),
        ("ids", _pointer),
        ("count", _size),
        ("logits", _pointer),
    )


@pytest.fixture(scope="module", params=variants())
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
            *states.shape,
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
