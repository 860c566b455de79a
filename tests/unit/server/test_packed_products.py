"""The product of int8 that is ours where the processor has it: against NumPy and ONNX Runtime, and where it is put."""

import ctypes
import errno
import mmap
from collections import Counter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.graph import ONNX_NUMBERS, Model
from dragoman_server.bundle.manifest import ATTENTION_FILE, DECODER_STEP_FILE, ENCODER_FILE, Precision
from dragoman_server.errors import BundleError
from dragoman_server.kernels import LIBRARY
from dragoman_server.runtime import packed_products
from dragoman_server.runtime.own_operators import with_own_operators
from dragoman_server.runtime.packed_products import int8_product_variant, with_packed_products
from support.kernels import call, variants

VARIANTS = {None: [], "avx2": ["avx2"], "vnni": ["avx2", "vnni"], "amx": ["avx2", "vnni", "amx"]}[
    int8_product_variant()
]
_size, _pointer = ctypes.c_size_t, ctypes.c_void_p


class ProductArguments(ctypes.Structure):
    """`Int8Product` of kernels.h."""

    _fields_ = (
        ("quantised", _pointer),
        ("rows", _size),
        ("depth", _size),
        ("weights", _pointer),
        ("width", _size),
        ("offsets", _pointer),
        ("scale", ctypes.c_float),
        ("weight_scales", _pointer),
        ("bias", _pointer),
        ("out", _pointer),
    )


