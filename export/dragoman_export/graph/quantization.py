"""The numbers of int8 graphs: weight scales by column, and calibrated ranges of activations."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Range(NamedTuple):
    """The smallest and the largest value seen, zero among them."""

    low: float
    high: float

    def including(self, values: Tensor) -> "Range":
        return Range(min(self.low, values.min().item()), max(self.high, values.max().item()))


# The largest value of a column that has none, which must not divide by zero.
_SMALLEST = np.float32(1e-12)
_COLUMNS = 4096  # quantised at a time

# Of the input of each linear map, and, under the model itself, of the output projection.
Ranges = Mapping[nn.Module, Range]


def quantize_columns(matrix: NDArray[np.float32], num_zeros: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per column: matrix[k, n] is about quantized[k, n] * scales[n].

    Args:
        matrix: of floats.
        num_zeros: columns of zeros that the results have beyond those of the matrix.
    """
    num_rows, num_columns = matrix.shape
    quantized = np.zeros((num_rows, num_columns + num_zeros), np.int8)
    scales = np.full(num_columns + num_zeros, _SMALLEST, np.float32)
    for begin in range(0, num_columns, _COLUMNS):  # whole tables of floats would take a multiple of the model's memory
        columns = slice(begin, min(begin + _COLUMNS, num_columns))
        part = matrix[:, columns]
        scales[columns] = np.maximum(np.abs(part).max(axis=0), _SMALLEST)
        quantized[:, columns] = np.rint(part / (scales[columns] / np.float32(127))).clip(-127, 127)
    scales /= np.float32(127)
    return quantized, scales
