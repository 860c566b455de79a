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


# Of the input of each linear map, and, under the model itself, of the output projection.
Ranges = Mapping[nn.Module, Range]


def quantize_columns(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per column: matrix[k, n] is about quantized[k, n] * scales[n]."""
    scales = np.maximum(np.abs(matrix).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(matrix / scales).clip(-127, 127).astype(np.int8), scales
