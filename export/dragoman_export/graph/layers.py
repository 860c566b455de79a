"""The parts that the ONNX graphs share: norms, embeddings, positions, and the layers made of them.

Letters in shapes are those of `graphs.py`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from dragoman_export.graph.builder import MICROSOFT
from dragoman_export.graph.products import ProductWriter, to_numpy
from dragoman_export.graph.quantization import quantize_columns
from dragoman_export.model import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    Norm,
    Residual,
)
from dragoman_export.positions import RelativePositions
from dragoman_server.bundle.graph_rules import VOCABULARY_BLOCK
from dragoman_server.runtime.device_pool import CAPACITY_STEP

# Columns of logits in a block; the best tokens are searched in the blocks with the highest maxima.
_BLOCK = VOCABULARY_BLOCK


class LayerWriter(ProductWriter):
    """Writes the parts that the graphs share into one graph."""

    # -- the KV pool ---------------------------------------------------------------------------------------------

    @property
    def cache_type(self) -> int:
        """Type of the pooled keys and values: int8 in a calibrated int8 graph, whose maps output them in int8 units."""
        return int(TensorProto.INT8) if self.ranges else self.float_type

    def to_cache(self, key_values: str) -> str:
        """float -> the type of the pool"""
        if not self.ranges:
            return key_values
        unit, zero = self.graph.constant(1.0, np.float32), self.graph.constant(0, np.int8)
        return self.graph.op("QuantizeLinear", key_values, unit, zero)

    def last_inputs(self, bias: str, is_cached: bool = True) -> list[str]:
        """The last inputs of GroupQueryAttention: what is added to its scores, and the scales of the pool."""
        inputs = ["", "", "", bias, ""]
        if is_cached and self.ranges:
            return [*inputs, *[self.graph.constant([1.0], np.float32)] * 2]
        return inputs if bias else []

    def heads(self, is_cached: bool = True) -> dict[str, Any]:
        """Domain and attributes of GroupQueryAttention; without its cache, all is float."""
        num_heads = self.model.dims.num_heads
        attributes = {"domain": MICROSOFT, "num_heads": num_heads, "kv_num_heads": num_heads}
        if is_cached and self.ranges:
            attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        return attributes

    # -- building blocks -----------------------------------------------------------------------------------------

    def norm_weights(self, name: str, norm: Norm) -> list[str]:
        """The weight and, of a layer norm, the bias."""
        weights = [self.weight(f"{name}.norm.weight", partial(to_numpy, norm.weight))]
        if isinstance(norm, nn.LayerNorm):
            weights.append(self.weight(f"{name}.norm.bias", partial(to_numpy, norm.bias)))
        return weights

    def norm(self, states: str, name: str, norm: Norm) -> str:
        """[..., D] -> [..., D]"""
        # ONNX Runtime has both in ONNX's own domain.
        kind = "LayerNormalization" if isinstance(norm, nn.LayerNorm) else "SimplifiedLayerNormalization"
        weights = self.norm_weights(name, norm)
        return self.graph.op(kind, states, *weights, epsilon=self.model.dims.norm_epsilon, axis=-1)

    def residual(self, states: str, name: str, residual: Residual, sublayer: Callable[[str], str]) -> str:
        """x + sublayer(x) with the norm where the model has it.

        A sum and a norm are a quarter of the time of the fused SkipLayerNormalization, whose kernel is not vectorised.
        """
        if residual.is_pre:
            return self.graph.op("Add", states, sublayer(self.norm(states, name, residual.norm)))
        return self.norm(self.graph.op("Add", sublayer(states), states), name, residual.norm)

    def feed_forward(self, states: str, name: str, module: FeedForward) -> str:
        graph, gate = self.graph, ""
        if module.gate is None:
            inner = self.linear(states, f"{name}.inner", [module.inner])
        else:
            inner, gate = graph.split(self.linear(states, f"{name}.inner", [module.inner, module.gate]), 2, axis=-1)
        match self.model.dims.activation:
            case "relu":
                active = graph.op("Relu", inner)
            case "gelu":
                active = graph.op("Gelu", inner)
            case "gelu_tanh":
                active = graph.op("Gelu", inner, approximate="tanh")
            case "silu":
                active = graph.op("QuickGelu", inner, domain=MICROSOFT, alpha=1.0)
        return self.linear(graph.op("Mul", active, gate) if gate else active, f"{name}.outer", [module.outer])

    def embed(self, ids: str, positions: str, side: Literal["source", "target"]) -> str:
        """Token ids [rows] and their position vectors (broadcastable to [rows, D]) -> [rows, D], normed at the end.

        The vectors are "" where a model adds none.
        """
        graph = self.graph
        module: Embedding = getattr(self.model, f"{side}_embedding")
        if self.precision == "int8":
            shared = self._shared(side)
            quantized_once = cache(lambda: quantize_columns(to_numpy(module.tokens.weight).T))
            rows = graph.weight(f"{shared}_embedding.weight_int8", lambda: quantized_once()[0].T)
            scales = graph.weight(f"{shared}_embedding.scale", lambda: quantized_once()[1] * np.float32(module.scale))
            tokens = graph.op("Gather", rows, ids)
            token_scales = graph.op("Gather", scales, ids)
            tokens = graph.op("DequantizeLinear", tokens, token_scales, axis=0)
        else:
            tokens = graph.op("Gather", self._table(side), ids)
            if module.scale != 1.0:
                tokens = graph.op("Mul", tokens, self.number(module.scale))
        states = graph.op("Add", tokens, positions) if positions else tokens
        return states if isinstance(module.norm, nn.Identity) else self.norm(states, f"{side}_embedding", module.norm)

    def _shared(self, side: Literal["source", "target"]) -> str:
        return "shared" if self.model.dims.shared_vocabulary else side

    def _table(self, side: Literal["source", "target"]) -> str:
        """Embeddings, padded to whole blocks where they are the output projection, too."""
        module: Embedding = getattr(self.model, f"{side}_embedding")
        shared, table = self._shared(side), to_numpy(module.tokens.weight)
        is_projection = self.model.dims.tied_projection and shared != "source"
        padding = -len(table) % _BLOCK if is_projection else 0
        return self.weight(
            f"{shared}_embedding.weight", lambda: np.pad(table, ((0, padding), (0, 0))) if padding else table
        )

    # -- positions -----------------------------------------------------------------------------------------------

    def _position_table(self, side: Literal["source", "target"]) -> str:
        """Position vectors [max_positions, D], from the first one that tokens use; "" where a model adds none."""
        module: Embedding = getattr(self.model, f"{side}_embedding")
        if not module.has_positions:
            return ""
        name = "positions" if self.model.dims.positions == "sinusoidal" else f"{side}_positions"
        return self.weight(name, lambda: to_numpy(module.positions)[module.offset :])

    def positions_at(self, places: str, side: Literal["source", "target"]) -> str:
        """Places in a sequence, int64 [...] -> position vectors [..., D]; "" where a model adds none."""
        table = self._position_table(side)
        return self.graph.op("Gather", table, places) if table else ""

    def first_positions(self, width: str, side: Literal["source", "target"]) -> str:
        """The number of positions, int64 [1] -> the vectors of the first [width, D]; "" where a model adds none."""
        table = self._position_table(side)
        return self.graph.op("Slice", table, self.graph.constant([0], np.int64), width) if table else ""

    def embed_sequences(self, ids: str, side: Literal["source", "target"]) -> str:
        """Token ids [b, s] at positions 0..s-1 -> [b * s, D]."""
        graph = self.graph
        positions = self.first_positions(self.size(ids, 1), side)
        if positions:
            times = graph.op("Concat", self.size(ids, 0), graph.constant([1], np.int64), axis=0)
            positions = graph.op("Tile", positions, times)
        return self.embed(self.reshape(ids, -1), positions, side)

    def sequence_bias(self, side: Literal["encoder", "decoder"], length: str) -> str:
        """The number of positions, int64 [1] -> what is added to scores [1, H, length, length]; "" where nothing is."""
        if self.model.dims.positions != "relative":
            return ""
        places = self._places(length, np.int64)
        return self.graph.op(
            "Unsqueeze",
            self.graph.op("Transpose", self._bias(side, places, places), perm=[2, 0, 1]),
            self.graph.constant([0], np.int64),
        )

    def step_bias(self, places: str, length: str) -> str:
        """What is added to the scores of rows that take a step each, [b, H, 1, length].

        Args:
            places: of the rows, int32 [b].
            length: number of keys, int32 [1]. The numbers for keys behind a row's own place have no meaning.
        """
        return self.graph.op(
            "Unsqueeze",
            self.graph.op("Transpose", self._bias("decoder", places, self._places(length, np.int32)), perm=[0, 2, 1]),
            self.graph.constant([2], np.int64),
        )

    def _places(self, length: str, kind: type[np.int32 | np.int64]) -> str:
        """An integer [1] of this kind -> 0, 1, ... length - 1, int32 [length]"""
        # On a GPU, the length is the capacity of the pool.
        most = -(-self.model.dims.max_positions // CAPACITY_STEP) * CAPACITY_STEP
        all_places = self.graph.weight("places", lambda: np.arange(most, dtype=np.int32))
        return self.graph.op("Slice", all_places, self.graph.constant([0], kind), length)

    def _bias(self, side: Literal["encoder", "decoder"], queries: str, keys: str) -> str:
        """Places int32 [q] and [k] -> [q, k, H]"""
        graph, farthest = self.graph, self.model.dims.max_position_distance
        module: RelativePositions = getattr(self.model, f"{side}_positions")
        table = self.weight(f"{side}_bias", lambda: to_numpy(module.at(torch.arange(-farthest, farthest + 1))))
        offsets = graph.op("Sub", keys, graph.op("Unsqueeze", queries, graph.constant([1], np.int64)))
        low, high = (graph.constant(n, np.int32) for n in (-farthest, farthest))
        offsets = graph.op("Max", graph.op("Min", offsets, high), low)
        return graph.op("Gather", table, graph.op("Add", offsets, high))

    def logits(self, states: str) -> str:
        """Decoder states [rows, D] -> logits [rows, V'] of the vocabulary, padded to whole blocks with -inf."""
        graph, model = self.graph, self.model
        table = to_numpy(model.projection)
        padding = -len(table) % _BLOCK
        biases = np.zeros(len(table), np.float32) if model.output_bias is None else to_numpy(model.output_bias)
        biases = np.pad(biases, (0, padding), constant_values=-np.inf)
        bias = self.weight("output.bias", lambda: biases) if biases.any() else ""
        if self.precision == "int8":
            return self.int8_product(states, "output", lambda: table.T, bias, model, padding)
        weight = (
            self._table("target")
            if model.dims.tied_projection
            else self.weight("output.weight", lambda: np.pad(table, ((0, padding), (0, 0))))
        )
        return graph.op("Gemm", states, weight, *([bias] if bias else []), transB=1)

    def top(self, log_probs: str, k: str) -> tuple[str, str]:
        """Log-probs [rows, V'] and k, int64 [1] -> the ids int64 and log-probs [rows, k], best first.

        The k best are in the k blocks with the highest maxima. Finding these takes a vectorised pass over the
        vocabulary, a third of the time of TopK over all of it.
        """
        graph = self.graph
        num_columns = self.model.dims.target_vocabulary_size
        num_columns += -num_columns % _BLOCK
        last, block = graph.constant([-1], np.int64), graph.constant(_BLOCK, np.int64)
        blocks = self.reshape(log_probs, -1, num_columns // _BLOCK, _BLOCK)
        num_blocks = graph.op("Min", k, graph.constant([num_columns // _BLOCK], np.int64))
        maxima = graph.op("ReduceMax", blocks, last, keepdims=0)
        _, chosen = graph.ops("TopK", [maxima, num_blocks], 2, axis=-1)
        candidates = graph.op("GatherND", blocks, graph.op("Unsqueeze", chosen, last), batch_dims=1)
        candidates = graph.op("Reshape", candidates, graph.constant([0, -1], np.int64))
        best, places = graph.ops("TopK", [candidates, k], 2, axis=-1)
        first_ids = graph.op("Mul", graph.op("GatherElements", chosen, graph.op("Div", places, block), axis=1), block)
        return graph.op("Add", first_ids, graph.op("Mod", places, block)), best

    # -- layers --------------------------------------------------------------------------------------------------

    def encoder_layers(self, states: str, attend: Callable[[str], str]) -> str:
        """`attend` gets the fused QKV [rows, 3 H K] and returns [rows, H K]; this returns the encoder hidden states."""
        for i, layer in enumerate(self.model.encoder_layers):
            name = f"encoder.{i}"

            def self_attention(entered: str, layer: EncoderLayer = layer, name: str = name) -> str:
                mixed = attend(self.qkv(entered, f"{name}.self_attention", layer.self_attention))
                return self.linear(mixed, f"{name}.self_attention.output", [layer.self_attention.output])

            states = self.residual(
                states, f"{name}.self_attention_residual", layer.self_attention_residual, self_attention
            )
            states = self._feed_forward_residual(states, name, layer)
        if not isinstance(self.model.encoder_norm, nn.Identity):
            states = self.norm(states, "encoder.final", self.model.encoder_norm)
        return states

    def decoder_layers(
        self, states: str, attend_self: Callable[[int, str], str], attend_cross: Callable[[int, str], str]
    ) -> str:
        """The layers behind the embedding, and the norm at the end.

        `attend_self` gets the fused QKV [rows, 3 H K], `attend_cross` the query [rows, H K]; both return [rows, H K].
        """
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
        if not isinstance(self.model.decoder_norm, nn.Identity):
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
        """Encoder states [rows, D] -> cross keys and values of all L decoder layers side by side, [rows, 2 L H K]."""
        linears = []
        for layer in self.model.decoder_layers:
            linears += [layer.cross_attention.key, layer.cross_attention.value]
        return self.linear(hidden, "decoder.cross_key_values", linears)

    def split_heads(self, states: str, num_sentences: str) -> str:
        """[b * s, H K] -> [b, H, s, K]"""
        dims = self.model.dims
        heads = self.reshape(states, num_sentences, -1, dims.num_heads, dims.d_head)
        return self.graph.op("Transpose", heads, perm=[0, 2, 1, 3])
