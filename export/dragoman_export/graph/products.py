"""Weights in a graph, and the products of states with them, at every precision."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import helper
from torch import Tensor, nn

from dragoman_export.graph.builder import MICROSOFT, GraphBuilder
from dragoman_export.graph.quantization import Range, Ranges, quantize_columns
from dragoman_export.model import Transformer
from dragoman_server.bundle.manifest import Precision

# In which a bundle keeps what is not quantised.
FLOAT_TYPES: dict[Precision, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "int8": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """A weight as float32."""
    return tensor.detach().float().cpu().numpy()


def _bias_of(linear: nn.Linear) -> NDArray[np.float32]:
    return np.zeros(linear.out_features, np.float32) if linear.bias is None else to_numpy(linear.bias)


class ProductWriter:
    """Writes weights and products into one graph.

    Args:
        graph: to write into.
        model: with the weights.
        precision: of the weights, as they are stored.
        ranges: of the activations at calibrated int8, else nothing.
        computes_in: the type that the graph computes in; None is that of the weights, at int8 float32.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        model: Transformer,
        precision: Precision,
        ranges: Ranges,
        computes_in: DTypeLike | None = None,
    ) -> None:
        self.graph, self.model, self.precision, self.ranges = graph, model, precision, ranges
        self._stores = FLOAT_TYPES[precision]
        self._computes: np.dtype[Any] = self._stores if computes_in is None else np.dtype(computes_in)
        self._quantized: dict[str, tuple[str, str, str]] = {}
        self._weights: dict[str, str] = {}

    # -- constants -----------------------------------------------------------------------------------------------

    @property
    def float_type(self) -> int:
        """ONNX's number of the type that the graph computes in."""
        return int(helper.np_dtype_to_tensor_dtype(self._computes))

    def number(self, value: float) -> str:
        """A constant of the type that the graph computes in."""
        return self.graph.constant(value, self._computes.type)

    def weight(self, name: str, make: Callable[[], NDArray[np.float32]]) -> str:
        """A weight, stored at the model's precision, in the type that the graph computes in."""
        if name not in self._weights:
            weight = self.graph.weight(name, lambda: make().astype(self._stores, copy=False))
            if self._stores != self._computes:
                weight = self.graph.op("Cast", weight, to=self.float_type)
            self._weights[name] = weight
        return self._weights[name]

    # -- sizes ---------------------------------------------------------------------------------------------------

    def size(self, tensor: str, axis: int) -> str:
        """The length of one axis, int64 [1]."""
        return self.graph.op("Shape", tensor, start=axis, end=axis + 1)

    def reshape(self, tensor: str, *axes: str | int) -> str:
        """Axes are numbers (-1 for the rest) or int64 [1] tensors."""
        if all(isinstance(axis, int) for axis in axes):
            return self.graph.op("Reshape", tensor, self.graph.constant(list(axes), np.int64))
        parts = [axis if isinstance(axis, str) else self.graph.constant([axis], np.int64) for axis in axes]
        return self.graph.op("Reshape", tensor, self.graph.op("Concat", *parts, axis=0))

    def steps(self, states: str, width: int) -> str:
        """States of rows that take one step each, in the shape that attention takes: [b, 1, width]."""
        return states if self._takes_steps else self.reshape(states, -1, 1, width)

    def rows(self, states: str, width: int) -> str:
        """[b, 1, width] in the shape that the products take: the same or [b, width]."""
        return states if self._takes_steps else self.reshape(states, -1, width)

    @property
    def _takes_steps(self) -> bool:
        # Gemm and quantisation by row need matrices. The calibrated product takes any shape, which saves the reshapes.
        return bool(self.ranges)

    # -- products ------------------------------------------------------------------------------------------------

    def affine(self, name: str, linears: Sequence[nn.Linear]) -> tuple[Callable[[], NDArray[np.float32]], str]:
        """Several maps of the same states as one: the matrix [D, sum of the outputs], and the bias in the graph.

        The bias is "" where none of the maps has one.
        """
        bias = ""
        if any(linear.bias is not None for linear in linears):
            bias = self.weight(f"{name}.bias", lambda: np.concatenate([_bias_of(linear) for linear in linears]))
        return lambda: np.concatenate([to_numpy(linear.weight) for linear in linears]).T, bias

    def linear(self, states: str, name: str, linears: Sequence[nn.Linear]) -> str:
        """[rows, D] -> [rows, sum of the outputs]: several maps of the same states as one product."""
        matrix, bias = self.affine(name, linears)
        if self.precision == "int8":
            return self.int8_product(states, name, matrix, bias, linears[0])
        weight = self.weight(f"{name}.weight", matrix)
        return self.graph.op("Gemm", states, weight, *([bias] if bias else []))

    def int8_product(
        self,
        states: str,
        name: str,
        matrix: Callable[[], NDArray[np.float32]],
        bias: str,
        key: nn.Module,
        num_zeros: int = 0,
    ) -> str:
        """states @ matrix + bias with both quantized, the weights by column, the activations in one of two ways.

        Either all activations of this place in the network share a range that was calibrated (`key` names it), or each
        row has a scale of its own. ONNX Runtime's dynamic quantisation has one scale for the whole batch, which
        would make a row depend on its neighbours. Activations are unsigned because the fast kernels take unsigned ones.
        """
        graph = self.graph
        quantized_once = cache(lambda: quantize_columns(matrix(), num_zeros))
        weight = graph.weight(f"{name}.weight_int8", lambda: quantized_once()[0])
        weight_scale = graph.weight(f"{name}.weight_scale", lambda: quantized_once()[1])
        if self.ranges:
            quantized, scale, zero_point = self._quantize(states, self.ranges[key])
            inputs = [quantized, weight, scale, weight_scale, zero_point, "", bias]
            return graph.op("MatMulIntegerToFloat", *(inputs if bias else inputs[:5]), domain=MICROSOFT)
        quantized, row_scales, zero_point = self._quantize_rows(states)
        one = graph.constant(1.0, np.float32)
        inputs = [quantized, weight, one, weight_scale, zero_point]
        product = graph.op("Mul", graph.op("MatMulIntegerToFloat", *inputs, domain=MICROSOFT), row_scales)
        return graph.op("Add", product, bias) if bias else product

    def _quantize(self, states: str, calibrated: Range) -> tuple[str, str, str]:
        """uint8 states, their scale and zero point; done once however many products use them."""
        if states not in self._quantized:
            scale = max(calibrated.high - calibrated.low, 1e-9) / 255
            scale_name = self.graph.constant(scale, np.float32)
            zero_point = self.graph.constant(round(-calibrated.low / scale), np.uint8)
            quantized = self.graph.op("QuantizeLinear", states, scale_name, zero_point)
            self._quantized[states] = (quantized, scale_name, zero_point)
        return self._quantized[states]

    def _quantize_rows(self, states: str) -> tuple[str, str, str]:
        """uint8 states, their scales [rows, 1], and the zero point; done once however many products use them."""
        if states not in self._quantized:
            graph = self.graph
            largest = graph.op("ReduceMax", graph.op("Abs", states), graph.constant([-1], np.int64), keepdims=0)
            # A row of zeros must not divide by zero.
            largest = graph.op("Max", largest, graph.constant(1e-9, np.float32))
            scales = graph.op("Mul", largest, graph.constant(1 / 127, np.float32))
            zero_points = graph.op("Expand", graph.constant(128, np.uint8), graph.op("Shape", scales))
            quantized = graph.op("QuantizeLinear", states, scales, zero_points, axis=0)
            column = graph.op("Unsqueeze", scales, graph.constant([1], np.int64))
            self._quantized[states] = (quantized, column, graph.constant(128, np.uint8))
        return self._quantized[states]
