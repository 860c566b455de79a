"""What the graphs of a bundle must be before ONNX Runtime sees them. All hashes are right."""

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.graph_rules import check_weights
from dragoman_server.bundle.manifest import ATTENTION_FILE, DECODER_STEP_FILE, ENCODER_FILE, WEIGHTS_FILE
from dragoman_server.errors import BundleError
from support.bundles import edit_graph, edit_manifest, node, put, rehash, replace_file, weight

GraphEdit = Callable[[onnx.GraphProto], object]


def refused(folder: Path, fault: str) -> None:
    with pytest.raises(BundleError, match=fault) as refusal:
        Bundle.open(folder)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


# -- the manifest is not the graphs' -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("d_head", 32, r"encoder.onnx: its output cross_kv is .* \[batch, 16, source, 16\]; by architecture"),
        ("num_heads", 8, r"encoder.onnx: its output cross_kv is .* \[batch, 16, source, 16\]; by architecture"),
        ("num_encoder_layers", 3, r"attention.onnx: its input encoder_layers is int64 \[2\]; by architecture .*\[3\]"),
        ("num_decoder_layers", 1, "manifest.json: state is .*, must have the keys and values"),
        ("vocabulary_size", 400, r"decoder_step.onnx: its output all_logits is .*; .* it is float32 \[all, 400\]"),
        ("vocabulary_size", 4, "manifest.json: parity.golden.* must be below architecture.vocabulary_size, 4"),
    ],
)
def test_an_architecture_that_is_not_the_graphs_is_refused(folder: Path, field: str, value: int, fault: str) -> None:
    edit_manifest(folder, put("architecture", field, value))
    refused(folder, fault)


def test_layers_of_an_encoder_are_counted_where_no_attention_graph_shows_them(folder: Path) -> None:
    edit_manifest(folder, put("architecture", "num_encoder_layers", 3))
    edit_manifest(folder, lambda values: values["files"].pop(ATTENTION_FILE))
    refused(folder, "manifest.json: architecture.num_encoder_layers is 3, must be 2, as encoder.onnx has layers")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_limit_beyond_the_positions_is_refused(folder: Path, side: str) -> None:
    edit_manifest(folder, put("limits", f"max_{side}_tokens", 161))
    refused(
        folder, f"manifest.json: limits.max_{side}_tokens is 161, must be at most 160, as the graphs have positions"
    )


def test_fp32_graphs_are_not_int8(folder: Path, int8_folder: Path) -> None:
    edit_manifest(folder, put("precision", "int8"))
    refused(folder, "encoder.onnx: operator 'Gemm', .* is none of a graph at int8, which is the precision in manifest")
    edit_manifest(int8_folder, put("precision", "fp32"))
    edit_manifest(int8_folder, put("parity", "logprob_tolerance", 0.001))
    refused(
        int8_folder, r"encoder.onnx: its output cross_kv is int8 .*; by architecture and precision .* it is float32"
    )


@pytest.mark.parametrize(
    ("field", "name"), [("pad_token_id", "pad_token_id"), ("token_ids", r"parity\.golden\[\d\]\.source_ids\[0\]")]
)
def test_an_id_that_has_no_embedding_is_refused(folder: Path, field: str, name: str) -> None:
    def edit(values: dict[str, Any]) -> None:
        token_ids = values["languages"]["token_ids"]
        (first,) = token_ids["fr"]
        if field == "pad_token_id":
            values[field] = 400
            return
        token_ids["fr"] = [400]
        for golden in values["parity"]["golden"]:
            golden["source_ids"][0] = 400 if golden["source_ids"][0] == first else golden["source_ids"][0]

    edit_manifest(folder, edit)
    refused(folder, f"manifest.json: {name} is 400, must be below 316, as the graphs have embeddings")


# -- a graph with what none may have -----------------------------------------------------------------------------------


def add_constant(graph: onnx.GraphProto, name: str, array: Any, dtype: Any = np.int64) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(array, dtype), name))


def insert(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    """Before all others."""
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *others])


