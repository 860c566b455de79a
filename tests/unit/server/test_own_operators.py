"""Our operators in sessions of ONNX Runtime: where they are put, and what they refuse."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.graph import ONNX_NUMBERS, Model
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Precision
from dragoman_server.kernels import LIBRARY
from dragoman_server.runtime.list_graphs import split_step
from dragoman_server.runtime.own_operators import with_own_operators
from dragoman_server.runtime.packed_products import has_int8_product, int8_product_variant

WEIGHTS = (2, 8, 16, 2) if int8_product_variant() == "avx2" else (1, 4, 64, 4)  # packed, [16, 32] before


def session(kind: str, inputs: dict[str, tuple[str, int]], outputs: Sequence[str], **attributes: float) -> Any:
    """A session of one operator; inputs with their types and numbers of axes."""
    model = Model(ir_version=10)
    model.opset_import.add(domain="", version=21)
    model.opset_import.add(domain="dragoman", version=1)
    model.graph.name = kind
    for name, (dtype, rank) in inputs.items():
        tensor = model.graph.input.add(name=name).type.tensor_type
        tensor.elem_type = ONNX_NUMBERS[dtype]
        for axis in range(rank):
            tensor.shape.dim.add(dim_param=f"{name}_{axis}")
    node = model.graph.node.add(op_type=kind, domain="dragoman", input=inputs, output=outputs)
    for name, value in attributes.items():
        if isinstance(value, int):
            node.attribute.add(name=name, i=value, type=2)
        else:
            node.attribute.add(name=name, f=value, type=1)
    for name in outputs:
        model.graph.output.add(name=name)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def attention_feeds(**others: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Two rows of two heads of 16, with room for four positions."""
    pool = np.ones((2, 2, 4, 16), np.float32)
    feeds = {
        "queries": np.ones((2, 1, 32), np.float32),
        "keys": pool,
        "values": pool,
        "last": np.array([3, 0], np.int32),
        "bias": np.zeros((1, 2, 1, 4), np.float32),
    }
    return feeds | others


def run_attention(**others: NDArray[Any]) -> list[NDArray[Any]]:
    feeds = attention_feeds(**others)
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    names = ["mixed", "grown_keys", "grown_values"]
    found: list[NDArray[Any]] = session("RowAttention", inputs, names, num_heads=2).run(names, feeds)
    return found


def test_attention_without_memory_of_its_own_copies_the_pool() -> None:
    mixed, keys, values = run_attention(queries=np.full((2, 1, 96), 2, np.float32))
    assert mixed.shape == (2, 1, 32)
    assert (keys[0, :, 3] == 2).all()
    assert (values[1, :, 0] == 2).all()
    assert (keys[1, :, 1:] == 1).all()


