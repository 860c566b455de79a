"""A thin layer over `onnx.helper`: nodes by call, weights in one external file that several graphs share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET = 21
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
_ALIGNMENT = 64  # bytes; that of the widest vector loads


class WeightFile:
    """The tensors of all graphs of a bundle, each stored once under its name, in the order of first use.

    They are written as they come, since a large model is not to be in memory twice.

    Args:
        file_name: by which graphs refer to the file.
        folder: where there is no such file yet; None: nothing is written.
    """

    def __init__(self, file_name: str, folder: Path | None = None) -> None:
        self.file_name, self._folder = file_name, folder
        self._tensors: dict[str, TensorProto] = {}
        self._size = 0

    def add(self, name: str, make: Callable[[], NDArray[np.generic]]) -> TensorProto:
        """Returns the reference to put into a graph; the same name always means the same tensor, which is made once."""
        if name in self._tensors:
            return self._tensors[name]
        array = np.ascontiguousarray(make())
        padding = -self._size % _ALIGNMENT
        tensor = TensorProto(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), data_location=TensorProto.EXTERNAL
        )
        tensor.dims.extend(array.shape)
        entries = {"location": self.file_name, "offset": self._size + padding, "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        if self._folder is not None:
            with (self._folder / self.file_name).open("ab") as file:
                file.write(bytes(padding))
                file.write(array.reshape(-1).view(np.uint8).data)
        self._size += padding + array.nbytes
        self._tensors[name] = tensor
        return tensor


class GraphBuilder:
    """One ONNX graph under construction. Tensors are named by strings; `op` appends a node and returns its output."""

    def __init__(self, name: str, weights: WeightFile, opset: int = OPSET) -> None:
        self._name = name
        self._weights = weights
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: int, shape: Sequence[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, value: str, dtype: int, shape: Sequence[str | int]) -> None:
        """Declares `value` an output of the graph, under its public name."""
        for node in self._nodes:
            if value in node.output:
                node.output[list(node.output).index(value)] = name
            for i, used in enumerate(node.input):
                if used == value:
                    node.input[i] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def weight(self, name: str, make: Callable[[], NDArray[np.generic]]) -> str:
        """A large constant, kept in the shared weight file; made if it is not there yet."""
        self._initializers[name] = self._weights.add(name, make)
        return name

    def constant(self, value: object, dtype: type[np.generic]) -> str:
        """A small constant, kept in the graph; equal ones are one initializer."""
        array = np.asarray(value, dtype=dtype)
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.flatten()))}"
        self._initializers[name] = onnx.numpy_helper.from_array(array, name)
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        return self.ops(kind, inputs, 1, domain, **attributes)[0]

    def ops(
        self, kind: str, inputs: Iterable[str], num_outputs: int, domain: str = "", **attributes: object
    ) -> list[str]:
        """Appends a node with several outputs; an empty string stands for an input left out."""
        outputs = [f"{kind}_{len(self._nodes)}_{i}" for i in range(num_outputs)]
        self.node(kind, inputs, outputs, domain, **attributes)
        return outputs

    def node(
        self, kind: str, inputs: Iterable[str], outputs: Iterable[str], domain: str = "", **attributes: object
    ) -> None:
        """Appends a node whose outputs have names already; an empty string stands for one left out."""
        node = helper.make_node(kind, list(inputs), list(outputs), domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)

    def split(self, value: str, num_parts: int, axis: int = 1) -> list[str]:
        """Equal parts of a tensor."""
        outputs = [f"Split_{len(self._nodes)}_{i}" for i in range(num_parts)]
        self._nodes.append(helper.make_node("Split", [value], outputs, axis=axis, num_outputs=num_parts))
        return outputs

    def to_bytes(self) -> bytes:
        """The graph as ONNX, with references into the weight file."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=10,
            producer_name="dragoman-export",
        )
        return model.SerializeToString()

    def save(self, folder: Path) -> None:
        """Writes `<name>.onnx`; the weight file must be written to the same folder."""
        (folder / f"{self._name}.onnx").write_bytes(self.to_bytes())