def endless_loop(graph: onnx.GraphProto) -> None:
    boolean = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([], "body", [number, boolean], [boolean])
    insert(graph, helper.make_node("Loop", ["", ""], ["looped"], body=body))


def custom_operator(graph: onnx.GraphProto) -> None:
    insert(graph, helper.make_node("Steal", ["input_ids"], ["stolen"], domain="evil"))


def huge_range(graph: onnx.GraphProto) -> None:
    insert(graph, helper.make_node("Range", ["const_int32__1", "source_lengths", "const_int32__1"], ["many"]))


def huge_shape(kind: str) -> GraphEdit:
    def edit(graph: onnx.GraphProto) -> None:
        add_constant(graph, "shape", [300, 300, 300, 300])
        if kind == "ConstantOfShape":
            insert(graph, helper.make_node(kind, ["shape"], ["huge"]))
        else:
            insert(graph, helper.make_node(kind, ["source_lengths", "shape"], ["huge"]))

    return edit


def huge_number(graph: onnx.GraphProto) -> None:
    add_constant(graph, "huge", [1 << 40])


def constant_of_a_terabyte(graph: onnx.GraphProto) -> None:
    graph.initializer.add(name="huge", dims=[1 << 38], data_type=TensorProto.FLOAT, raw_data=b"0000")


def weight_of_a_terabyte(graph: onnx.GraphProto) -> None:
    tensor = weight(graph, "positions")
    tensor.dims[0] = 1 << 40


def endless_weight(graph: onnx.GraphProto) -> None:
    """With a length that goes with its shape."""
    tensor = weight(graph, "positions")
    tensor.dims[0] = 1 << 40
    (length,) = (entry for entry in tensor.external_data if entry.key == "length")
    length.value = str((1 << 40) * 64 * 4)


def negative_axis(graph: onnx.GraphProto) -> None:
    weight(graph, "positions").dims[0] = -1


def entry(key: str, value: str) -> GraphEdit:
    def edit(graph: onnx.GraphProto) -> None:
        (found,) = (entry for entry in weight(graph, "positions").external_data if entry.key == key)
        found.value = value

    return edit


def another_entry(key: str, value: str) -> GraphEdit:
    def edit(graph: onnx.GraphProto) -> None:
        weight(graph, "positions").external_data.add(key=key, value=value)

    return edit


def long_constant(graph: onnx.GraphProto) -> None:
    add_constant(graph, "long", np.ones(100))


def sparse_constant(graph: onnx.GraphProto) -> None:
    graph.sparse_initializer.add()


def typed_data(graph: onnx.GraphProto) -> None:
    """Data in another field than `raw_data`."""
    graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [1], [1.0]))


def double_precision(graph: onnx.GraphProto) -> None:
    add_constant(graph, "double", 1.0, np.float64)


def text_constant(graph: onnx.GraphProto) -> None:
    graph.initializer.add(name="text", dims=[1], data_type=TensorProto.STRING, string_data=[b"x"])


def not_a_number(graph: onnx.GraphProto) -> None:
    add_constant(graph, "none", np.nan, np.float32)


def folded_product(graph: onnx.GraphProto) -> None:
    insert(graph, helper.make_node("MatMul", ["positions", "positions"], ["folded"]))


def cycle(graph: onnx.GraphProto) -> None:
    node(graph, "Add").input[0] = node(graph, "Add").output[0]


def division(divisor: int) -> GraphEdit:
    def edit(graph: onnx.GraphProto) -> None:
        add_constant(graph, "divisor", divisor, np.int32)
        insert(graph, helper.make_node("Div", ["source_lengths", "divisor"], ["quotient"]))

    return edit


def twice(graph: onnx.GraphProto) -> None:
    graph.initializer.append(graph.initializer[0])


def input_with_a_default(graph: onnx.GraphProto) -> None:
    add_constant(graph, "source_lengths", [1], np.int32)


def one_result_twice(graph: onnx.GraphProto) -> None:
    graph.node.append(graph.node[0])


