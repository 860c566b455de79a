"""Reading an ONNX graph without running it, for comparison with a manifest.

The messages are those of onnx.proto with the fields that the exporter writes and no others. So a graph is read
completely: one that has any other field (a subgraph, a function, a sparse tensor) is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

_PACKAGE = "dragoman.bundle"  # not `onnx`, the name of another package
_SCALARS = {
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "float": descriptor_pb2.FieldDescriptorProto.TYPE_FLOAT,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}
# By message: the number and the type of each field; * is repeated. Enums are int64 on the wire.
_MESSAGES = {
    "Model": {
        "ir_version": (1, "int64"),
        "producer_name": (2, "string"),
        "graph": (7, "Graph"),
        "opset_import": (8, "OperatorSet*"),
    },
    "OperatorSet": {"domain": (1, "string"), "version": (2, "int64")},
    "Graph": {
        "node": (1, "Node*"),
        "name": (2, "string"),
        "initializer": (5, "Tensor*"),
        "input": (11, "ValueInfo*"),
        "output": (12, "ValueInfo*"),
    },
    "Node": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "op_type": (4, "string"),
        "attribute": (5, "Attribute*"),
        "domain": (7, "string"),
    },
    "Attribute": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "s": (4, "bytes"),
        "ints": (8, "int64*"),
        "type": (20, "int64"),
    },
    "Tensor": {
        "dims": (1, "int64*"),
        "data_type": (2, "int64"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "Entry*"),
        "data_location": (14, "int64"),
    },
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "ValueInfo": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int64"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "Dimension*")},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
}
# Fields of Attribute by its `type`.
_ATTRIBUTE_FIELDS = {1: "f", 2: "i", 3: "s", 7: "ints"}
_EXTERNAL = 1
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}
ONNX_NUMBERS = {name: number for number, name in DTYPES.items()}
BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Value:
    """A declared input or output of a graph."""

    dtype: str
    shape: tuple[int | str, ...]  # a string is an axis of any length

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant, in the graph itself or in a file beside it."""

    kind: str  # of DTYPES
    shape: tuple[int, ...]
    data: bytes  # empty where it is in a file
    file: str  # "" is the graph itself
    offset: int  # in the file, in bytes
    size: int  # in bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """That NumPy reads it as; bfloat16, which NumPy does not have, as its bits, uint16."""
        return np.dtype(np.uint16 if self.kind == BFLOAT16 else self.kind)

    @property
    def num_bytes(self) -> int:
        """Size by shape and type; exact, however large."""
        return self.dtype.itemsize * int(np.prod(np.array(self.shape, object)))


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. Names of other domains than ONNX's own stand before its name; an input that is left out is ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, float | int | bytes | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Graph:
    """The contents of a file, unchecked."""

    ir_version: int
    operator_sets: dict[str, int]  # version by domain; that of ONNX's own is ""
    inputs: dict[str, Value]
    outputs: dict[str, Value]
    tensors: dict[str, Tensor]
    nodes: tuple[Node, ...]


def read_graph(contents: bytes) -> Graph:
    """Raises ValueError where this is no graph, or has parts that no graph of a bundle has."""
    try:
        model = Model.FromString(contents)
        model.DiscardUnknownFields()
        if model.ByteSize() != len(contents):
            raise ValueError("it has fields of ONNX that no graph of a bundle has")
        return Graph(
            model.ir_version,
            dict(_named((entry.domain, entry.version) for entry in model.opset_import)),
            dict(_named(_values(model.graph.input))),
            dict(_named(_values(model.graph.output))),
            dict(_named((tensor.name, _tensor(tensor)) for tensor in model.graph.initializer)),
            tuple(_node(node) for node in model.graph.node),
        )
    except message.DecodeError as error:
        raise ValueError(f"it is no ONNX graph: {error}") from None


def _named(pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    seen = set()
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"it has two of the name {name!r:.80}")
        seen.add(name)
        yield name, value


def _values(infos: Any) -> Iterator[tuple[str, Value]]:
    for info in infos:
        tensor = info.type.tensor_type
        dims = (d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim)
        yield info.name, Value(_dtype(info.name, tensor.elem_type), tuple(dims))


def _tensor(tensor: Any) -> Tensor:
    kind, shape = _dtype(tensor.name, tensor.data_type), tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise ValueError(f"tensor {tensor.name!r:.80} has the shape {list(shape)!r:.80}")
    if tensor.data_location != _EXTERNAL:
        return Tensor(kind, shape, tensor.raw_data, "", 0, len(tensor.raw_data))
    entries = dict(_named((entry.key, entry.value) for entry in tensor.external_data))
    file, *numbers = (entries.pop(key, "") for key in ("location", "offset", "length"))
    if entries or not file or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ValueError(f"tensor {tensor.name!r:.80} is in no file: it needs a location, an offset and a length")
    return Tensor(kind, shape, b"", file, *map(int, numbers))


def _dtype(name: str, number: int) -> str:
    if number not in DTYPES:
        raise ValueError(f"tensor {name!r:.80} is of ONNX's type {number}, must be of {', '.join(DTYPES.values())}")
    return DTYPES[number]


def _node(node: Any) -> Node:
    attributes = dict(_named((attribute.name, _attribute(node, attribute)) for attribute in node.attribute))
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Node(operator, tuple(node.input), tuple(node.output), attributes)


def _attribute(node: Any, attribute: Any) -> float | int | bytes | tuple[int, ...]:
    field = _ATTRIBUTE_FIELDS.get(attribute.type)
    if field is None:
        raise ValueError(f"the attribute {attribute.name!r:.80} of an operator {node.op_type!r:.80} is no number")
    value = getattr(attribute, field)
    return tuple(value) if field == "ints" else value


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="dragoman/bundle.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = described.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            field.type = _SCALARS.get(kind, field.TYPE_MESSAGE)
            if kind not in _SCALARS:
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))


Model = _message_class()
"""The message of a whole file."""
