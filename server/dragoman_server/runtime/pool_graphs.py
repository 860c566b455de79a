"""Two graphs that belong to no model: they copy rows within a pool of keys and values, and a pool into a larger one.

Input and output are bound to the same memory, so that nothing else is copied.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_server.bundle.graph import ONNX_NUMBERS, Model

_IR_VERSION, _OPSET = 10, 24
_INT = 2  # of AttributeProto.type


_Node = tuple[str, Sequence[str], Sequence[str], Mapping[str, int]]


class _Tensor(NamedTuple):
    name: str
    element_type: int
    shape: tuple[str | int, ...]


def move_graph(element_type: int) -> bytes:
    """Copies rows to others.

    Inputs: pool [n, H, C, K]; moves int64 [2, m], from which rows and to which. Output: moved, the pool.
    Rows are read before any is written.
    """
    shape = ("rows", "heads", "capacity", "size")
    return _model(
        [_Tensor("pool", element_type, shape), _Tensor("moves", ONNX_NUMBERS["int64"], (2, "moves"))],
        _Tensor("moved", element_type, shape),
        {"first": np.array([0], np.int64), "last": np.array([-1], np.int64)},
        [
            ("Split", ["moves"], ["source_row", "target_row"], {"axis": 0, "num_outputs": 2}),
            ("Squeeze", ["source_row", "first"], ["sources"], {}),
            ("Squeeze", ["target_row", "first"], ["targets"], {}),
            ("Unsqueeze", ["targets", "last"], ["places"], {}),
            ("Gather", ["pool", "sources"], ["contents"], {}),
            ("ScatterND", ["pool", "places", "contents"], ["moved"], {}),
        ],
    )


def grow_graph(element_type: int) -> bytes:
    """Copies a pool into the beginning of a larger one.

    Inputs: larger [n, H, C, K]; pool [n, H, c, K]. Output: grown, the larger one.
    """
    larger = _Tensor("larger", element_type, ("rows", "heads", "capacity", "size"))
    pool = _Tensor("pool", element_type, ("rows", "heads", "filled", "size"))
    nodes: list[_Node] = [("TensorScatter", ["larger", "pool"], ["grown"], {})]
    return _model([larger, pool], larger._replace(name="grown"), {}, nodes)


def _model(
    inputs: Sequence[_Tensor], output: _Tensor, constants: Mapping[str, NDArray[np.int64]], nodes: Sequence[_Node]
) -> bytes:
    model = Model(ir_version=_IR_VERSION)
    model.opset_import.add(domain="", version=_OPSET)
    model.graph.name = output.name
    for infos, tensors in ((model.graph.input, inputs), (model.graph.output, [output])):
        for tensor in tensors:
            described = infos.add(name=tensor.name).type.tensor_type
            described.elem_type = tensor.element_type
            for size in tensor.shape:
                described.shape.dim.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))
    for name, array in constants.items():
        number = ONNX_NUMBERS[array.dtype.name]
        model.graph.initializer.add(name=name, data_type=number, dims=array.shape, raw_data=array.tobytes())
    for kind, read, written, attributes in nodes:
        node = model.graph.node.add(op_type=kind, input=read, output=written)
        for name, value in attributes.items():
            node.attribute.add(name=name, i=value, type=_INT)
    return bytes(model.SerializeToString())
