"""The replay of the parity certificate: what is found only by running a model. Its files fit each other."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import (
    ATTENTION_FILE,
    DECODER_STEP_FILE,
    ENCODER_FILE,
    WEIGHTS_FILE,
    Precision,
)
from dragoman_server.errors import BundleError
from dragoman_server.registry.parity import replay, replay_attention
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.runner import OnnxRunner
from support.bundles import edit_graph, edit_manifest, node, replace_file, weight


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_a_good_bundle_reproduces_its_certificate(
    precision: Precision, max_rows: int, tiny_bundles: dict[Precision, Bundle]
) -> None:
    bundle = tiny_bundles[precision]
    assert len({len(golden.token_ids) for golden in bundle.manifest.parity.golden}) > 1
    difference = replay(bundle, OnnxRunner.open(bundle, max_rows, num_threads=1))
    assert difference <= bundle.manifest.parity.logprob_tolerance
    replay_attention(bundle, AttentionPass(bundle, num_threads=1))


def test_sentences_beside_others_give_what_they_give_alone(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["int8"]
    alone, together = (replay(bundle, OnnxRunner.open(bundle, max_rows, num_threads=1)) for max_rows in (1, 8))
    assert alone == together


def test_other_weights_are_noticed(folder: Path) -> None:
    weights = np.fromfile(folder / WEIGHTS_FILE, np.float32)
    replace_file(folder, WEIGHTS_FILE, np.where(np.isfinite(weights), -weights, weights).tobytes())
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="golden sentence"):
        replay(bundle, OnnxRunner.open(bundle, max_rows=1, num_threads=1))


def test_log_probs_out_of_tolerance_are_noticed(folder: Path) -> None:
    edit_manifest(folder, lambda values: values["parity"]["golden"][2]["token_logprobs"].__setitem__(0, -20.0))
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=r"golden sentence 2 differ by .* the tolerance is 0\.001"):
        replay(bundle, OnnxRunner.open(bundle, max_rows=8, num_threads=1))


def set_constant(value: float) -> Callable[[onnx.GraphProto], None]:
    """Replaces what scores of attention are scaled by."""

    def edit(graph: onnx.GraphProto) -> None:
        name = "const_float32__0.25"
        weight(graph, name).CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))

    return edit


def see_the_future(graph: onnx.GraphProto) -> None:
    (upper,) = node(graph, "Trilu").attribute
    upper.i = 1


def probabilities(graph: onnx.GraphProto) -> None:
    """In place of their logarithms."""
    node(graph, "LogSoftmax").op_type = "Softmax"


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (set_constant(3e38), "the encoder weights of golden sentence 0 are no weights that sum to 1"),
        (set_constant(0.5), "the log-probs of golden sentence 0 differ by"),
        (see_the_future, "in golden sentence 0 the decoder attends to tokens that it has yet to write"),
        (probabilities, "the log-probs of golden sentence 0 differ by"),
    ],
)
def test_an_attention_graph_that_does_something_else_is_refused(
    folder: Path, edit: Callable[[onnx.GraphProto], None], fault: str
) -> None:
    edit_graph(folder, ATTENTION_FILE, edit)
    bundle = Bundle.open(folder)
    replay(bundle, OnnxRunner.open(bundle, max_rows=8, num_threads=1))
    with pytest.raises(BundleError, match=f"{ATTENTION_FILE}: .*{fault}"):
        replay_attention(bundle, AttentionPass(bundle, num_threads=1))


def swapped_outputs(graph: onnx.GraphProto) -> None:
    """Both are float, of the vocabulary."""
    for made in graph.node:
        for i, name in enumerate(made.output):
            made.output[i] = {"all_logits": "all_logprobs", "all_logprobs": "all_logits"}.get(name, name)


def missing_mask(graph: onnx.GraphProto) -> None:
    """The encoder reads the padding of shorter sentences, too."""
    for made in graph.node:
        if made.op_type == "GroupQueryAttention":
            made.input[5] = "longest"
    (length,) = node(graph, "Squeeze").output
    place = list(graph.node).index(node(graph, "Squeeze")) + 1
    graph.node.insert(place, helper.make_node("Sub", [length, "const_int32__1"], ["one_less"]))
    graph.node.insert(place + 1, helper.make_node("Mul", ["source_lengths", "zero"], ["zeros"]))
    graph.node.insert(place + 2, helper.make_node("Add", ["zeros", "one_less"], ["longest"]))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "zero"))


def impossible_shape(graph: onnx.GraphProto) -> None:
    node(graph, "Transpose").attribute[0].ints[:] = [0, 0, 0, 0]


def all_the_memory(graph: onnx.GraphProto) -> None:
    """Seven gigabytes, of a shape that is computed from an input."""
    graph.node.extend(
        [
            helper.make_node("Shape", ["source_lengths"], ["eight"]),
            helper.make_node("Mul", ["eight", "many"], ["axis"]),
            helper.make_node("Concat", ["axis", "axis", "axis"], ["shape"], axis=0),
            helper.make_node("Expand", ["eight", "shape"], ["huge"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([120], np.int64), "many"))


@pytest.mark.parametrize(
    ("name", "edit", "fault"),
    [
        (DECODER_STEP_FILE, swapped_outputs, "cannot be run: the outputs of a step contradict each other"),
        (ENCODER_FILE, missing_mask, "golden sentence"),
        (ENCODER_FILE, all_the_memory, "cannot be run: .*Failed to allocate memory"),
    ],
)
def test_a_graph_that_does_something_else_is_refused(
    folder: Path, name: str, edit: Callable[[onnx.GraphProto], None], fault: str
) -> None:
    edit_graph(folder, name, edit)
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match=fault):
        replay(bundle, OnnxRunner.open(bundle, max_rows=8, num_threads=1))


def test_what_onnx_runtime_refuses_is_a_bundle_error(folder: Path) -> None:
    edit_graph(folder, ENCODER_FILE, impossible_shape)
    with pytest.raises(BundleError, match=f"{ENCODER_FILE} cannot be loaded: .*Transpose"):
        OnnxRunner.open(Bundle.open(folder), max_rows=1, num_threads=1)


def test_the_limit_of_memory_ends_with_the_replay(tiny_bundles: dict[Precision, Bundle]) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    replay(tiny_bundles["fp32"], OnnxRunner.open(tiny_bundles["fp32"], max_rows=8, num_threads=1))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
