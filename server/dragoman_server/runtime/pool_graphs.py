"""Two graphs that belong to no model: they copy rows within a pool of keys and values, and a pool into a larger one.

Input and output are bound to the same memory, so that nothing else is copied. They take what is in the pool for int64,
whatever it is: CUDA's kernels copy an element at a time, and count them in 32 bits.
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
    shape: tuple[str | int, ...]


def move_graph() -> bytes:
    """Copies places of the pool to others.

    Inputs: pool [n, w]; moves [2, m, 1], from which places and to which; offsets [p], which are added to all of these.
    Output: moved, the pool. All places are read before any is written. CUDA's ScatterND has a thread for each place: so
    places are small, and many.
    """
    pool = _Tensor("pool", ("places", "width"))
    return _model(
        [pool, _Tensor("moves", (2, "moves", 1)), _Tensor("offsets", ("offsets",))],
        pool._replace(name="moved"),
        {"last": np.array([-1], np.int64)},
        [
            ("Split", ["moves"], ["from", "to"], {"axis": 0, "num_outputs": 2}),
            ("Add", ["from", "offsets"], ["sources"], {}),
            ("Add", ["to", "offsets"], ["targets"], {}),
            ("Unsqueeze", ["targets", "last"], ["indices"], {}),
            ("Gather", ["pool", "sources"], ["contents"], {}),
            ("ScatterND", ["pool", "indices", "contents"], ["moved"], {}),
        ],
    )


def grow_graph() -> bytes:
    """Copies a pool into the beginning of a larger one.

    Inputs: larger [n, H, C, w]; pool [n, H, c, w]. Output: grown, the larger one.
    """
    larger = _Tensor("larger", ("rows", "heads", "capacity", "width"))
    pool = _Tensor("pool", ("rows", "heads", "filled", "width"))
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
            described.elem_type = ONNX_NUMBERS["int64"]
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
