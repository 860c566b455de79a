"""Puts operators of our own in the place of ONNX Runtime's, in the graphs of a decoding step on CPUs.

A bundle has ONNX Runtime's, which run anywhere and are what it was checked with. Ours compute the same, many times as
fast; kernels/operators.c says what they are given.

    GroupQueryAttention with a pool of keys and values  -> RowAttention, RowAttentionInt8
    LogSoftmax and the search for the best tokens       -> BestTokens, LogProbs
"""

from collections.abc import Iterable
from typing import Any

from dragoman_server.bundle.graph import ONNX_NUMBERS, Model

DOMAIN = "dragoman"
_ATTENTION = {ONNX_NUMBERS["float32"]: "RowAttention", ONNX_NUMBERS["int8"]: "RowAttentionInt8"}
_FOUND = ("top_ids", "top_logprobs", "score_logprobs")
# The size of a head is a multiple of this: of the floats in the largest registers.
_LANES = 16
# Inputs of GroupQueryAttention: keys and values of the pool, the last positions of rows, what is added to scores.
_KEYS, _LAST, _BIAS = 3, 5, 10
_NUM_OUTPUTS = 3  # where it writes to the pool


def with_own_operators(contents: bytes) -> bytes | None:
    """The graph with our operators; None where none has a place in it."""
    model = Model.FromString(contents)
    replaced = _replace_attention(model.graph)
    if {"score_ids", "top_k"} <= {value.name for value in model.graph.input}:
        _replace_search(model.graph)
        replaced = True
    if not replaced:
        return None
    model.opset_import.add(domain=DOMAIN, version=1)
    return bytes(model.SerializeToString())


def _replace_attention(graph: Any) -> bool:
    """Whether there was any."""
    pools = {value.name: value.type.tensor_type for value in graph.input}
    replaced = False
    for node in graph.node:
        pool = pools.get(node.input[_KEYS]) if node.op_type == "GroupQueryAttention" else None
        if pool is None or len(node.output) != _NUM_OUTPUTS or pool.elem_type not in _ATTENTION:
            continue
        if pool.shape.dim[-1].dim_value % _LANES:
            continue
        inputs = [node.input[0], *node.input[_KEYS : _KEYS + 2], node.input[_LAST], *node.input[_BIAS : _BIAS + 1]]
        node.op_type, node.domain, replaced = _ATTENTION[pool.elem_type], DOMAIN, True
        _set(node.input, inputs)
        _set(node.attribute, [attribute for attribute in node.attribute if attribute.name == "num_heads"])
    return replaced


def _replace_search(graph: Any) -> None:
    makers = {name: node for node in graph.node for name in node.output}
    log_probs = makers["score_logprobs"].input[0]
    softmax = makers[log_probs]
    (logits,) = softmax.input
    # Of whole rows log-probs are still wanted: those of some rows.
    (gather,) = (node for node in graph.node if node.op_type == "Gather" and node.input[0] == log_probs)
    (rows,) = gather.output
    gather.input[0], gather.output[0] = logits, f"{rows}_logits"
    softmax.input[0], softmax.output[0] = gather.output[0], rows
    softmax.op_type, softmax.domain = "LogProbs", DOMAIN
    _set(softmax.attribute, [])
    nodes = [node for node in graph.node if node is not softmax and not set(node.output) & set(_FOUND)]
    nodes.insert(nodes.index(gather) + 1, softmax)
    graph.node.add(op_type="BestTokens", domain=DOMAIN, input=[logits, "top_k", "score_ids"], output=_FOUND)
    _set(graph.node, _needed([*nodes, graph.node[-1]], {output.name for output in graph.output}))


def _needed(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """Those that these values are made by, in their order."""
    needed = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            needed.append(node)
    return needed[::-1]


def _set(repeated: Any, values: Iterable[Any]) -> None:
    """Replaces what is in a repeated field."""
    kept = [value if isinstance(value, str) else type(value).FromString(value.SerializeToString()) for value in values]
    del repeated[:]
    repeated.extend(kept)