def no_result(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Abs", ["source_lengths"], []))


def other_heads(graph: onnx.GraphProto) -> None:
    (heads,) = (a for a in node(graph, "GroupQueryAttention").attribute if a.name == "num_heads")
    heads.i = 8


def other_attribute(graph: onnx.GraphProto) -> None:
    node(graph, "GroupQueryAttention").attribute.append(helper.make_attribute("do_rotary", 1))


def attribute_twice(graph: onnx.GraphProto) -> None:
    attributes = node(graph, "GroupQueryAttention").attribute
    attributes.append(attributes[0])


def tensor_attribute(graph: onnx.GraphProto) -> None:
    attribute = helper.make_attribute("to", 1)
    attribute.type = onnx.AttributeProto.TENSOR
    del node(graph, "Cast").attribute[:]
    node(graph, "Cast").attribute.append(attribute)


def renamed_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = "ids"


def wide_input(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def another_output(graph: onnx.GraphProto) -> None:
    graph.output.add().CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def output_that_nothing_makes(graph: onnx.GraphProto) -> None:
    (made,) = (node for node in graph.node if "cross_kv" in node.output)
    made.output[0] = "other"


def no_positions(graph: onnx.GraphProto) -> None:
    weight(graph, "positions").name = "places"
    next(made for made in graph.node if "positions" in made.input).input[0] = "places"


def thousands_of_operators(graph: onnx.GraphProto) -> None:
    for i in range(1000):
        graph.node.append(helper.make_node("Abs", ["source_lengths"], [f"lengths_{i}"]))


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (endless_loop, "encoder.onnx: it has fields of ONNX that no graph of a bundle has"),
        (sparse_constant, "encoder.onnx: it has fields of ONNX that no graph of a bundle has"),
        (typed_data, "encoder.onnx: it has fields of ONNX that no graph of a bundle has"),
        (custom_operator, "encoder.onnx: operator 'evil.Steal', which makes .*stolen.* is none of those that"),
        (thousands_of_operators, "encoder.onnx: it has 1038 operators; with 4 layers it has at most 1000"),
        (huge_range, "encoder.onnx: operator 'Range', which makes .* is none of those"),
        (huge_shape("ConstantOfShape"), "encoder.onnx: operator 'ConstantOfShape', which makes .* is none of those"),
        (huge_shape("Expand"), "encoder.onnx: operator 'Expand', .* must take its shape from the inputs"),
        (huge_shape("Tile"), "encoder.onnx: operator 'Tile', .* must take its shape from the inputs"),
        (huge_number, "encoder.onnx: tensor 'huge' has a number beyond 379, the length of the longest axis"),
        (constant_of_a_terabyte, "encoder.onnx: tensor 'huge' has 4 bytes; its shape needs 1099511627776"),
        (weight_of_a_terabyte, "encoder.onnx: tensor 'positions' has 40960 bytes; its shape needs 281474976710656"),
        (endless_weight, "weights.bin: weight 'positions' is not the same for all graphs"),
        (negative_axis, r"encoder.onnx: tensor 'positions' has the shape \[-1, 64\]"),
        (entry("location", "other.bin"), "tensor 'positions' is in 'other.bin', must be in weights.bin"),
        (entry("location", "tokenizer.model"), "tensor 'positions' is in 'tokenizer.model', must be in weights.bin"),
        (entry("location", "../weights.bin"), "tensor 'positions' is in '../weights.bin', must be in weights.bin"),
        (entry("location", "/etc/passwd"), "tensor 'positions' is in '/etc/passwd', must be in weights.bin"),
        (entry("location", ""), "tensor 'positions' is in no file: it needs a location, an offset and a length"),
        (another_entry("location", "weights.bin"), "encoder.onnx: it has two of the name 'location'"),
        (another_entry("checksum", "0"), "tensor 'positions' is in no file: it needs a location, an offset and a"),
        (entry("offset", "64"), "weights.bin: weight 'positions' is not the same for all graphs"),
        (entry("offset", "-64"), "tensor 'positions' is in no file: it needs a location, an offset and a length"),
        (entry("offset", "9" * 5000), "encoder.onnx: .*Exceeds the limit"),
        (entry("length", "1e3"), "tensor 'positions' is in no file: it needs a location, an offset and a length"),
        (long_constant, "encoder.onnx: tensor 'long' has 800 bytes, must be in weights.bin"),
        (double_precision, "encoder.onnx: tensor 'double' is of ONNX's type 11, must be of float32"),
        (text_constant, "encoder.onnx: it has fields of ONNX that no graph of a bundle has"),
        (not_a_number, "encoder.onnx: tensor 'none' has values that are not finite"),
        (folded_product, "encoder.onnx: operator MatMul, which makes .*folded.*, depends on no input"),
        (cycle, "encoder.onnx: operator Add reads 'Add_7_0', which nothing before it makes"),
        (division(0), "encoder.onnx: operator 'Div', which makes .* must divide by a constant above 0"),
        (division(-1), "encoder.onnx: operator 'Div', which makes .* must divide by a constant above 0"),
        (twice, "encoder.onnx: it has two of the name 'const_int32__1'"),
        (input_with_a_default, "encoder.onnx: tensor 'source_lengths' is an input too"),
        (one_result_twice, "encoder.onnx: operator Sub makes .*: nothing, or what there is already"),
        (no_result, r"encoder.onnx: operator Abs makes \(\): nothing, or what there is already"),
        (other_heads, "GroupQueryAttention', .* must have architecture.num_heads heads, as manifest.json says"),
        (other_attribute, "GroupQueryAttention', .* has the attribute 'do_rotary'"),
        (attribute_twice, "encoder.onnx: it has two of the name 'num_heads'"),
        (tensor_attribute, "encoder.onnx: the attribute 'to' of an operator 'Cast' is no number"),
        (renamed_input, "encoder.onnx: it has the input 'ids', of which manifest.json knows nothing"),
        (wide_input, r"encoder.onnx: its input input_ids is int32 \[tokens\]; by architecture .* it is int64"),
        (another_output, "encoder.onnx: it has the output 'more', of which manifest.json knows nothing"),
        (output_that_nothing_makes, "encoder.onnx: nothing makes its output cross_kv"),
        (no_positions, "encoder.onnx: it must have one table of 64 columns among positions, source_positions"),
    ],
)
def test_an_encoder_with_what_none_may_have_is_refused(folder: Path, edit: GraphEdit, fault: str) -> None:
    edit_graph(folder, ENCODER_FILE, edit)
    refused(folder, fault)


