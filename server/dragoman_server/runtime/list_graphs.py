"""The step graph of a bundle in two parts, the second of which may look at a part of the vocabulary.

    layers            all but the output projection: hidden states, and the state
    projection        hidden states -> the best tokens of a vocabulary whose weights are in the session
    list_projection   the same of lists: each row has one of its own, and the weights are an input, by token

They are made from the graph that the exporter wrote and the server has checked, operator by operator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dragoman_server.bundle.graph import ONNX_NUMBERS, Model
from dragoman_server.bundle.graph_rules import VOCABULARY_BLOCK
from dragoman_server.runtime.own_operators import DOMAIN

HIDDEN = "hidden_states"
BIAS = "head_bias"  # a weight of both projections
# Inputs of the list projection: int32 [rows, n], -1 behind the tokens of a row; and [V, D].
LISTS, LIST_WEIGHTS = "lists", "list_weights"
_EXTERNAL = 1  # ONNX's number of a tensor in a file
_PRODUCTS = ("MatMulIntegerToFloat", "Gemm")


@dataclass(frozen=True)
class StepParts:
    """The parts as ONNX files, and the names of the output projection's weights in the step graph.

    `scale` is "" where the weights are floats, `bias` where there is none. Both projections have one, called BIAS.
    """

    layers: bytes
    projection: bytes
    list_projection: bytes
    weight: str
    scale: str
    bias: str


def split_step(contents: bytes) -> StepParts:
    """Splits a step graph for CPUs.

    Raises:
        ValueError: it does not end as the exporter ends it.
    """
    model = Model.FromString(contents)
    makers = {name: node for node in model.graph.node for name in node.output}
    (softmax,) = (node for node in model.graph.node if node.op_type == "LogSoftmax")
    (logits,) = softmax.input
    product = makers[logits]
    while product.op_type not in _PRODUCTS:
        product = makers[product.input[0]]  # of int8 by row: what it is scaled by, and its bias
    hidden = product.input[0] if product.op_type == "Gemm" else makers[product.input[0]].input[0]
    state = [value.name for value in model.graph.output if value.name.startswith("present.")]
    layers = _needed(model, [hidden, *state])
    head = [node for node in _needed(model, [logits]) if node not in layers]
    return _Splitter(model, layers, head, hidden, logits, product).parts()


def _needed(model: Any, names: Iterable[str]) -> list[Any]:
    """The nodes that make these values, in their order."""
    wanted, nodes = set(names), []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


class _Splitter:
    def __init__(self, model: Any, layers: list[Any], head: list[Any], hidden: str, logits: str, product: Any) -> None:
        self._model, self._layers, self._head = model, layers, head
        self._hidden, self._logits, self._product = hidden, logits, product
        self._is_float = product.op_type == "Gemm"
        adds = [node for node in head if node.op_type == "Add"]
        biases = [*product.input[2:3]] if self._is_float else [*product.input[6:7], *(add.input[1] for add in adds)]
        self._bias = biases[0] if biases else ""

    def parts(self) -> StepParts:
        return StepParts(
            self._layers_graph(),
            self._projection(),
            self._list_projection(),
            weight=self._product.input[1],
            scale="" if self._is_float else self._product.input[3],
            bias=self._bias,
        )

    # -- the layers ----------------------------------------------------------------------------------------------

    def _layers_graph(self) -> bytes:
        graph = self._new("decoder_layers", self._layers)
        kept = {name for node in self._layers for name in node.input}
        graph.graph.input.extend(value for value in self._model.graph.input if value.name in kept)
        graph.graph.output.extend(v for v in self._model.graph.output if v.name.startswith("present."))
        for node in graph.graph.node:
            _rename(node, self._hidden, HIDDEN)
        _declare(graph.graph.output, HIDDEN, "float32", ["batch", self._width])
        self._add_constants(graph)
        return bytes(graph.SerializeToString())

    @property
    def _width(self) -> int:
        dims = self._tensor(self._product.input[1]).dims
        return int(dims[1] if self._is_float else dims[0])

    # -- the projections -----------------------------------------------------------------------------------------

    def _projection(self) -> bytes:
        graph = self._new("projection", self._head)
        for node in graph.graph.node:
            _rename(node, self._hidden, HIDDEN)
        writer = _Writer(graph)
        return self._finished(graph, writer, self._with_bias(graph, writer))

    def _list_projection(self) -> bytes:
        """With the product of ours that reads the weights of each row's tokens alone."""
        if self._is_float:
            nodes, kind, inputs = [], "ListProduct", [HIDDEN, LIST_WEIGHTS]
        else:
            quantised, _, scale, weight_scale, zero = self._product.input[:5]
            (result,) = self._product.output
            by_row = [node.input[1] for node in self._head if node.op_type == "Mul" and node.input[0] == result]
            scales = by_row[0] if by_row else scale
            nodes = [node for node in _needed(self._model, [quantised, scales]) if node not in self._layers]
            kind, inputs = "ListProductInt8", [quantised, scales, zero, LIST_WEIGHTS, weight_scale]
        graph = self._new("list_projection", nodes)
        for node in graph.graph.node:
            _rename(node, self._hidden, HIDDEN)
        graph.opset_import.add(domain=DOMAIN, version=1)
        _declare(graph.graph.input, LISTS, "int32", ["batch", "candidates"])
        _declare(graph.graph.input, LIST_WEIGHTS, "float32" if self._is_float else "int8", ["vocabulary", self._width])
        writer, logits = _Writer(graph), "list_logits"
        writer.node(kind, [*inputs, BIAS, LISTS], [logits], DOMAIN)
        return self._finished(graph, writer, logits)

    def _finished(self, graph: Any, writer: "_Writer", logits: str) -> bytes:
        """Searches the logits, and declares what the projection takes and gives."""
        values = graph.graph.input
        _declare(values, HIDDEN, "float32", ["batch", self._width])
        log_probs = writer.op("LogSoftmax", logits, axis=-1)
        _declare(values, "score_ids", "int64", ["batch", 1])
        _declare(values, "top_k", "int64", [1])
        _declare(values, "all_rows", "int64", ["all"])
        writer.top(log_probs)
        writer.node("GatherElements", [log_probs, "score_ids"], ["score_logprobs"], axis=1)
        for name, source in (("all_logits", logits), ("all_logprobs", log_probs)):
            writer.node("Gather", [source, "all_rows"], [name])
            _declare(graph.graph.output, name, "float32", ["all", "tokens"])
        for name, kind, width in (
            ("top_ids", "int64", "k"),
            ("top_logprobs", "float32", "k"),
            ("score_logprobs", "float32", 1),
        ):
            _declare(graph.graph.output, name, kind, ["batch", width])
        self._add_constants(graph)
        self._add_bias(graph)
        return bytes(graph.SerializeToString())

    def _with_bias(self, graph: Any, writer: "_Writer") -> str:
        """Gives the product the bias BIAS in place of its own, if it has one; returns the logits."""
        product, is_scaled_by_row = _product(graph), self._logits not in self._product.output
        if self._is_float:
            del product.input[2:]
            product.input.append(BIAS)
        elif not is_scaled_by_row:
            del product.input[5:]
            product.input.extend(["", BIAS])
        elif adds := [node for node in graph.graph.node if node.op_type == "Add"]:
            adds[-1].input[1] = BIAS
        else:
            return writer.op("Add", self._logits, BIAS)
        return self._logits

    # -- both ----------------------------------------------------------------------------------------------------

    def _new(self, name: str, nodes: Sequence[Any]) -> Any:
        model = Model(ir_version=self._model.ir_version, producer_name=self._model.producer_name)
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = name
        model.graph.node.extend(nodes)
        return model

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self._model.graph.initializer if tensor.name == name)

    def _add_bias(self, model: Any) -> None:
        """As a weight in the file of weights, though it is given from memory, as all are."""
        weight = self._tensor(self._product.input[1])
        bias = model.graph.initializer.add(name=BIAS, data_type=ONNX_NUMBERS["float32"], data_location=_EXTERNAL)
        bias.dims.append(weight.dims[0 if self._is_float else 1])
        for key, value in (("location", weight.external_data[0].value), ("offset", "0")):
            bias.external_data.add(key=key, value=value)
        bias.external_data.add(key="length", value=str(4 * bias.dims[0]))

    def _add_constants(self, model: Any) -> None:
        """Those of the step graph that the nodes read."""
        read = {name for node in model.graph.node for name in node.input}
        known = {tensor.name for tensor in model.graph.initializer}
        model.graph.initializer.extend(
            tensor for tensor in self._model.graph.initializer if tensor.name in read and tensor.name not in known
        )