class Product:
    """States of a number of rows, and weights."""

    def __init__(self, rows: int, depth: int, width: int, zero: int = 128, *, has_bias: bool = True) -> None:
        rng = np.random.default_rng(rows + depth + width)
        self.states = rng.integers(0, 256, (rows, depth), np.uint8)
        self.weights = rng.integers(-127, 128, (depth, width), np.int8)
        self.states[-1], self.weights[:, -1] = 255, -127  # the largest sum that there is
        self.zero, self.scale = zero, np.float32(0.0137)
        self.weight_scales = rng.uniform(0.001, 0.01, width).astype(np.float32)
        self.bias = rng.normal(0, 1, width).astype(np.float32) if has_bias else None

    def run(self, variant: str, rows: slice = slice(None)) -> NDArray[np.float32]:
        states = np.ascontiguousarray(self.states[rows])
        packed = packed_products._pack(self.weights, *packed_products._LAYOUTS[variant])
        offsets = -self.zero * self.weights.sum(axis=0, dtype=np.int32)
        (depth, width), num_rows = self.weights.shape, len(states)
        out = np.full((num_rows, width), np.nan, np.float32)
        arguments = ProductArguments(
            states.ctypes.data,
            num_rows,
            depth,
            packed.ctypes.data,
            width,
            offsets.ctypes.data,
            self.scale,
            self.weight_scales.ctypes.data,
            None if self.bias is None else self.bias.ctypes.data,
            out.ctypes.data,
        )
        call("int8_product", variant, arguments, 0, -(-width // 64))
        return out

    def expected(self) -> NDArray[np.float32]:
        """Rounded after each step, as ONNX Runtime does it."""
        sums = (self.states.astype(np.int64) - self.zero) @ self.weights.astype(np.int64)
        found = sums.astype(np.float32) * (self.scale * self.weight_scales)
        return found if self.bias is None else found + self.bias


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", [*range(1, 21), 31, 32, 33, 50])
@pytest.mark.parametrize(("depth", "width"), [(4, 16), (64, 64), (36, 80), (512, 208)])
def test_products_are_those_of_numpy_to_the_last_bit(variant: str, rows: int, depth: int, width: int) -> None:
    for case in (Product(rows, depth, width), Product(rows, depth, width, zero=117, has_bias=False)):
        found = case.run(variant)
        np.testing.assert_array_equal(found, case.expected())
        for row in {0, rows // 2, rows - 1}:  # alone: the same bits
            assert case.run(variant, slice(row, row + 1)).tobytes() == found[row].tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_those_of_onnx_runtime_to_the_last_bit(variant: str, has_bias: bool) -> None:
    case = Product(37, 128, 192, has_bias=has_bias)
    feeds: dict[str, NDArray[Any]] = {
        "states": case.states,
        "scale": np.array(case.scale),
        "weight_scales": case.weight_scales,
        "zero": np.array(case.zero, np.uint8),
    }
    if case.bias is not None:
        feeds["bias"] = case.bias
    model = Model(ir_version=10)
    for domain, version in (("", 21), ("com.microsoft", 1)):
        model.opset_import.add(domain=domain, version=version)
    # Only constant weights are made exact, too, where there is no VNNI.
    constant = model.graph.initializer.add(name="weights", data_type=ONNX_NUMBERS["int8"])
    constant.dims.extend(case.weights.shape)
    constant.raw_data = case.weights.tobytes()
    for name, array in feeds.items():
        tensor = model.graph.input.add(name=name).type.tensor_type
        tensor.elem_type = ONNX_NUMBERS[array.dtype.name]
        for axis in range(array.ndim):
            tensor.shape.dim.add(dim_param=f"{name}_{axis}")
    node = model.graph.node.add(op_type="MatMulIntegerToFloat", domain="com.microsoft", output=["out"])
    node.input.extend(["states", "weights", "scale", "weight_scales", "zero", *(["", "bias"] if has_bias else [])])
    model.graph.output.add(name="out")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(case.run(variant), session.run(None, feeds)[0])


@pytest.fixture
def has_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with the kernel; graphs are made, and not run."""
    monkeypatch.setattr(packed_products, "int8_product_variant", lambda: "vnni")


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in Model.FromString(graph).graph.node)


@pytest.mark.usefixtures("has_product")
def test_all_products_of_a_model_are_ours_and_their_weights_are_packed_once(
    tiny_bundles: dict[Precision, Bundle],
) -> None:
    contents = tiny_bundles["int8"].contents()
    packed = with_packed_products(contents)
    num_products = 0
    for name in (ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE):
        before, after = operators(contents.graphs[name]), operators(packed.graphs[name])
        assert before["MatMulIntegerToFloat"] == after["Int8Product"] > 0
        assert not after["MatMulIntegerToFloat"]
        num_products += after["Int8Product"]
    of_products = [name for name in packed.weights if name.endswith("_packed")]
    assert len(of_products) < num_products  # the graph of attention has the weights of the others
    assert not packed.weights.keys() & {name.removesuffix("_packed") for name in of_products}
    named = {name for graph in packed.graphs.values() for name in _weights(graph)}
    assert packed.weights.keys() == named


def _weights(graph: bytes) -> set[str]:
    return {tensor.name for tensor in Model.FromString(graph).graph.initializer if tensor.external_data}


@pytest.mark.usefixtures("has_product")
def test_weights_are_packed_once_whatever_their_states_are_less(tiny_bundles: dict[Precision, Bundle]) -> None:
    """A graph may quantise its states in another way than another one."""
    contents = tiny_bundles["int8"].contents()
    contents = contents._replace(graphs={ENCODER_FILE: contents.graphs[ENCODER_FILE]})
    model = Model.FromString(contents.graphs[ENCODER_FILE])
    for tensor in model.graph.initializer:
        if tensor.data_type == ONNX_NUMBERS["uint8"]:
            tensor.raw_data = b"\x07"
    changed = contents._replace(graphs={ENCODER_FILE: model.SerializeToString()})
    first, second = with_packed_products(contents), with_packed_products(changed)
    of_products = [name for name in first.weights if name.endswith("_packed")]
    assert of_products
    for name in of_products:
        assert second.weights[name] is first.weights[name]
        sums = contents.weights[name.removesuffix("_packed")].sum(axis=0, dtype=np.int32)
        np.testing.assert_array_equal(second.weights[f"{name.removesuffix('_packed')}_offsets_7"], -7 * sums)


@pytest.mark.usefixtures("has_product")
def test_a_model_for_whose_packed_weights_there_is_no_memory_is_refused(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    contents = tiny_bundles["int8"].contents()
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(BundleError, match=r"its weights cannot be packed: .*Cannot allocate memory"):
        with_packed_products(contents)


@pytest.mark.usefixtures("has_product")
def test_what_comes_before_a_product_is_quantised_by_one_operator(tiny_bundles: dict[Precision, Bundle]) -> None:
    step = with_packed_products(tiny_bundles["int8"].contents()).graphs[DECODER_STEP_FILE]
    with_ours = with_own_operators(step)
    assert with_ours is not None
    of_onnx_runtime = with_own_operators(tiny_bundles["int8"].contents().graphs[DECODER_STEP_FILE])
    assert of_onnx_runtime is not None
    expected = operators(of_onnx_runtime)
    expected["Int8Product"] = expected.pop("MatMulIntegerToFloat")
    assert operators(with_ours) == expected


@pytest.mark.usefixtures("has_product")
def test_weights_that_do_not_fit_our_kernel_are_left_to_onnx_runtime(tiny_bundles: dict[Precision, Bundle]) -> None:
    contents = tiny_bundles["int8"].contents()
    assert _num_ours(contents, lambda node, constants: None) > 0
    # A depth of which four are no divisor; a width that is no multiple of 16; scales for less than all; a zero of none.
    assert _num_ours(contents, lambda node, constants: _set_dims(constants[node.input[1]], 0, 63)) == 0
    assert _num_ours(contents, lambda node, constants: _set_dims(constants[node.input[1]], 1, 8)) == 0
    assert _num_ours(contents, lambda node, constants: _set_dims(constants[node.input[3]], 0, 1)) == 0
    assert _num_ours(contents, lambda node, constants: constants.pop(node.input[4], None)) == 0


def _set_dims(tensor: Any, axis: int, size: int) -> None:
    tensor.dims[axis] = size


def _num_ours(contents: Contents, change: Any) -> int:
    """Our products in a graph whose products of ONNX Runtime's were changed before."""
    model = Model.FromString(contents.graphs[ENCODER_FILE])
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            change(node, constants)
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants.values())
    changed = contents._replace(graphs={ENCODER_FILE: model.SerializeToString()})
    return operators(with_packed_products(changed).graphs[ENCODER_FILE])["Int8Product"]


def test_without_the_kernel_or_with_weights_where_they_are_a_model_stays_as_it_is(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = tiny_bundles["int8"].contents()
    assert with_packed_products(contents._replace(are_packed=False)).graphs == contents.graphs
    monkeypatch.setattr(packed_products, "int8_product_variant", lambda: None)
    assert with_packed_products(contents) is contents


def test_the_library_takes_the_best_that_the_processor_has() -> None:
    """Whatever compiled it."""
    function = ctypes.CDLL(str(LIBRARY)).kernel_variant
    function.restype = ctypes.c_char_p
    assert function().decode() == variants()[-1]
    assert (int8_product_variant() is not None) == ("avx2" in variants())