def test_a_function_is_refused(folder: Path) -> None:
    model = onnx.load(folder / ENCODER_FILE, load_external_data=False)
    model.functions.add(name="f", domain="local")
    replace_file(folder, ENCODER_FILE, model.SerializeToString())
    refused(folder, "encoder.onnx: it has fields of ONNX that no graph of a bundle has")


@pytest.mark.parametrize(("domain", "version"), [("com.microsoft.nchwc", 1), ("ai.onnx.ml", 3)])
def test_other_operator_sets_are_refused(folder: Path, domain: str, version: int) -> None:
    model = onnx.load(folder / ENCODER_FILE, load_external_data=False)
    model.opset_import.add(domain=domain, version=version)
    replace_file(folder, ENCODER_FILE, model.SerializeToString())
    refused(folder, "encoder.onnx: its IR version is 10 and its operator sets are .*, must be 10 and")


def test_one_operator_set_in_two_versions_is_refused(folder: Path) -> None:
    model = onnx.load(folder / ENCODER_FILE, load_external_data=False)
    model.opset_import.add(domain="", version=21)
    replace_file(folder, ENCODER_FILE, model.SerializeToString())
    refused(folder, "encoder.onnx: it has two of the name ''")


@pytest.mark.parametrize("name", [ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE])
def test_what_is_no_graph_is_refused(folder: Path, name: str) -> None:
    for contents in (b"", b"not a graph", b"\x00" * 1000, (folder / name).read_bytes()[:-1]):
        replace_file(folder, name, contents)
        refused(folder, f"/{name}: ")