@pytest.mark.parametrize(
    "others",
    [
        {"queries": np.ones((2, 1, 33), np.float32)},
        {"queries": np.ones((2, 2, 32), np.float32)},
        {"queries": np.ones((3, 1, 32), np.float32)},
        {"queries": np.ones((2, 32), np.float32)},
        {"keys": np.ones((2, 3, 4, 16), np.float32)},
        {"values": np.ones((2, 2, 5, 16), np.float32)},
        {"last": np.array([1], np.int32)},
        {"last": np.array([0, 4], np.int32)},
        {"last": np.array([-1, 0], np.int32)},
        {"bias": np.zeros((1, 2, 1, 3), np.float32)},
        {"bias": np.zeros((1, 3, 1, 4), np.float32)},
    ],
)
def test_inputs_of_attention_that_do_not_fit_are_refused(others: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(Exception, match="RowAttention: "):
        run_attention(**others)


@pytest.mark.parametrize(
    ("count", "score_ids"),
    [([0], [[0], [0]]), ([11], [[0], [0]]), ([1], [[0], [10]]), ([1], [[0]]), ([1, 1], [[0], [0]]), ([], [[0], [0]])],
)
def test_tokens_that_there_are_not_are_refused(count: list[int], score_ids: list[list[int]]) -> None:
    feeds: dict[str, NDArray[Any]] = {
        "logits": np.zeros((2, 10), np.float32),
        "count": np.array(count, np.int64),
        "score_ids": np.array(score_ids, np.int64),
    }
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    names = ["ids", "logprobs", "score_logprobs"]
    with pytest.raises(Exception, match="BestTokens: "):
        session("BestTokens", inputs, names).run(names, feeds)


@pytest.mark.parametrize(
    "others",
    [
        {"right": np.zeros((2, 17), np.float32)},
        {"left": np.zeros((2, 17), np.float32), "right": np.zeros((2, 17), np.float32)},
        {"weight": np.zeros(32, np.float32)},
        {"bias": np.zeros(15, np.float32)},
        {"scale": np.ones(1, np.float32)},
        {"zero": np.zeros(1, np.uint8)},
    ],
)
def test_inputs_of_a_norm_that_do_not_fit_are_refused(others: dict[str, NDArray[Any]]) -> None:
    feeds: dict[str, NDArray[Any]] = {
        "left": np.zeros((2, 16), np.float32),
        "right": np.zeros((2, 16), np.float32),
        "weight": np.zeros(16, np.float32),
        "bias": np.zeros(16, np.float32),
        "scale": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
    }
    feeds |= others
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    names = ["quantised", "normed", "sums"]
    with pytest.raises(Exception, match="NormQuantised: "):
        session("NormQuantised", inputs, names, epsilon=1e-5, is_centred=1).run(names, feeds)


@pytest.mark.parametrize("kind", ["SiluQuantised", "ReluQuantised"])
@pytest.mark.parametrize(("shape", "scale_shape"), [((2, 17), ()), ((2, 16), (1,))])
def test_inputs_of_a_nonlinearity_that_do_not_fit_are_refused(
    kind: str, shape: tuple[int, ...], scale_shape: tuple[int, ...]
) -> None:
    feeds: dict[str, NDArray[Any]] = {
        "numbers": np.zeros(shape, np.float32),
        "scale": np.ones(scale_shape, np.float32),
        "zero": np.zeros((), np.uint8),
    }
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    with pytest.raises(Exception, match="nonlinearity"):
        session(kind, inputs, ["out"]).run(["out"], feeds)


@pytest.mark.parametrize(
    "others",
    [
        {"states": np.ones((2, 12), np.uint8)},
        {"states": np.ones((2, 0), np.uint8)},
        {"weights": np.ones((1, 4, 64), np.int8)},
        {"weights": np.ones((1, 4, 32, 4), np.int8)},
        {"weights": np.ones((3, *WEIGHTS[1:]), np.int8)},
        {"scale": np.ones(1, np.float32)},
        {"weight_scales": np.ones(24, np.float32)},
        {"weight_scales": np.ones((32, 1), np.float32)},
        {"offsets": np.ones(16, np.int32)},
        {"bias": np.ones(16, np.float32)},
    ],
)
def test_products_that_do_not_fit_are_refused(others: dict[str, NDArray[Any]]) -> None:
    feeds: dict[str, NDArray[Any]] = {
        "states": np.ones((2, 16), np.uint8),
        "weights": np.ones(WEIGHTS, np.int8),
        "scale": np.ones((), np.float32),
        "weight_scales": np.ones(32, np.float32),
        "offsets": np.zeros(32, np.int32),
        "bias": np.zeros(32, np.float32),
    }
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    if has_int8_product():
        assert session("Int8Product", inputs, ["out"]).run(["out"], feeds)[0].tolist() == [[16] * 32] * 2
    feeds |= others
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    with pytest.raises(Exception, match="Int8Product: "):
        session("Int8Product", inputs, ["out"]).run(["out"], feeds)


def list_feeds(*, is_int8: bool) -> dict[str, NDArray[Any]]:
    """Two rows of 16, and lists of three of five tokens."""
    if not is_int8:
        feeds: dict[str, NDArray[Any]] = {
            "states": np.ones((2, 16), np.float32),
            "weights": np.ones((5, 16), np.float32),
        }
    else:
        feeds = {
            "states": np.ones((2, 16), np.uint8),
            "scales": np.ones((), np.float32),
            "zero": np.zeros((), np.uint8),
            "weights": np.ones((5, 16), np.int8),
            "weight_scales": np.ones(5, np.float32),
        }
    return feeds | {"bias": np.zeros(5, np.float32), "ids": np.array([[0, 4, -1], [1, 2, 3]], np.int32)}


def run_list(feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    kind = "ListProductInt8" if "zero" in feeds else "ListProduct"
    inputs = {name: (str(array.dtype), array.ndim) for name, array in feeds.items()}
    (logits,) = session(kind, inputs, ["logits"]).run(["logits"], feeds)
    return np.asarray(logits)


@pytest.mark.parametrize("is_int8", [False, True])
def test_behind_a_list_is_no_logit(is_int8: bool) -> None:
    assert run_list(list_feeds(is_int8=is_int8)).tolist() == [[16, 16, -np.inf], [16, 16, 16]]


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize(
    "others",
    [
        {"ids": np.array([[0, 5, -1], [1, 2, 3]], np.int32)},
        {"ids": np.zeros((3, 3), np.int32)},
        {"ids": np.zeros(3, np.int32)},
        {"bias": np.zeros(4, np.float32)},
        {"bias": np.zeros((5, 1), np.float32)},
    ],
)
def test_lists_that_do_not_fit_are_refused(others: dict[str, NDArray[Any]], is_int8: bool) -> None:
    with pytest.raises(Exception, match="ListProduct"):
        run_list(list_feeds(is_int8=is_int8) | others)


@pytest.mark.parametrize(
    "others",
    [
        {"states": np.ones((2, 17), np.uint8)},
        {"states": np.ones(16, np.uint8)},
        {"weights": np.ones((6, 16), np.int8)},
        {"weights": np.ones(16, np.int8)},
        {"weight_scales": np.ones(4, np.float32)},
        {"scales": np.ones(2, np.float32)},
        {"scales": np.ones((3, 1), np.float32)},
        {"scales": np.ones((2, 2), np.float32)},
        {"zero": np.zeros(1, np.uint8)},
    ],
)
def test_lists_of_integers_that_do_not_fit_are_refused(others: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(Exception, match="ListProduct"):
        run_list(list_feeds(is_int8=True) | others)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_step_has_none_of_the_operators_that_ours_replace(
    tiny_bundles: dict[Precision, Bundle], precision: Precision
) -> None:
    step = tiny_bundles[precision].contents().graphs[DECODER_STEP_FILE]
    parts = split_step(step)
    for contents in (step, parts.layers, parts.projection, parts.list_projection):
        own = with_own_operators(contents)
        assert own is not None
        kinds = Counter(node.op_type for node in Model.FromString(own).graph.node)
        assert not {"GroupQueryAttention", "LogSoftmax", "TopK"} & set(kinds)
        assert kinds["BestTokens"] == kinds["LogProbs"] == (contents is not parts.layers)


def test_between_products_of_int8_there_is_one_operator(tiny_bundles: dict[Precision, Bundle]) -> None:
    for name in (DECODER_STEP_FILE, ENCODER_FILE):
        own = with_own_operators(tiny_bundles["int8"].contents().graphs[name])
        assert own is not None
        kinds = Counter(node.op_type for node in Model.FromString(own).graph.node)
        assert kinds["NormQuantised"] > 0
        assert kinds["QuickGelu"] + kinds["Relu"] == 0


def test_a_graph_in_which_nothing_is_ours_is_left_alone() -> None:
    assert with_own_operators(Model(ir_version=10).SerializeToString()) is None
