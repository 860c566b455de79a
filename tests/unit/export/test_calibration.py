import random

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from dragoman_export.bundle.calibration import with_int8_key_values
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.dimensions import Dimensions
from dragoman_export.graph.builder import GraphBuilder, WeightFile
from dragoman_export.graph.layers import LayerWriter
from dragoman_export.greedy import Source, translate
from dragoman_export.model import Transformer
from support.tiny_model import random_source


def _sources(checkpoint: Checkpoint) -> list[Source]:
    rng = random.Random(3)
    return [random_source(checkpoint, length, rng) for length in (3, 9, 14)]


def _with_int8_key_values(checkpoint: Checkpoint) -> Transformer:
    pairs = translate(checkpoint.model, checkpoint.config, _sources(checkpoint))
    return with_int8_key_values(checkpoint.model, checkpoint.config, pairs)


def test_keys_and_values_that_fill_int8_change_nothing_that_the_model_says(tiny_checkpoint: Checkpoint) -> None:
    sources = _sources(tiny_checkpoint)
    scaled = _with_int8_key_values(tiny_checkpoint)
    target = torch.tensor([[1, 20, 21, 22, 23]])
    for source in sources:
        ids = torch.tensor([source.ids])
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.inference_mode():
            expected, expected_weights = tiny_checkpoint.model(ids, mask, target)
            found, found_weights = scaled(ids, mask, target)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        for ours, theirs in zip(found_weights, expected_weights, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_every_channel_of_keys_and_values_fills_its_range(tiny_checkpoint: Checkpoint) -> None:
    sources = _sources(tiny_checkpoint)
    scaled = _with_int8_key_values(tiny_checkpoint)
    seen = []
    attention = scaled.decoder_layers[-1].cross_attention
    for projection in (attention.key, attention.value):
        projection.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, -2)))
    with torch.inference_mode():
        for source in sources:
            ids = torch.tensor([source.ids])
            scaled(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([[1]]))
    for of_projection in (seen[0::2], seen[1::2]):
        states = torch.cat(of_projection)
        torch.testing.assert_close(states.amax(dim=0), torch.full((states.shape[1],), 127.0), atol=0.1, rtol=0)
        torch.testing.assert_close(states.amin(dim=0), torch.full((states.shape[1],), -127.0), atol=0.1, rtol=0)


def test_the_model_itself_stays_as_it_is(tiny_checkpoint: Checkpoint) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_checkpoint.model.state_dict().items()}
    _with_int8_key_values(tiny_checkpoint)
    for name, tensor in tiny_checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_only_the_attention_of_the_decoder_is_copied(tiny_checkpoint: Checkpoint) -> None:
    """A large model is not to be in memory twice."""
    model, scaled = tiny_checkpoint.model, _with_int8_key_values(tiny_checkpoint)
    own = {
        name
        for (name, ours), theirs in zip(scaled.named_parameters(), model.parameters(), strict=True)
        if ours.data_ptr() != theirs.data_ptr()
    }
    attentions = ("self_attention", "cross_attention")
    assert own == {
        name for name, _ in model.named_parameters() if "decoder" in name and name.split(".")[2] in attentions
    }
    assert scaled.target_embedding.tokens.weight is scaled.source_embedding.tokens.weight


class _Top:
    """The top-k of the step graph, by itself."""

    def __init__(self, vocabulary_size: int) -> None:
        dims = Dimensions(vocabulary_size, vocabulary_size, 8, 1, 8, 1, 1)
        graph = GraphBuilder("top", WeightFile("unused"))
        padded = vocabulary_size + -vocabulary_size % 64
        log_probs = graph.input("log_probs", TensorProto.FLOAT, ["rows", padded])
        k = graph.input("k", TensorProto.INT64, [1])
        ids, values = LayerWriter(graph, Transformer(dims), "fp32", {}).top(log_probs, k)
        graph.output("ids", ids, TensorProto.INT64, ["rows", "k"])
        graph.output("values", values, TensorProto.FLOAT, ["rows", "k"])
        self.session = ort.InferenceSession(graph.to_bytes(), providers=["CPUExecutionProvider"])
        self.padding = padded - vocabulary_size

    def __call__(self, log_probs: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        padded = np.pad(log_probs, ((0, 0), (0, self.padding)), constant_values=-np.inf)
        ids, values = self.session.run(None, {"log_probs": padded, "k": np.array([k])})
        return ids, values


@pytest.fixture(scope="module", params=[5, 64, 65, 200])
def top(request: pytest.FixtureRequest) -> tuple[int, _Top]:
    return request.param, _Top(request.param)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), share=st.floats(0, 1), is_coarse=st.booleans())
def test_the_best_of_blocks_are_the_best_of_all(
    top: tuple[int, _Top], seed: int, rows: int, share: float, is_coarse: bool
) -> None:
    size, best = top
    k = 1 + int(share * (size - 1))
    log_probs = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)
    if is_coarse:
        log_probs = np.round(log_probs)  # many ties
    ids, values = best(log_probs, k)
    np.testing.assert_array_equal(values, -np.sort(-log_probs, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(log_probs, ids, axis=1), values)
    assert all(len(set(row)) == k for row in ids.tolist())