@pytest.mark.parametrize(
    ("name", "impostor"),
    [(ENCODER_FILE, ATTENTION_FILE), (DECODER_STEP_FILE, ENCODER_FILE), (ATTENTION_FILE, DECODER_STEP_FILE)],
)
def test_a_graph_under_the_name_of_another_is_refused(folder: Path, name: str, impostor: str) -> None:
    shutil.copyfile(folder / impostor, folder / name)
    rehash(folder, name)
    refused(folder, f"{name}: (it has the input '.*', of which manifest.json knows nothing|its input input_ids is .*)")


def test_a_graph_of_another_precision_is_refused(folder: Path, int8_folder: Path) -> None:
    shutil.copyfile(folder / DECODER_STEP_FILE, int8_folder / DECODER_STEP_FILE)
    rehash(int8_folder, DECODER_STEP_FILE)
    refused(int8_folder, "encoder.onnx: its output cross_kv is int8 .* it is float32")


# -- the weights -------------------------------------------------------------------------------------------------------


def test_weights_that_the_graphs_do_not_use_are_refused(folder: Path) -> None:
    size = (folder / WEIGHTS_FILE).stat().st_size
    os.truncate(folder / WEIGHTS_FILE, size + 64)
    rehash(folder, WEIGHTS_FILE)
    refused(folder, f"weights.bin: it is {size + 64} bytes long; the graphs need {size}")


def test_weights_with_a_gap_are_refused(folder: Path) -> None:
    """A file may be large and take up nothing on the disk."""

    def move(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            for found in tensor.external_data:
                if found.key == "offset" and found.value != "0":
                    found.value = str(int(found.value) + (8 << 30))

    for name in (ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE):
        edit_graph(folder, name, move)
    os.truncate(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size + (8 << 30))
    refused(folder, r"weights.bin: weight '.*' begins at byte 8589975552, the one before it ends at 40960")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    weights = np.fromfile(folder / WEIGHTS_FILE, np.float32)
    weights[1000] = value
    replace_file(folder, WEIGHTS_FILE, weights.tobytes())
    refused(folder, "weights.bin: tensor 'positions' has values that are not finite")


HALF_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.mark.parametrize("dtype", HALF_TYPES.values(), ids=HALF_TYPES)
@pytest.mark.parametrize("value", [np.inf, np.nan, -np.nan])
def test_weights_of_half_precision_that_are_no_numbers_are_refused(dtype: np.dtype[Any], value: float) -> None:
    weight = np.linspace(-1, 1, 100).astype(dtype)
    weight[41] = np.copysign(np.array(np.abs(value), dtype), np.array(value, dtype))
    assert np.signbit(weight[41]) == np.signbit(value)
    with pytest.raises(ValueError, match="tensor 'w' has values that are not finite"):
        check_weights({"v": as_stored(weight[:40]), "w": as_stored(weight)})


@pytest.mark.parametrize("dtype", HALF_TYPES.values(), ids=HALF_TYPES)
def test_weights_of_half_precision_may_be_anything_else(dtype: np.dtype[Any]) -> None:
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    values = [-np.inf, -0.0, 0.0, float(info.max), float(info.min), float(info.smallest_subnormal)]
    check_weights({"w": as_stored(np.array(values, dtype))})


def as_stored(weight: NDArray[Any]) -> NDArray[Any]:
    """As it is read from a file: NumPy has no bfloat16."""
    return weight if weight.dtype == np.float16 else weight.view(np.uint16)


# -- anything ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ENCODER_FILE, DECODER_STEP_FILE, ATTENTION_FILE])
def test_garbled_bytes_are_a_bundle_error_or_change_nothing(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        garbled = bytearray(good)
        for _ in range(rng.choice((1, 3, 30))):
            garbled[rng.randrange(len(garbled))] ^= 1 << rng.randrange(8)
        replace_file(folder, name, bytes(garbled))
        with contextlib.suppress(BundleError):
            Bundle.open(folder)