def _product(model: Any) -> Any:
    (product,) = (node for node in model.graph.node if node.op_type in _PRODUCTS)
    return product


class _Writer:
    """Appends nodes to a graph."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph

    def node(
        self, kind: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: int
    ) -> None:
        node = self._graph.node.add(op_type=kind, domain=domain)
        node.input.extend(inputs)
        node.output.extend(outputs)
        for name, value in attributes.items():
            node.attribute.add(name=name, i=value, type=2)

    def op(self, kind: str, *inputs: str, **attributes: int) -> str:
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Iterable[str], num_outputs: int, **attributes: int) -> list[str]:
        number = len(self._graph.node)
        outputs = [f"head_{kind}_{number}_{i}" for i in range(num_outputs)]
        self.node(kind, inputs, outputs, "", **attributes)
        return outputs

    def constant(self, values: Sequence[int] | int) -> str:
        array = np.array(values, np.int64)
        name = f"head_{'_'.join(map(str, array.reshape(-1)))}_{array.ndim}"
        if all(tensor.name != name for tensor in self._graph.initializer):
            tensor = self._graph.initializer.add(name=name, data_type=ONNX_NUMBERS["int64"], raw_data=array.tobytes())
            tensor.dims.extend(array.shape)
        return name

    def top(self, log_probs: str) -> None:
        """Log-probs of whole blocks -> top_ids, which are places among them, and top_logprobs, as in the step graph."""
        last, block = self.constant([-1]), self.constant(VOCABULARY_BLOCK)
        blocks = self.op("Reshape", log_probs, self.constant([0, -1, VOCABULARY_BLOCK]))
        maxima = self.op("ReduceMax", blocks, last, keepdims=0)
        num_blocks = self.op("Min", "top_k", self.op("Shape", maxima, start=1, end=2))
        _, chosen = self.ops("TopK", [maxima, num_blocks], 2, axis=-1)
        candidates = self.op("GatherND", blocks, self.op("Unsqueeze", chosen, last), batch_dims=1)
        candidates = self.op("Reshape", candidates, self.constant([0, -1]))
        places = "head_best_places"
        self.node("TopK", [candidates, "top_k"], ["top_logprobs", places], axis=-1)
        first = self.op("GatherElements", chosen, self.op("Div", places, block), axis=1)
        self.node("Add", [self.op("Mul", first, block), self.op("Mod", places, block)], ["top_ids"])


def _rename(node: Any, name: str, new: str) -> None:
    for names in (node.input, node.output):
        for i, found in enumerate(names):
            if found == name:
                names[i] = new


def _declare(values: Any, name: str, kind: str, shape: Iterable[int | str]) -> None:
    tensor = values.add(name=name).type.tensor_type
    tensor.elem_type = ONNX_NUMBERS[kind]
    for size in shape:
        dim = tensor.shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
