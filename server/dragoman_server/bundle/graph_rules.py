"""Rules for the graphs of a bundle, by its manifest, checked before ONNX Runtime opens them.

A graph of these operators terminates: there are no loops, and nothing is computed without an input. Only the replay of
the parity certificate shows whether its results are right.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.bundle.graph import BFLOAT16, Graph, Node, Tensor
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    CUDA_PRECISIONS,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    Precision,
)
from dragoman_server.bundle.rules import Rule, about, check
from dragoman_server.bundle.signatures import Signature, signature

# Of the vocabulary: tables for the output projection are padded to whole ones.
VOCABULARY_BLOCK = 64

_IR_VERSION = 10
_CPU_OPERATOR_SETS = {"": 21, "com.microsoft": 1}
_CUDA_OPERATOR_SETS = {"": 24, "com.microsoft": 1}
# Each with its attributes for the number of heads.
_ATTENTION_OPERATORS = {
    "Attention": ("q_num_heads", "kv_num_heads"),
    "com.microsoft.GroupQueryAttention": ("num_heads", "kv_num_heads"),
}
# The operators that the exporter writes, with their attributes.
_OPERATORS: dict[str, set[str]] = {
    "Abs": set(),
    "Add": set(),
    "Attention": {"kv_num_heads", "q_num_heads"},
    "Cast": {"to"},
    "Concat": {"axis"},
    "DequantizeLinear": {"axis"},
    "Div": set(),
    "Expand": set(),
    "Gather": {"axis"},
    "GatherElements": {"axis"},
    "GatherND": {"batch_dims"},
    "Gelu": {"approximate"},
    "Gemm": {"transB"},
    "com.microsoft.GroupQueryAttention": {
        "causal",
        "k_quant_type",
        "kv_cache_bit_width",
        "kv_num_heads",
        "num_heads",
        "v_quant_type",
    },
    "LayerNormalization": {"axis", "epsilon"},
    "LogSoftmax": {"axis"},
    "MatMul": set(),
    "com.microsoft.MatMulIntegerToFloat": set(),
    "Max": set(),
    "Min": set(),
    "Mod": set(),
    "Mul": set(),
    "QuantizeLinear": {"axis"},
    "com.microsoft.QuickGelu": {"alpha"},
    "ReduceMax": {"keepdims"},
    "Relu": set(),
    "Reshape": set(),
    "Shape": {"end", "start"},
    "SimplifiedLayerNormalization": {"axis", "epsilon"},
    "com.microsoft.SkipLayerNormalization": {"epsilon"},
    "com.microsoft.SkipSimplifiedLayerNormalization": {"epsilon"},
    "Slice": set(),
    "Softmax": {"axis"},
    "Split": {"axis", "num_outputs"},
    "Squeeze": set(),
    "Sub": set(),
    "TensorScatter": set(),
    "Tile": set(),
    "TopK": {"axis"},
    "Transpose": {"perm"},
    "Trilu": {"upper"},
    "Unsqueeze": set(),
    "Where": set(),
}
# Of keys and values.
_CACHE_TYPES: dict[Precision, str] = {"fp32": "float32", "int8": "float32", "fp16": "float16", "bf16": BFLOAT16}
# Operators of certain precisions.
_PRECISION_OPERATORS: dict[str, frozenset[Precision]] = {
    "Attention": CUDA_PRECISIONS,
    "DequantizeLinear": frozenset({"int8"}),
    "Gemm": frozenset({"fp32", *CUDA_PRECISIONS}),
    "com.microsoft.MatMulIntegerToFloat": frozenset({"int8"}),
    "QuantizeLinear": frozenset({"int8"}),
    "com.microsoft.SkipLayerNormalization": CUDA_PRECISIONS,
    "com.microsoft.SkipSimplifiedLayerNormalization": CUDA_PRECISIONS,
    "TensorScatter": CUDA_PRECISIONS,
}
# At most twice the exporter's number for a layer. ONNX Runtime takes minutes to open a graph of tens of thousands.
_MAX_LAYER_OPERATORS = 200
# A graph itself holds numbers and short lists of numbers.
_MAX_CONSTANT_BYTES = 256
# Of float16 and, under the type that NumPy reads its bits as, of bfloat16.
_INFINITY_BITS = {np.dtype(np.float16): 0x7C00, np.dtype(np.uint16): 0x7F80}
_SIGN_BIT = 0x8000
# Padding between two weights in their file, which are aligned for the widest vector loads.
_MAX_GAP_BYTES = 63


@dataclass(frozen=True)
class Sizes:
    """Sizes that the graphs have and no signature shows."""

    source_vocabulary_size: int
    target_vocabulary_size: int
    source_positions: int
    target_positions: int
    num_encoder_layers: int


@dataclass(frozen=True)
class _NodeRule:
    """A rule for operators; the demand follows "must" in the message."""

    operators: set[str]
    holds: Callable[[Node, Graph, Manifest], bool]
    demand: str


_SIZE_RULES: tuple[Rule[Sizes], ...] = (
    Rule(
        "architecture.num_encoder_layers",
        lambda number, sizes: number == sizes.num_encoder_layers,
        f"be {{0.num_encoder_layers}}, as {ENCODER_FILE} has layers",
    ),
    Rule(
        "architecture.vocabulary_size",
        lambda size, sizes: size == sizes.target_vocabulary_size,
        "be {0.target_vocabulary_size}, as the graphs have embeddings for a target",
    ),
    Rule(
        "limits.max_source_tokens",
        lambda limit, sizes: limit <= sizes.source_positions,
        "be at most {0.source_positions}, as the graphs have positions for a source",
    ),
    Rule(
        "limits.max_target_tokens",
        lambda limit, sizes: limit <= sizes.target_positions,
        "be at most {0.target_positions}, as the graphs have positions for a target",
    ),
    *(
        Rule[Sizes](
            name,
            lambda part, sizes: isinstance(part, str) or part < sizes.source_vocabulary_size,
            "be below {0.source_vocabulary_size}, as the graphs have embeddings for a source",
        )
        for name in (
            "eos_token_id",
            "pad_token_id",
            "framing.source_prefix[*]",
            "framing.source_suffix[*]",
            "parity.golden[*].source_ids[*]",
        )
    ),
)


def check_graphs(graphs: Mapping[str, Graph], manifest: Manifest) -> Sizes:
    """Compares the graphs, by file name, with the manifest.

    Raises:
        ValueError: naming the file and the first fault.
    """
    cache = _CACHE_TYPES[manifest.precision]
    # A calibrated int8 graph keeps keys and values in int8.
    state = graphs[DECODER_STEP_FILE].inputs.get(manifest.state.self_kv[0])
    if manifest.precision == "int8" and state is not None and state.dtype == "int8":
        cache = "int8"
    for file, graph in graphs.items():
        with about(file):
            # Attention is computed on the CPU whatever the precision.
            is_for_cuda = manifest.precision in CUDA_PRECISIONS and file != ATTENTION_FILE
            _check_operator_sets(graph, _CUDA_OPERATOR_SETS if is_for_cuda else _CPU_OPERATOR_SETS)
            _check_signature(graph, signature(file, manifest.architecture, manifest.state, cache))
            _check_tensors(graph, manifest)
            _check_nodes(graph, manifest)
    sizes = _sizes(graphs, manifest)
    with about(MANIFEST_FILE):
        check(_SIZE_RULES, manifest, sizes)
    return sizes


def weights_size(graphs: Mapping[str, Graph]) -> int:
    """The size of the file of weights in bytes; the graphs use every byte.

    Raises:
        ValueError: two weights overlap, there is a gap, or graphs differ in one of the same name.
    """
    end = 0
    for name, tensor in weight_tensors(graphs).items():
        if not 0 <= tensor.offset - end <= _MAX_GAP_BYTES:
            raise ValueError(f"weight {name!r:.80} begins at byte {tensor.offset}, the one before it ends at {end}")
        end = tensor.offset + tensor.size
    return end


def check_weights(weights: Mapping[str, NDArray[Any]]) -> None:
    """Raises ValueError naming a weight with values that are not numbers."""
    for name, values in weights.items():
        _check_finite(name, values)


def weight_tensors(graphs: Mapping[str, Graph]) -> dict[str, Tensor]:
    """All that is in the file of weights, by name, in its order there.

    Raises:
        ValueError: graphs differ in one of the same name.
    """
    weights: dict[str, Tensor] = {}
    for graph in graphs.values():
        for name, tensor in graph.tensors.items():
            if tensor.file and weights.setdefault(name, tensor) != tensor:
                raise ValueError(f"weight {name!r:.80} is not the same for all graphs")
    return dict(sorted(weights.items(), key=lambda item: item[1].offset))


def _check_operator_sets(graph: Graph, expected: Mapping[str, int]) -> None:
    if graph.ir_version != _IR_VERSION or graph.operator_sets != expected:
        raise ValueError(
            f"its IR version is {graph.ir_version} and its operator sets are {graph.operator_sets!r:.80}, must be "
            f"{_IR_VERSION} and {expected}"
        )


def _check_signature(graph: Graph, expected: Signature) -> None:
    for kind, found, values in (
        ("input", graph.inputs, expected.inputs),
        ("output", graph.outputs, expected.outputs),
    ):
        if unknown := sorted(found.keys() - values.keys()):
            raise ValueError(f"it has the {kind} {unknown[0]!r:.80}, of which {MANIFEST_FILE} knows nothing")
        for name, value in values.items():
            if found.get(name) != value:
                raise ValueError(
                    f"its {kind} {name} is {found.get(name, 'missing')!s:.80}; by architecture and precision in "
                    f"{MANIFEST_FILE} it is {value}"
                )


def _check_tensors(graph: Graph, manifest: Manifest) -> None:
    architecture = manifest.architecture
    width = architecture.num_heads * architecture.d_head
    # Sizes of axes: those of the largest tensors, the vocabulary padded to whole blocks.
    padded_size = architecture.vocabulary_size + VOCABULARY_BLOCK - 1
    largest = max(padded_size, 2 * architecture.num_decoder_layers * width, 3 * width, architecture.d_model)
    for name, tensor in graph.tensors.items():
        if name in graph.inputs or 0 in tensor.shape:
            raise ValueError(f"tensor {name!r:.80} is an input too, or empty")
        if tensor.size != tensor.num_bytes:
            raise ValueError(f"tensor {name!r:.80} has {tensor.size} bytes; its shape needs {tensor.num_bytes}")
        if tensor.file:
            if tensor.file != WEIGHTS_FILE:
                raise ValueError(f"tensor {name!r:.80} is in {tensor.file!r:.80}, must be in {WEIGHTS_FILE}")
            continue
        if tensor.size > _MAX_CONSTANT_BYTES:
            raise ValueError(f"tensor {name!r:.80} has {tensor.size} bytes, must be in {WEIGHTS_FILE}")
        _check_finite(name, _constant(tensor))
        if tensor.dtype.kind == "i" and not (abs(_constant(tensor).astype(float)) <= largest).all():
            raise ValueError(f"tensor {name!r:.80} has a number beyond {largest}, the length of the longest axis")


def _check_finite(name: str, values: NDArray[Any]) -> None:
    """Raises ValueError where a number is infinite or none; minus infinity, which masks, may be."""
    if values.dtype in _INFINITY_BITS:
        # NumPy reads a value of half precision in ten times as long, and has no bfloat16.
        infinity, bits = _INFINITY_BITS[values.dtype], values.view(np.uint16)
        is_finite = bits.view(np.int16).max() < infinity and bits.max() <= _SIGN_BIT | infinity
    else:
        is_finite = values.dtype.kind != "f" or values.max() < np.inf  # a comparison with NaN is false
    if not is_finite:
        raise ValueError(f"tensor {name!r:.80} has values that are not finite")


def _check_nodes(graph: Graph, manifest: Manifest) -> None:
    layers = manifest.architecture.num_encoder_layers + manifest.architecture.num_decoder_layers
    if len(graph.nodes) > (most := _MAX_LAYER_OPERATORS * (layers + 1)):
        raise ValueError(f"it has {len(graph.nodes)} operators; with {layers} layers it has at most {most}")
    known = {*graph.inputs, *graph.tensors, ""}
    varying = set(graph.inputs)  # values that depend on inputs
    for node in graph.nodes:
        for fault in _faults(node, graph, manifest):
            raise ValueError(f"operator {node.operator!r:.80}, which makes {node.outputs!r:.80}, {fault}")
        if unknown := [name for name in node.inputs if name not in known]:
            raise ValueError(f"operator {node.operator} reads {unknown[0]!r:.80}, which nothing before it makes")
        made = {name for name in node.outputs if name}  # others are left out
        if not made or not known.isdisjoint(made):
            raise ValueError(f"operator {node.operator} makes {node.outputs!r:.80}: nothing, or what there is already")
        if varying.isdisjoint(node.inputs) and not _is_weight_in_another_type(node, graph):
            # ONNX Runtime would compute it when it opens the graph, which may take for ever.
            raise ValueError(f"operator {node.operator}, which makes {node.outputs!r:.80}, depends on no input")
        known |= made
        varying |= made
    if missing := sorted(graph.outputs.keys() - varying):
        raise ValueError(f"nothing makes its output {missing[0]}")


def _is_weight_in_another_type(node: Node, graph: Graph) -> bool:
    return node.operator == "Cast" and all(name in graph.tensors and graph.tensors[name].file for name in node.inputs)


def _faults(node: Node, graph: Graph, manifest: Manifest) -> Iterator[str]:
    if node.operator not in _OPERATORS:
        yield "is none of those that the graph of a bundle may have"
        return
    if manifest.precision not in _PRECISION_OPERATORS.get(node.operator, {manifest.precision}):
        yield f"is none of a graph at {manifest.precision}, which is the precision in {MANIFEST_FILE}"
    if unknown := sorted(node.attributes.keys() - _OPERATORS[node.operator]):
        yield f"has the attribute {unknown[0]!r:.80}"
    for rule in _NODE_RULES:
        if node.operator in rule.operators and not rule.holds(node, graph, manifest):
            yield f"must {rule.demand}"


def _constant(tensor: Tensor) -> NDArray[Any]:
    return np.frombuffer(tensor.data, tensor.dtype)


def _divides_by_a_constant(node: Node, graph: Graph, _: Manifest) -> bool:
    divisor = graph.tensors.get(node.inputs[1]) if len(node.inputs) == 2 else None
    return divisor is not None and not divisor.file and bool((_constant(divisor) > 0).all())


_NODE_RULES = (
    # The least integer divided by -1 ends the process by a signal.
    _NodeRule({"Div", "Mod"}, _divides_by_a_constant, "divide by a constant above 0"),
    _NodeRule(
        {"Expand", "Tile"},
        lambda node, graph, _: graph.tensors.keys().isdisjoint(node.inputs[1:]),
        "take its shape from the inputs of the graph",
    ),
    _NodeRule(
        {*_ATTENTION_OPERATORS},
        lambda node, _, manifest: all(
            node.attributes.get(name) == manifest.architecture.num_heads for name in _ATTENTION_OPERATORS[node.operator]
        ),
        f"have architecture.num_heads heads, as {MANIFEST_FILE} says",
    ),
)


def _sizes(graphs: Mapping[str, Graph], manifest: Manifest) -> Sizes:
    width = manifest.architecture.d_model

    def rows(file: str, names: Sequence[str]) -> int:
        with about(file):
            found = {name: graphs[file].tensors[name].shape for name in names if name in graphs[file].tensors}
            # Where positions are relative, there is a list of all of them.
            if len(found) != 1 or any(
                shape[1:] != (() if name == "places" else (width,)) for name, shape in found.items()
            ):
                raise ValueError(f"it must have one table of {width} columns among {', '.join(names)}")
            return next(iter(found.values()))[0]

    def fewest_rows(file: str, *names: str) -> int:
        """Of the table that has one of these names, in this graph and the attention graph."""
        return min(rows(each, names) for each in (file, ATTENTION_FILE) if each in graphs)

    def tokens(file: str, side: str) -> int:
        names = (f"{owner}_embedding.{kind}" for owner in ("shared", side) for kind in ("weight", "weight_int8"))
        number, of_target = fewest_rows(file, *names), manifest.architecture.vocabulary_size
        is_for_targets = side == "target" or "shared_embedding.weight" in graphs[file].tensors
        # A table that the output projection uses, too, is padded to whole blocks.
        return of_target if is_for_targets and number == of_target + -of_target % VOCABULARY_BLOCK else number

    def positions(file: str, side: str) -> int:
        return fewest_rows(file, "positions", f"{side}_positions", "places")

    return Sizes(
        source_vocabulary_size=tokens(ENCODER_FILE, "source"),
        target_vocabulary_size=tokens(DECODER_STEP_FILE, "target"),
        source_positions=positions(ENCODER_FILE, "source"),
        target_positions=positions(DECODER_STEP_FILE, "target"),
        num_encoder_layers=sum(node.operator in _ATTENTION_OPERATORS for node in graphs[ENCODER_FILE].nodes),
    )
