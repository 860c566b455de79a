"""The three ONNX graphs of a bundle, written from the modules of `model.py` operator by operator.

    encoder        source ids -> keys and values of every decoder layer's cross-attention
    decoder_step   one token per row -> top-k next tokens; reads and writes the KV pool in place
    attention      source and target in one teacher-forced pass -> all softmax weights, token log-probs

They are written out rather than traced because no tracer makes the choices that make them fast and exact: ONNX
Runtime's in-place attention with one length per row, one product for Q, K and V, log-softmax and top-k inside, and
quantisation by row. All states are 2-D, [rows, D], a row per token: no row's result depends on another's.

Letters in shapes: b rows or sentences, s source and t target positions, H heads, D width, K width of a head, V
vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from dragoman_export.graph.builder import GraphBuilder, WeightFile
from dragoman_export.graph.layers import LayerWriter
from dragoman_export.graph.quantization import Ranges
from dragoman_export.model import Transformer
from dragoman_server.bundle.manifest import Precision, present, state_tensors

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def write_encoder(model: Transformer, precision: Precision, weights: WeightFile, ranges: Ranges) -> GraphBuilder:
    """The tokens of b sentences, one sentence behind the other without padding -> cross_kv [b, 2 L H, s, K].

    Inputs: input_ids int64 [n] and position_ids int64 [n]; source_lengths int32 [b]; token_places int64 [b, s], the
    token in each place of the sentences side by side (any token at padding); and packed_places int64 [n], the place of
    each token among these b * s.

    cross_kv has the heads of the first decoder layer's keys, of its values, of the second layer's keys, and so on, in
    the type of the KV pool. Values beyond a sentence's length are undefined.

    Only attention sees the sentences side by side, so the products compute nothing for padding.
    """
    dims = model.dims
    graph = GraphBuilder("encoder", weights)
    writer = LayerWriter(graph, model, precision, ranges)
    ids = graph.input("input_ids", INT64, ["tokens"])
    positions = graph.input("position_ids", INT64, ["tokens"])
    lengths = graph.input("source_lengths", INT32, ["batch"])
    token_places = graph.input("token_places", INT64, ["batch", "source"])
    packed_places = graph.input("packed_places", INT64, ["tokens"])
    last = graph.op("Sub", lengths, graph.constant(1, np.int32))
    width = writer.size(token_places, 1)
    longest = graph.op("Squeeze", graph.op("Cast", width, to=INT32))
    bias = writer.sequence_bias("encoder", width)

    def attend(qkv: str) -> str:
        no_past = ["", "", "", ""]
        inputs = [
            graph.op("Gather", qkv, token_places),
            *no_past,
            last,
            longest,
            *writer.last_inputs(bias, is_cached=False),
        ]
        (mixed,) = graph.ops("GroupQueryAttention", inputs, 1, **writer.heads(is_cached=False), causal=0)
        return graph.op("Gather", writer.reshape(mixed, -1, dims.d_attention), packed_places)

    position_vectors = writer.positions_at(positions, "source")
    hidden = writer.encoder_layers(writer.embed(ids, position_vectors, "source"), attend)
    num_heads = 2 * dims.num_decoder_layers * dims.num_heads
    heads = graph.op("Gather", writer.to_cache(writer.cross_key_values(hidden)), token_places)
    shape = graph.constant([0, 0, num_heads, dims.d_head], np.int64)  # 0: as it is
    heads = graph.op("Transpose", graph.op("Reshape", heads, shape), perm=[0, 2, 1, 3])
    graph.output("cross_kv", heads, writer.cache_type, ["batch", num_heads, "source", dims.d_head])
    return graph


def write_decoder_step(model: Transformer, precision: Precision, weights: WeightFile, ranges: Ranges) -> GraphBuilder:
    """One decoding step for b rows, each at its own position.

    Inputs: input_ids int64 [b], position_ids int64 [b], source_lengths int32 [b], score_ids int64 [b, 1], top_k int64
    [1], all_rows int64 [a]; and the state, [b, H, capacity, K] each.
    Outputs: top_ids int64 and top_logprobs float [b, top_k], best first; score_logprobs [b, 1], the log-probs of
    score_ids (for forced decoding); all_logits and all_logprobs float [a, V] of the rows in all_rows; the state, to be
    bound to the same memory.

    Positions beyond a row's own length are never read, so capacity and neighbours do not matter.
    """
    dims = model.dims
    graph = GraphBuilder("decoder_step", weights)
    writer = LayerWriter(graph, model, precision, ranges)
    ids = graph.input("input_ids", INT64, ["batch"])
    positions = graph.input("position_ids", INT64, ["batch"])
    source_lengths = graph.input("source_lengths", INT32, ["batch"])
    score_ids = graph.input("score_ids", INT64, ["batch", 1])
    top_k = graph.input("top_k", INT64, [1])
    all_rows = graph.input("all_rows", INT64, ["all"])

    def states_of(names: Sequence[str], length: str) -> list[str]:
        shape: tuple[str | int, ...] = ("batch", dims.num_heads, length, dims.d_head)
        return [graph.input(name, writer.cache_type, shape) for name in names]

    names = state_tensors(dims.num_decoder_layers)
    self_kv, cross_kv = states_of(names.self_kv, "target"), states_of(names.cross_kv, "source")

    one = graph.constant(1, np.int32)
    last_target = graph.op("Cast", positions, to=INT32)
    longest_target = graph.op("Add", graph.op("ReduceMax", last_target, keepdims=0), one)
    last_source = graph.op("Sub", source_lengths, one)
    longest_source = graph.op("ReduceMax", source_lengths, keepdims=0)
    bias = ""
    if dims.positions == "relative":
        bias = writer.step_bias(last_target, writer.reshape(longest_target, 1))
    steps = writer.reshape(writer.embed(ids, writer.positions_at(positions, "target"), "target"), -1, 1, dims.d_model)
    no_positions = [graph.constant([n], np.int64) for n in (0, 0, 1)]
    nothing: list[str] = []  # keys and values of no positions

    def attend(inputs: Sequence[str], state: Sequence[str], last: str, longest: str, bias: str = "") -> str:
        inputs = [*inputs, *state, last, longest, *writer.last_inputs(bias)]
        mixed, grown_key, grown_value = graph.ops("GroupQueryAttention", inputs, 3, **writer.heads())
        for name, grown in zip(state, (grown_key, grown_value), strict=True):
            length = "target" if ".decoder." in name else "source"
            graph.output(present(name), grown, writer.cache_type, ["batch", dims.num_heads, length, dims.d_head])
        return writer.rows(mixed, dims.d_attention)

    def attend_self(i: int, qkv: str) -> str:
        inputs = [writer.steps(qkv, 3 * dims.d_attention), "", ""]
        return attend(inputs, self_kv[2 * i : 2 * i + 2], last_target, longest_target, bias)

    def attend_cross(i: int, query: str) -> str:
        query = writer.steps(query, dims.d_attention)
        # Cross-attention has nothing to append to its past: keys and values of no positions.
        if not nothing:
            nothing.append(graph.op("Slice", query, *no_positions))
        inputs = [query, *nothing, *nothing]
        return attend(inputs, cross_kv[2 * i : 2 * i + 2], last_source, longest_source)

    states = writer.decoder_layers(writer.rows(steps, dims.d_model), attend_self, attend_cross)
    logits = writer.logits(writer.reshape(states, -1, dims.d_model))
    log_probs = graph.op("LogSoftmax", logits, axis=-1)
    top_ids, top_logprobs = writer.top(log_probs, top_k)
    graph.output("top_ids", top_ids, INT64, ["batch", "k"])
    graph.output("top_logprobs", top_logprobs, FLOAT, ["batch", "k"])
    graph.output("score_logprobs", graph.op("GatherElements", log_probs, score_ids, axis=1), FLOAT, ["batch", 1])
    begin, end, columns = (graph.constant([n], np.int64) for n in (0, dims.target_vocabulary_size, 1))
    for name, values in (("all_logits", logits), ("all_logprobs", log_probs)):
        rows = graph.op("Slice", graph.op("Gather", values, all_rows), begin, end, columns)
        graph.output(name, rows, FLOAT, ["all", dims.target_vocabulary_size])
    return graph


def write_attention(model: Transformer, precision: Precision, weights: WeightFile, ranges: Ranges) -> GraphBuilder:
    """The teacher-forced pass, and the log-probs of its labels.

    From input_ids int64 [b, s], attention_mask int32 [b, s] and decoder_input_ids int64 [b, t]: for every layer i its
    softmax weights encoder_attentions.i [b, h, s, s], decoder_attentions.i [b, h, t, t] and cross_attentions.i
    [b, h, t, s] (padded keys weigh 0), and decoder_hidden_states [b, t, D]. A layer whose entry in encoder_layers,
    decoder_layers or cross_layers, int64 with an entry for every layer, is 1 gives the heads in `heads` int64 [h]. One
    whose entry is 0 gives none, since ONNX Runtime computes and keeps every output, fetched or not.

    From hidden_states [r, D], which are rows of decoder_hidden_states, and labels int64 [r]: label_logprobs [r]. The
    states are fed back so that this can be done in parts: the logits of 512 rows and 60,000 words take up 120 MB.

    None of b, s, t and r may be 0; an input that is not needed has one row. At any precision of the weights it computes
    in float32.
    """
    dims = model.dims
    graph = GraphBuilder("attention", weights)
    writer = LayerWriter(graph, model, precision, ranges, computes_in=np.float32)
    ids = graph.input("input_ids", INT64, ["batch", "source"])
    mask = graph.input("attention_mask", INT32, ["batch", "source"])
    target_ids = graph.input("decoder_input_ids", INT64, ["batch", "target"])
    rows = graph.input("hidden_states", FLOAT, ["rows", dims.d_model])
    labels = graph.input("labels", INT64, ["rows"])
    heads = graph.input("heads", INT64, ["heads"])
    num_heads = writer.size(heads, 0)
    num_layers = {
        "encoder": dims.num_encoder_layers,
        "decoder": dims.num_decoder_layers,
        "cross": dims.num_decoder_layers,
    }
    layers = {kind: graph.input(f"{kind}_layers", INT64, [number]) for kind, number in num_layers.items()}
    num_sentences = writer.size(ids, 0)
    minus_infinity = graph.constant(-np.inf, np.float32)

    source_mask = writer.reshape(graph.op("Cast", mask, to=TensorProto.BOOL), num_sentences, 1, 1, -1)
    target_length = writer.size(target_ids, 1)
    square = graph.op("Concat", target_length, target_length, axis=0)
    causal = graph.op("Trilu", graph.op("Expand", graph.constant(1, np.int32), square), upper=0)
    causal = graph.op("Cast", causal, to=TensorProto.BOOL)
    scale = graph.constant(dims.d_head**-0.5, np.float32)
    biases = {"encoder": writer.sequence_bias("encoder", writer.size(ids, 1))}
    biases["decoder"] = writer.sequence_bias("decoder", target_length)
    weights_of: dict[str, list[str]] = {"encoder": [], "decoder": [], "cross": []}

    def attend(kind: str, allowed: str, projections: Sequence[str]) -> str:
        query, key, value = (writer.split_heads(p, num_sentences) for p in projections)
        scores = graph.op("MatMul", graph.op("Mul", query, scale), graph.op("Transpose", key, perm=[0, 1, 3, 2]))
        if bias := biases.get(kind):
            scores = graph.op("Add", scores, bias)
        softmax = graph.op("Softmax", graph.op("Where", allowed, scores, minus_infinity), axis=-1)
        layer = graph.constant([len(weights_of[kind])], np.int64)
        num_chosen = graph.op("Mul", graph.op("Gather", layers[kind], layer), num_heads)
        chosen = graph.op("Slice", heads, graph.constant([0], np.int64), num_chosen)
        weights_of[kind].append(graph.op("Gather", softmax, chosen, axis=1))
        mixed = graph.op("Transpose", graph.op("MatMul", softmax, value), perm=[0, 2, 1, 3])
        return writer.reshape(mixed, -1, dims.d_attention)

    hidden = writer.encoder_layers(
        writer.embed_sequences(ids, "source"), lambda qkv: attend("encoder", source_mask, graph.split(qkv, 3))
    )
    cross = graph.split(writer.cross_key_values(hidden), 2 * dims.num_decoder_layers)
    states = writer.decoder_layers(
        writer.embed_sequences(target_ids, "target"),
        lambda _, qkv: attend("decoder", causal, graph.split(qkv, 3)),
        lambda i, query: attend("cross", source_mask, (query, *cross[2 * i : 2 * i + 2])),
    )
    for kind, queries, keys in (
        ("encoder", "source", "source"),
        ("decoder", "target", "target"),
        ("cross", "target", "source"),
    ):
        for i, chosen in enumerate(weights_of[kind]):
            graph.output(f"{kind}_attentions.{i}", chosen, FLOAT, ["batch", f"{kind}_{i}_heads", queries, keys])
    states = writer.reshape(states, num_sentences, -1, dims.d_model)
    graph.output("decoder_hidden_states", states, FLOAT, ["batch", "target", dims.d_model])
    log_probs = graph.op("LogSoftmax", writer.logits(rows), axis=-1)
    log_probs = graph.op("GatherElements", log_probs, writer.reshape(labels, -1, 1), axis=1)
    graph.output("label_logprobs", writer.reshape(log_probs, -1), FLOAT, ["rows"])
    return graph
