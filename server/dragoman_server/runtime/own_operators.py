"""Puts operators of our own in the place of ONNX Runtime's, in graphs for CPUs.

A bundle has ONNX Runtime's, which run anywhere and are what it was checked with. Ours compute the same in less time;
the sources kernels/*_operators.c say what they are given.

    GroupQueryAttention with a pool of keys and values              -> RowAttention, RowAttentionInt8
    LogSoftmax and the search for the best tokens                   -> BestTokens, LogProbs
    Add, LayerNormalization or SimplifiedLayerNormalization, and
      QuantizeLinear                                                -> NormQuantised
    QuickGelu or Relu, and QuantizeLinear                           -> SiluQuantised, ReluQuantised
    RowAttentionInt8 and QuantizeLinear                             -> RowAttentionQuantised
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman_server.bundle.graph import ONNX_NUMBERS, Model

DOMAIN = "dragoman"
# The sizes of heads, states and inner states are multiples of this: of the floats in the largest registers.
_LANES = 16
_ATTENTION = {ONNX_NUMBERS["float32"]: "RowAttention", ONNX_NUMBERS["int8"]: "RowAttentionInt8"}
_NORMS = {"LayerNormalization": 1, "SimplifiedLayerNormalization": 0}  # whether they take the mean away
_ACTIVATIONS = {"QuickGelu": "SiluQuantised", "Relu": "ReluQuantised"}
_FOUND = ("top_ids", "top_logprobs", "score_logprobs")
# Inputs of GroupQueryAttention: keys and values of the pool, the last positions of rows, what is added to scores.
_KEYS, _LAST, _BIAS = 3, 5, 10
_WEIGHT_SCALES = 3  # an input of products of int8
_NUM_OUTPUTS = 3  # of GroupQueryAttention where it writes to the pool
_BIAS_OF_OURS = 4
_FLOAT, _INT = 1, 2  # of AttributeProto.type


def with_own_operators(contents: bytes) -> bytes | None:
    """The graph with our operators; None where it has none and none has a place in it.

    Raises:
        LookupError, ValueError: it is not put together as the exporter does it.
    """
    model = Model.FromString(contents)
    rewriter = _Rewriter(model.graph)
    rewriter.replace_attention()
    if {"score_ids", "top_k"} <= {value.name for value in model.graph.input}:
        rewriter.replace_search()
    rewriter.fuse_quantised()
    if rewriter.has_replaced:
        import_own(model)
    has_own = any(known.domain == DOMAIN for known in model.opset_import)
    return bytes(model.SerializeToString()) if has_own else None


def import_own(model: Any) -> None:
    """Lets the model have our operators."""
    if all(known.domain != DOMAIN for known in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=1)


class _Rewriter:
    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.has_replaced = False

    # -- attention -----------------------------------------------------------------------------------------------

    def replace_attention(self) -> None:
        pools = {value.name: value.type.tensor_type for value in self._graph.input}
        for node in self._graph.node:
            if node.op_type != "GroupQueryAttention" or len(node.output) != _NUM_OUTPUTS:
                continue
            pool = pools.get(node.input[_KEYS])
            if pool is None or pool.elem_type not in _ATTENTION or pool.shape.dim[-1].dim_value % _LANES:
                continue
            inputs = [node.input[0], *node.input[_KEYS : _KEYS + 2], node.input[_LAST], *node.input[_BIAS : _BIAS + 1]]
            heads = {a.name: a.i for a in node.attribute}["num_heads"]
            self._turn(node, _ATTENTION[pool.elem_type], inputs, node.output, num_heads=heads)

    # -- the search ----------------------------------------------------------------------------------------------

    def replace_search(self) -> None:
        outputs = [output.name for output in self._graph.output]
        before = _needed(self._graph.node, outputs)
        makers = {name: node for node in self._graph.node for name in node.output}
        log_probs = makers["score_logprobs"].input[0]
        softmax = makers[log_probs]
        (logits,) = softmax.input
        # Of whole rows log-probs are still wanted: those of some rows.
        (gather,) = (node for node in self._graph.node if node.op_type == "Gather" and node.input[0] == log_probs)
        (rows,) = gather.output
        gather.input[0], gather.output[0] = logits, f"{rows}_logits"
        self._turn(softmax, "LogProbs", gather.output, [rows])
        searching = [makers[name] for name in _FOUND]
        nodes = [node for node in self._graph.node if node is not softmax and node not in searching]
        nodes.insert(nodes.index(gather) + 1, softmax)
        best = self._graph.node.add()
        self._turn(best, "BestTokens", [logits, "top_k", "score_ids"], _FOUND)
        after = _needed([*nodes, best], outputs)
        gone = {id(node) for node in before} - {id(node) for node in after}
        self._set_nodes(node for node in (*nodes, best) if id(node) not in gone)

    # -- what comes before a product of int8 ----------------------------------------------------------------------

    def fuse_quantised(self) -> None:
        uses = _Uses.of(self._graph)
        gone = set[int]()
        for node in self._graph.node:
            if node.op_type != "QuantizeLinear" or not self._is_scalar(node.input[1:], "float32", "uint8"):
                continue
            name = node.input[0]
            source = uses.makers.get(name)
            if source is None or id(source) in gone or name in uses.outputs:
                continue
            fused: list[Any] | None = None
            if source.op_type in _NORMS:
                fused = self._fuse_norm(source, node, uses)
            elif uses.num_takers[name] == 1 and source.op_type == "RowAttentionInt8":
                fused = self._fuse_attention(source, node)
            elif uses.num_takers[name] == 1 and source.op_type in _ACTIVATIONS:
                fused = self._fuse_activation(source, node, uses)
            if fused is not None:
                gone |= {id(node), *map(id, fused)}
        if gone:
            self._set_nodes(node for node in self._graph.node if id(node) not in gone)

    # Each makes one node of a source and of what quantises it, and tells which nodes beside the latter are gone with
    # it; None where there is no place for it.

    def _fuse_attention(self, source: Any, quantiser: Any) -> list[Any]:
        _, *quantisation = quantiser.input
        inputs = [*source.input[:_BIAS_OF_OURS], _optional(source.input, _BIAS_OF_OURS), *quantisation]
        outputs = [*quantiser.output, *source.output[1:]]
        self._turn(source, "RowAttentionQuantised", inputs, outputs, num_heads=source.attribute[0].i)
        return []

    def _fuse_activation(self, source: Any, quantiser: Any, uses: "_Uses") -> list[Any] | None:
        if not self._has_even_width(uses.makers.get(source.input[0])):
            return None
        if source.op_type == "QuickGelu" and source.attribute[0].f != 1.0:  # its alpha
            return None
        _, *quantisation = quantiser.input
        self._turn(source, _ACTIVATIONS[source.op_type], [source.input[0], *quantisation], quantiser.output)
        return []

    def _fuse_norm(self, source: Any, quantiser: Any, uses: "_Uses") -> list[Any] | None:
        if self._constants[source.input[1]].dims[0] % _LANES:
            return None
        (name, weight), bias = source.input[:2], _optional(source.input, 2)
        added = uses.makers.get(name)
        if added is not None and added.op_type == "Add" and not set(added.input) & set(self._constants):
            (left, right), gone = added.input, [added]
            total = name if uses.num_takers[name] > 1 or name in uses.outputs else ""
        else:
            left, right, total, gone = name, "", "", []
        (normed,), (quantised,) = source.output[:1], quantiser.output
        outputs = [quantised, "" if uses.num_takers[normed] == 1 else normed, total]
        while not outputs[-1]:
            outputs.pop()
        epsilon = {a.name: a.f for a in source.attribute}["epsilon"]
        inputs = [left, right, weight, bias, *quantiser.input[1:]]
        centred = _NORMS[source.op_type]
        self._turn(source, "NormQuantised", inputs, outputs, epsilon=epsilon, is_centred=centred)
        return gone

    def _is_scalar(self, names: Sequence[str], *dtypes: str) -> bool:
        """Whether these are constants of these types, and single numbers."""
        tensors = [self._constants.get(name) for name in names]
        return len(tensors) == len(dtypes) and all(
            tensor is not None and not tensor.dims and tensor.data_type == ONNX_NUMBERS[dtype]
            for tensor, dtype in zip(tensors, dtypes, strict=True)
        )

    def _has_even_width(self, product: Any) -> bool:
        """Whether this is a product that gives rows of such a size."""
        if product is None or product.op_type not in ("MatMulIntegerToFloat", "Int8Product"):
            return False
        return bool(self._constants[product.input[_WEIGHT_SCALES]].dims[-1] % _LANES == 0)

    # -- both ----------------------------------------------------------------------------------------------------

    def _turn(
        self, node: Any, kind: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: float | int
    ) -> None:
        """Makes one of our operators of a node."""
        inputs, outputs = list(inputs), list(outputs)
        node.op_type, node.domain = kind, DOMAIN
        node.input[:], node.output[:] = inputs, outputs
        del node.attribute[:]
        for name, value in attributes.items():
            if isinstance(value, float):
                node.attribute.add(name=name, f=value, type=_FLOAT)
            else:
                node.attribute.add(name=name, i=value, type=_INT)
        self.has_replaced = True

    def _set_nodes(self, nodes: Iterable[Any]) -> None:
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(kept)


@dataclass(frozen=True)
class _Uses:
    """Who makes and who takes the values of a graph."""

    makers: dict[str, Any]
    num_takers: Counter[str]  # inputs of nodes
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: Any) -> "_Uses":
        return cls(
            {name: node for node in graph.node for name in node.output},
            Counter(name for node in graph.node for name in node.input),
            frozenset(output.name for output in graph.output),
        )


def _optional(names: Sequence[str], place: int) -> str:
    """A name of an input that may be left out."""
    return names[place] if len(names) > place else ""


def _needed(nodes: Sequence[Any], names: Iterable[str]) -> list[Any]:
    """Those that these values are made by, in their order."""
    wanted, needed = set(names), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            needed.append(node)
    return needed[::-1]
