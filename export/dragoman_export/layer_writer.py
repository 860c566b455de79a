"""The parts that the ONNX graphs have in common: products, norms, embeddings, and the layers made of them.

Letters in shapes are those of `graphs.py`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dragoman_export.calibration import Range, Ranges
from dragoman_export.model import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    Residual,
    Transformer,
)
from dragoman_export.onnx_builder import MICROSOFT, GraphBuilder
from dragoman_server.bundle.manifest import Precision


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()


def quantize_columns(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per column: matrix[k, n] is about quantized[k, n] * scales[n]."""
    scales = np.maximum(np.abs(matrix).max(axis=0), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(matrix / scales).clip(-127, 127).astype(np.int8), scales


class LayerWriter:
    """Writes the parts that all three graphs have in common into one graph."""

    def __init__(self, graph: GraphBuilder, model: Transformer, precision: Precision, ranges: Ranges) -> None:
        self.graph, self.model, self.precision, self.ranges = graph, model, precision, ranges
        self._quantized: dict[str, tuple[str, str, str]] = {}

    # -- sizes ---------------------------------------------------------------------------------------------------

    def size(self, tensor: str, axis: int) -> str:
        """The length of one axis, int64 [1]."""
        return self.graph.op("Shape", tensor, start=axis, end=axis + 1)

    def reshape(self, tensor: str, *axes: str | int) -> str:
        """Axes are numbers (-1 for what is left) or int64 [1] tensors."""
        if all(isinstance(axis, int) for axis in axes):
            return self.graph.op("Reshape", tensor, self.graph.constant(list(axes), np.int64))
        parts = [axis if isinstance(axis, str) else self.graph.constant([axis], np.int64) for axis in axes]
        return self.graph.op("Reshape", tensor, self.graph.op("Concat", *parts, axis=0))

    # -- building blocks -----------------------------------------------------------------------------------------

    def linear(self, states: str, name: str, linears: Sequence[nn.Linear]) -> str:
        """[rows, D] -> [rows, sum of the outputs]: several maps of the same states as one product."""
        matrix = np.concatenate([_array(linear.weight) for linear in linears]).T
        bias = self.graph.weight(f"{name}.bias", np.concatenate([_array(linear.bias) for linear in linears]))
        if self.precision == "int8":
            return self._int8_product(states, name, matrix, bias, linears[0])
        return self.graph.op("Gemm", states, self.graph.weight(f"{name}.weight", matrix), bias)

    def _int8_product(self, states: str, name: str, matrix: NDArray[np.float32], bias: str, key: nn.Module) -> str:
        """states @ matrix + bias with both quantized, the weights by column, the activations in one of two ways.

        Either all activations of this place in the network share a range that was calibrated (`key` names it), or each
        row has a scale of its own. ONNX Runtime's dynamic quantisation has one scale for what happens to be in the
        batch, which would make a row depend on its neighbours. Activations are unsigned, as the fast kernels want them.
        """
        graph = self.graph
        weights, column_scales = quantize_columns(matrix)
        weight = graph.weight(f"{name}.weight_int8", weights)
        weight_scale = graph.weight(f"{name}.weight_scale", column_scales)
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

    def norm(self, states: str, name: str, norm: nn.LayerNorm) -> str:
        gamma, beta = self._norm_weights(name, norm)
        return self.graph.op("LayerNormalization", states, gamma, beta, epsilon=norm.eps, axis=-1)

    def _norm_weights(self, name: str, norm: nn.LayerNorm) -> tuple[str, str]:
        gamma = self.graph.weight(f"{name}.norm.weight", _array(norm.weight))
        return gamma, self.graph.weight(f"{name}.norm.bias", _array(norm.bias))

    def residual(self, states: str, name: str, residual: Residual, sublayer: Callable[[str], str]) -> str:
        """x + sublayer(x) with the layer norm where the model has it; post-norm is one fused operator."""
        if residual.is_pre:
            return self.graph.op("Add", states, sublayer(self.norm(states, name, residual.norm)))
        gamma, beta = self._norm_weights(name, residual.norm)
        return self.graph.op(
            "SkipLayerNormalization", sublayer(states), states, gamma, beta, domain=MICROSOFT, epsilon=residual.norm.eps
        )

    def feed_forward(self, states: str, name: str, module: FeedForward) -> str:
        inner = self.linear(states, f"{name}.inner", [module.inner])
        match self.model.dims.activation:
            case "relu":
                active = self.graph.op("Relu", inner)
            case "gelu":
                active = self.graph.op("Gelu", inner)
            case "silu":
                active = self.graph.op("QuickGelu", inner, domain=MICROSOFT, alpha=1.0)
        return self.linear(active, f"{name}.outer", [module.outer])

    def embed(self, ids: str, positions: str, side: Literal["source", "target"]) -> str:
        """Token ids [rows] and their position vectors (broadcastable to [rows, D]) -> [rows, D]."""
        graph = self.graph
        module: Embedding = getattr(self.model, f"{side}_embedding")
        shared = "shared" if self.model.dims.shared_vocabulary else side
        table = _array(module.tokens.weight)
        if self.precision == "int8":
            rows, scales = quantize_columns(table.T)
            tokens = graph.op("Gather", graph.weight(f"{shared}_embedding.weight_int8", rows.T), ids)
            token_scales = graph.op("Gather", graph.weight(f"{shared}_embedding.scale", scales), ids)
            tokens = graph.op("DequantizeLinear", tokens, token_scales, axis=0)
        else:
            tokens = graph.op("Gather", graph.weight(f"{shared}_embedding.weight", table), ids)
        if module.scale != 1.0:
            tokens = graph.op("Mul", tokens, graph.constant(module.scale, np.float32))
        return graph.op("Add", tokens, positions)

    def position_table(self, side: Literal["source", "target"]) -> str:
        """Position vectors [max_positions, D], from the first one that tokens use."""
        module: Embedding = getattr(self.model, f"{side}_embedding")
        name = "positions" if self.model.dims.positions == "sinusoidal" else f"{side}_positions"
        return self.graph.weight(name, _array(module.positions)[module.offset :])

    def embed_sequences(self, ids: str, side: Literal["source", "target"]) -> str:
        """Token ids [b, s] at positions 0..s-1 -> [b * s, D]."""
        graph, width = self.graph, self.size(ids, 1)
        positions = graph.op("Slice", self.position_table(side), graph.constant([0], np.int64), width)
        rows = graph.op("Tile", positions, graph.op("Concat", self.size(ids, 0), graph.constant([1], np.int64), axis=0))
        return self.embed(self.reshape(ids, -1), rows, side)

    def logits(self, states: str) -> str:
        """Decoder states [rows, D] -> logits of the vocabulary [rows, V]."""
        graph, embedding = self.graph, self.model.target_embedding
        output_bias = self.model.output_bias
        bias = "" if output_bias is None else graph.weight("output.bias", _array(output_bias))
        shared = "shared" if self.model.dims.shared_vocabulary else "target"
        table = _array(embedding.tokens.weight)
        if self.precision == "int8":
            return self._int8_product(states, "output", table.T, bias, self.model)
        weight = graph.weight(f"{shared}_embedding.weight", table)
        return graph.op("Gemm", states, weight, *([bias] if bias else []), transB=1)

    # -- layers --------------------------------------------------------------------------------------------------

    def encoder_layers(self, states: str, attend: Callable[[int, str, str, str], str]) -> str:
        """`attend(layer, query, key, value)` mixes [rows, D] projections; returns the encoder hidden states."""
        for i, layer in enumerate(self.model.encoder_layers):
            name = f"encoder.{i}"

            def self_attention(entered: str, i: int = i, layer: EncoderLayer = layer, name: str = name) -> str:
                qkv = self.qkv(entered, f"{name}.self_attention", layer.self_attention)
                mixed = attend(i, *self.graph.split(qkv, 3))
                return self.linear(mixed, f"{name}.self_attention.output", [layer.self_attention.output])

            states = self.residual(
                states, f"{name}.self_attention_residual", layer.self_attention_residual, self_attention
            )
            states = self._feed_forward_residual(states, name, layer)
        if isinstance(self.model.encoder_norm, nn.LayerNorm):
            states = self.norm(states, "encoder.final", self.model.encoder_norm)
        return states

    def decoder_layers(
        self, states: str, attend_self: Callable[[int, str], str], attend_cross: Callable[[int, str], str]
    ) -> str:
        """`attend_self` gets the fused QKV [rows, 3 D], `attend_cross` the query [rows, D]; both return [rows, D]."""
        for i, layer in enumerate(self.model.decoder_layers):
            name = f"decoder.{i}"

            def self_attention(entered: str, i: int = i, layer: DecoderLayer = layer, name: str = name) -> str:
                mixed = attend_self(i, self.qkv(entered, f"{name}.self_attention", layer.self_attention))
                return self.linear(mixed, f"{name}.self_attention.output", [layer.self_attention.output])

            def cross_attention(entered: str, i: int = i, layer: DecoderLayer = layer, name: str = name) -> str:
                query = self.linear(entered, f"{name}.cross_attention.query", [layer.cross_attention.query])
                mixed = attend_cross(i, query)
                return self.linear(mixed, f"{name}.cross_attention.output", [layer.cross_attention.output])

            states = self.residual(
                states, f"{name}.self_attention_residual", layer.self_attention_residual, self_attention
            )
            states = self.residual(
                states, f"{name}.cross_attention_residual", layer.cross_attention_residual, cross_attention
            )
            states = self._feed_forward_residual(states, name, layer)
        if isinstance(self.model.decoder_norm, nn.LayerNorm):
            states = self.norm(states, "decoder.final", self.model.decoder_norm)
        return states

    def _feed_forward_residual(self, states: str, name: str, layer: EncoderLayer | DecoderLayer) -> str:
        return self.residual(
            states,
            f"{name}.feed_forward_residual",
            layer.feed_forward_residual,
            lambda entered: self.feed_forward(entered, f"{name}.feed_forward", layer.feed_forward),
        )

    def qkv(self, states: str, name: str, attention: MultiHeadAttention) -> str:
        return self.linear(states, f"{name}.qkv", [attention.query, attention.key, attention.value])

    def cross_key_values(self, hidden: str) -> str:
        """Encoder states [rows, D] -> cross keys and values of all decoder layers side by side, [rows, 2 L D]."""
        linears = []
        for layer in self.model.decoder_layers:
            linears += [layer.cross_attention.key, layer.cross_attention.value]
        return self.linear(hidden, "decoder.cross_key_values", linears)

    def split_heads(self, states: str, num_sentences: str) -> str:
        """[b * s, D] -> [b, H, s, K]"""
        dims = self.model.dims
        heads = self.reshape(states, num_sentences, -1, dims.num_heads, dims.d_head)
        return self.graph.op("Transpose", heads, perm=[0, 2, 1, 3])
