"""Gives products of int8 to our kernel, where this processor has one: `Int8Product` in kernels/product_operators.c.

Its weights are packed once, for all sessions of a model, where ONNX Runtime packs them for each. The numbers are
those of ONNX Runtime's MatMulIntegerToFloat, to the last bit: sums are exact, and are scaled in the same order.
"""

import ctypes
import math
import mmap
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Contents
from dragoman_server.bundle.graph import ONNX_NUMBERS, Model
from dragoman_server.errors import BundleError
from dragoman_server.kernels import LIBRARY
from dragoman_server.runtime.own_operators import DOMAIN, import_own

_PRODUCT = "MatMulIntegerToFloat"
_LAYOUTS = {"avx2": (16, 2), "vnni": (64, 4), "amx": (64, 4)}  # columns of a panel, products that are added at a time
_FOUR, _LANES = 4, 16  # divide the depth and the width of weights that fit
# Inputs of MatMulIntegerToFloat.
_QUANTISED, _WEIGHTS, _SCALE, _WEIGHT_SCALES, _ZERO, _WEIGHT_ZEROS, _BIAS = range(7)


@cache
def int8_product_variant() -> str | None:
    """The variant of the kernel that is the best for this processor; None where it has none."""
    if not LIBRARY.exists():
        return None  # `open_session` says so
    function = _library().int8_product_variant
    function.restype = ctypes.c_char_p
    found = function()
    return None if found is None else str(found.decode())


def has_int8_product() -> bool:
    """Whether this processor has the kernel."""
    return int8_product_variant() is not None


def with_packed_products(contents: Contents) -> Contents:
    """The same model with all products that can be ours in the graphs; as it is where this processor has no kernel.

    Raises:
        BundleError: there is no memory for the packed weights.
    """
    variant = int8_product_variant()
    if variant is None or not contents.are_packed:
        return contents
    packer = _Packer(contents, variant)
    try:
        graphs = {file: packer.graph(graph) for file, graph in contents.graphs.items()}
    except OSError as error:
        raise BundleError(f"{contents.folder} cannot be loaded: its weights cannot be packed: {error}") from error
    return contents._replace(graphs=graphs, weights=packer.weights())


class _Packer:
    def __init__(self, contents: Contents, variant: str) -> None:
        self._originals, self._packed = contents.weights, contents.packed
        self._layout = _LAYOUTS[variant]
        self._read: set[str] = set()

    def graph(self, contents: bytes) -> bytes:
        """With our products; notes the weights that it has."""
        model = Model.FromString(contents)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        products = [n for n in model.graph.node if n.op_type == _PRODUCT and self._fits(n, constants)]
        for product in products:
            self._turn(product, constants)
        if products:
            import_own(model)
        read = {name for node in model.graph.node for name in node.input}
        kept = [tensor for tensor in constants.values() if tensor.name in read]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        self._read.update(read)
        return bytes(model.SerializeToString())

    def weights(self) -> dict[str, NDArray[Any]]:
        """Those that the graphs read now."""
        return {name: array for name, array in {**self._originals, **self._packed}.items() if name in self._read}

    def _fits(self, node: Any, constants: dict[str, Any]) -> bool:
        names = [*node.input, *[""] * (_BIAS + 1 - len(node.input))]
        weights, zero, scales = (constants.get(names[place]) for place in (_WEIGHTS, _ZERO, _WEIGHT_SCALES))
        if weights is None or zero is None or scales is None or names[_WEIGHT_ZEROS]:
            return False
        is_int8 = weights.data_type == ONNX_NUMBERS["int8"] and zero.data_type == ONNX_NUMBERS["uint8"]
        if not is_int8 or weights.name not in self._originals or len(weights.dims) != 2 or len(zero.raw_data) != 1:
            return False
        depth, width = weights.dims
        return bool(depth % _FOUR == 0 and width % _LANES == 0 and list(scales.dims) == [width])

    def _turn(self, node: Any, constants: dict[str, Any]) -> None:
        """Makes ours of a product of ONNX Runtime's."""
        weights, zero = constants[node.input[_WEIGHTS]], constants[node.input[_ZERO]]
        (zero_point,) = zero.raw_data
        packed, offsets = f"{weights.name}_packed", f"{weights.name}_offsets_{zero_point}"
        original = self._originals[weights.name]
        if packed not in self._packed:
            self._packed[packed] = _pack(original, *self._layout)
        if offsets not in self._packed:
            self._packed[offsets] = -zero_point * original.sum(axis=0, dtype=np.int32)
        for name in (packed, offsets):
            if name not in constants:
                constants[name] = _external(name, self._packed[name], weights)
        inputs = [node.input[_QUANTISED], packed, node.input[_SCALE], node.input[_WEIGHT_SCALES], offsets]
        inputs += node.input[_BIAS : _BIAS + 1]
        node.op_type, node.domain = "Int8Product", DOMAIN
        node.input[:] = inputs
        del node.attribute[:]


def _external(name: str, array: NDArray[Any], like: Any) -> Any:
    """A weight, as if it stood in the file of weights; it is given from memory, as all are."""
    tensor = type(like)(name=name, data_type=ONNX_NUMBERS[array.dtype.name], data_location=like.data_location)
    tensor.dims.extend(array.shape)
    (location,) = (entry.value for entry in like.external_data if entry.key == "location")
    for key, value in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _pack(weights: NDArray[np.int8], panel: int, step: int) -> NDArray[np.int8]:
    """Weights [D, N] as the kernel reads them: [panels, D / step, panel, step]."""
    depth, width = weights.shape
    shape = (-(-width // panel), depth // step, panel, step)
    pages = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # where it has none
            pages.madvise(mmap.MADV_HUGEPAGE)  # a twentieth faster for a few rows, which wait for memory
    packed = np.frombuffer(pages, np.int8).reshape(shape)
    function = _library().pack_int8
    function.argtypes, function.restype = [ctypes.c_void_p, *[ctypes.c_size_t] * 4, ctypes.c_void_p], None
    weights = np.ascontiguousarray(weights)
    function(weights.ctypes.data, depth, width, panel, step, packed.ctypes.data)
    return packed


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))
