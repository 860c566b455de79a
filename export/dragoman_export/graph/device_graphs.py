"""The encoder and the decoding step for CUDA, at fp16 and bf16.

They do what those of `graphs.py` do, and have other inputs, since a GPU waits for whatever the host has to do:

* every operator has a CUDA kernel, and no size is computed on the host from what is on the device;
* what a step is told of its rows is one small table, which one copy takes to the device;
* keys and values of both kinds of attention are written where they stay: the encoder writes into rows of the KV pool.

The types that the weights are stored in are computed with, and log-probs are float32: at half precision those of rare
tokens would differ by whole per cents. Sums within products, layer norms and softmax are float32 in CUDA's kernels.

Letters in shapes are those of `graphs.py`; C is the capacity of the pool in tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike
from onnx import TensorProto
from torch import nn

from dragoman_export.graph.builder import MICROSOFT, GraphBuilder, WeightFile
from dragoman_export.graph.layers import LayerWriter
from dragoman_export.model import Norm, Residual, Transformer
from dragoman_server.bundle.manifest import Precision, present, state_tensors

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
OPSET = 24  # the first with TensorScatter, and with lengths of Attention's keys


class _DeviceWriter(LayerWriter):
    """Layers with as few kernels as there are for them: to start one takes longer than most of them run.

    ONNX Runtime puts biases into the kernels of what follows, where it can.
    """

    def __init__(
        self, graph: GraphBuilder, model: Transformer, precision: Precision, computes_in: DTypeLike | None
    ) -> None:
        super().__init__(graph, model, precision, {}, computes_in)
        self._sums: dict[str, tuple[str, str]] = {}  # not written yet: their norms are, and they with these

    def linear(self, states: str, name: str, linears: Sequence[nn.Linear]) -> str:
        """[..., D] -> [..., sum of the outputs]"""
        matrix, bias = self.affine(name, linears)
        product = self.graph.op("MatMul", states, self.weight(f"{name}.weight", matrix))
        return self.graph.op("Add", product, bias) if bias else product

    def residual(self, states: str, name: str, residual: Residual, sublayer: Callable[[str], str]) -> str:
        """x + sublayer(x) with the norm where the model has it, and sum and norm as one operator."""
        entered = self.norm(states, name, residual.norm) if residual.is_pre else states
        total = f"{name}.sum"
        self._sums[total] = sublayer(entered), states
        return total if residual.is_pre else self.norm(total, name, residual.norm)

    def norm(self, states: str, name: str, norm: Norm) -> str:
        """The norm; states that are a sum of two are written by it."""
        if states not in self._sums:
            return super().norm(states, name, norm)
        normed = f"{name}.normed"
        inputs = [*self._sums.pop(states), *self.norm_weights(name, norm)]
        outputs = [normed, "", "", states] if self.model.dims.norm == "pre" else [normed]
        kind = "SkipLayerNormalization" if isinstance(norm, nn.LayerNorm) else "SkipSimplifiedLayerNormalization"
        self.graph.node(kind, inputs, outputs, MICROSOFT, epsilon=self.model.dims.norm_epsilon)
        return normed


def write_encoder(
    model: Transformer, precision: Precision, weights: WeightFile, computes_in: DTypeLike | None = None
) -> GraphBuilder:
    """b sentences side by side -> keys and values of every decoder layer's cross-attention, in rows of the pool.

    Inputs: input_ids int64 [b, s], any token at padding; source_lengths int64 [b]; the cross state, [b, H, C, K] each,
    C at least s.
    Outputs: the cross state, to be bound to the same memory. The first s positions of every row are written; values
    beyond a sentence's length are finite and have no meaning.
    """
    dims = model.dims
    graph = GraphBuilder("encoder", weights, OPSET)
    writer = _DeviceWriter(graph, model, precision, computes_in)
    ids = graph.input("input_ids", INT64, ["batch", "source"])
    lengths = graph.input("source_lengths", INT64, ["batch"])
    names = state_tensors(dims.num_decoder_layers).cross_kv
    shape: tuple[str | int, ...] = ("batch", dims.num_heads, "capacity", dims.d_head)
    state = [graph.input(name, writer.float_type, shape) for name in names]
    width = graph.op("Shape", ids, start=1, end=2)
    bias = writer.sequence_bias("encoder", width)

    def attend(qkv: str) -> str:
        query, key, value = graph.split(qkv, 3, axis=2)
        inputs = [query, key, value, bias, "", "", lengths]
        return graph.op("Attention", *inputs, q_num_heads=dims.num_heads, kv_num_heads=dims.num_heads)

    positions = writer.first_positions(width, "source")
    hidden = writer.encoder_layers(writer.embed(ids, positions, "source"), attend)
    key_values = writer.cross_key_values(hidden)
    heads = graph.op("Reshape", key_values, graph.constant([0, 0, -1, dims.d_head], np.int64))  # 0: as it is
    heads = graph.op("Transpose", heads, perm=[0, 2, 1, 3])
    for name, past, new in zip(names, state, graph.split(heads, len(names)), strict=True):
        graph.output(present(name), graph.op("TensorScatter", past, new), writer.float_type, shape)
    return graph


def write_decoder_step(
    model: Transformer, precision: Precision, weights: WeightFile, computes_in: DTypeLike | None = None
) -> GraphBuilder:
    """One decoding step for b rows, each at its own position.

    Inputs: rows int32 [b, 4], of each row the token that it is fed, the position of this token, the last position of
    its source, and a token whose log-prob is wanted; top_k int64 [1]; all_rows int64 [a]; longest_target and
    longest_source int32 [1], no less than the positions in use, no more than the capacities; and the state,
    [b, H, C, K] each. top_k and the longest are in the host's memory.
    Outputs: as those of the step in `graphs.py`, but of the state only what the step writes.

    Positions beyond a row's own length are never read.
    """
    dims = model.dims
    graph = GraphBuilder("decoder_step", weights, OPSET)
    writer = _DeviceWriter(graph, model, precision, computes_in)
    rows = graph.input("rows", INT32, ["batch", 4])
    top_k = graph.input("top_k", INT64, [1])
    all_rows = graph.input("all_rows", INT64, ["all"])
    longest = {length: graph.input(f"longest_{length}", INT32, [1]) for length in ("target", "source")}

    def states_of(names: Sequence[str], length: str) -> list[str]:
        shape: tuple[str | int, ...] = ("batch", dims.num_heads, f"{length}_capacity", dims.d_head)
        return [graph.input(name, writer.float_type, shape) for name in names]

    names = state_tensors(dims.num_decoder_layers)
    self_kv, cross_kv = states_of(names.self_kv, "target"), states_of(names.cross_kv, "source")

    ids, positions, last_source, score_ids = graph.split(rows, 4)
    second = graph.constant([1], np.int64)
    last = {"target": graph.op("Squeeze", positions, second), "source": graph.op("Squeeze", last_source, second)}
    hidden = writer.embed(ids, writer.positions_at(positions, "target"), "target")  # [b, 1, D], as all states
    bias = writer.step_bias(last["target"], longest["target"]) if dims.positions == "relative" else ""
    no_positions = [graph.constant([n], np.int64) for n in (0, 0, 1)]
    nothing: list[str] = []  # keys and values of no positions

    def attention(inputs: Sequence[str], num_outputs: int) -> list[str]:
        heads = dims.num_heads
        kind = "GroupQueryAttention"
        return graph.ops(kind, inputs, num_outputs, MICROSOFT, num_heads=heads, kv_num_heads=heads)

    def attend_self(i: int, qkv: str) -> str:
        layer = slice(2 * i, 2 * i + 2)
        inputs = [qkv, "", "", *self_kv[layer], last["target"], longest["target"], *writer.last_inputs(bias)]
        mixed, *grown = attention(inputs, 3)
        for name, value in zip(names.self_kv[layer], grown, strict=True):
            shape = ("batch", dims.num_heads, "target_capacity", dims.d_head)
            graph.output(present(name), value, writer.float_type, shape)
        return mixed

    def attend_cross(i: int, query: str) -> str:
        # Cross-attention has nothing to append to its past: keys and values of no positions.
        if not nothing:
            nothing.append(graph.op("Slice", query, *no_positions))
        state = cross_kv[2 * i : 2 * i + 2]
        return attention([query, *nothing, *nothing, *state, last["source"], longest["source"]], 1)[0]

    hidden = writer.decoder_layers(hidden, attend_self, attend_cross)
    logits = graph.op("Cast", writer.logits(graph.op("Squeeze", hidden, second)), to=FLOAT)
    log_probs = graph.op("LogSoftmax", logits, axis=-1)
    best, best_ids = graph.ops("TopK", [log_probs, top_k], 2, axis=-1)
    graph.output("top_ids", best_ids, INT64, ["batch", "k"])
    graph.output("top_logprobs", best, FLOAT, ["batch", "k"])
    graph.output("score_logprobs", graph.op("GatherElements", log_probs, score_ids, axis=1), FLOAT, ["batch", 1])
    begin, end, columns = (graph.constant([n], np.int64) for n in (0, dims.target_vocabulary_size, 1))
    for name, values in (("all_logits", logits), ("all_logprobs", log_probs)):
        chosen = graph.op("Slice", graph.op("Gather", values, all_rows), begin, end, columns)
        graph.output(name, chosen, FLOAT, ["all", dims.target_vocabulary_size])
    return graph
