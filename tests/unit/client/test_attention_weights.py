from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman.attention import weights
from dragoman.attention.sizes import attention_bytes
from dragoman.types import AttentionKind, WeightType

Array = NDArray[np.float32]

# What attention.proto promises.
LARGEST_ERROR = {"f32": 0.0, "f16": 2.5e-4, "u16": 7.7e-6, "u8": 2e-3}

lengths = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def softmax(shape: tuple[int, ...], seed: int, *, causal: bool = False) -> Array:
    logits = np.random.default_rng(seed).normal(scale=4, size=shape)
    if causal:
        logits = np.where(np.tri(shape[-2], shape[-1]) == 1, logits, -np.inf)
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    rows: Array = (exp / exp.sum(axis=-1, keepdims=True)).astype(np.float32)
    return rows


@given(rows=lengths, columns=lengths, seed=seeds, weight_type=st.sampled_from(get_args(WeightType)))
def test_weights_come_back_from_the_wire(rows: int, columns: int, seed: int, weight_type: WeightType) -> None:
    sent = softmax((2, 3, rows, columns), seed)
    data = weights.to_wire(sent, weight_type)
    received = weights.from_wire(data, sent.shape, weight_type)

    assert received.dtype == np.float32
    assert float(np.abs(received - sent).max()) <= LARGEST_ERROR[weight_type]
    assert len(data) == attention_bytes(columns, rows, num_layers=2, num_heads=3, dtype=weight_type)


@pytest.mark.parametrize("weight_type", get_args(WeightType))
def test_nothing_and_all_come_back_exactly(weight_type: WeightType) -> None:
    ends = np.array([0, 1], np.float32)
    assert weights.from_wire(weights.to_wire(ends, weight_type), (2,), weight_type).tolist() == [0, 1]


def test_the_wire_is_little_endian_fixed_point() -> None:
    values = np.array([0.5, 1 / 255], np.float32)
    assert weights.to_wire(values, "u16") == b"\x00\x80\x01\x01"
    assert weights.to_wire(values, "u8") == b"\x80\x01"
    assert weights.to_wire(values[:1], "f16") == b"\x00\x38"
    assert weights.to_wire(values[:1], "f32") == b"\x00\x00\x00\x3f"


def test_a_view_goes_out_in_c_order() -> None:
    values = np.array([[0, 1], [0.2, 0.4]], np.float32)
    assert weights.to_wire(values.T, "u8") == bytes([0, 51, 255, 102])


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, b"\x00" * 10])
def test_bytes_of_another_shape_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cannot reshape|buffer size"):
        weights.from_wire(data, (2, 2), "u16")


@given(num_layers=lengths, num_heads=lengths, seed=seeds)
def test_reductions_are_those_of_numpy(num_layers: int, num_heads: int, seed: int) -> None:
    given_weights = softmax((num_layers, num_heads, 4, 5), seed)

    assert weights.reduce(given_weights) is given_weights
    mean = weights.reduce(given_weights, "mean", "mean")
    assert mean.shape == (1, 1, 4, 5)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(mean[0, 0], given_weights.mean(axis=(0, 1)), atol=1e-6)
    largest = weights.reduce(given_weights, "max", None)
    assert largest.shape == (num_layers, 1, 4, 5)
    assert (largest >= given_weights).all()
    np.testing.assert_array_equal(weights.reduce(given_weights, None, "mean")[0], given_weights.mean(axis=0))


@given(num_layers=lengths, num_heads=lengths, length=lengths, seed=seeds)
def test_rollout_of_self_attention_is_the_product_of_its_layers(
    num_layers: int, num_heads: int, length: int, seed: int
) -> None:
    given_weights = softmax((num_layers, num_heads, length, length), seed, causal=True)
    product = np.eye(length)
    for layer in given_weights.astype(np.float64):
        product = (layer.mean(axis=0) + np.eye(length)) / 2 @ product

    taken = weights.self_rollout(given_weights)

    assert taken.dtype == np.float32
    np.testing.assert_allclose(taken, product, atol=1e-6)
    np.testing.assert_allclose(taken.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(taken, 1).any()  # what comes later was never read


@given(num_layers=lengths, encoder_layers=lengths, source=lengths, target=lengths, seed=seeds)
def test_rollout_of_cross_attention_lacks_the_share_of_the_target(
    num_layers: int, encoder_layers: int, source: int, target: int, seed: int
) -> None:
    encoder = softmax((encoder_layers, 2, source, source), seed)
    decoder = softmax((num_layers, 2, target, target), seed + 1, causal=True)
    cross = softmax((num_layers, 2, target, source), seed + 2)

    taken = weights.cross_rollout(encoder, decoder, cross)

    assert taken.shape == (target, source)
    np.testing.assert_allclose(taken.sum(axis=-1), 1 - 2.0**-num_layers, atol=1e-5)


def test_rollout_of_cross_attention_by_hand() -> None:
    # Two positions on each side, one layer, one head: the encoder swaps, the decoder's second
    # position reads its first, and each target position reads the source position of its number.
    encoder = np.array([[[[0, 1], [1, 0]]]], np.float32)
    decoder = np.array([[[[1, 0], [1, 0]]]] * 2, np.float32)
    cross = np.array([[[[1, 0], [0, 1]]]] * 2, np.float32)

    taken = weights.cross_rollout(encoder, decoder, cross)

    # E is [[.5, .5], [.5, .5]]: after layer 1 all is .25, after layer 2 (.25 + .5) / 2.
    np.testing.assert_allclose(taken, np.full((2, 2), 0.375))


def test_a_model_that_reads_only_itself_rolls_out_to_itself() -> None:
    identity = np.broadcast_to(np.eye(3, dtype=np.float32), (4, 2, 3, 3))
    np.testing.assert_array_equal(weights.self_rollout(identity), np.eye(3))


def test_sizes_are_those_of_the_shapes() -> None:
    # The table of docs/attention.md: 6 layers of 8 heads.
    kinds = get_args(AttentionKind)
    assert attention_bytes(512, 512, num_layers=6, num_heads=8, kinds=kinds, dtype="f32") == 150_994_944
    assert attention_bytes(3, 5, num_layers=1, num_heads=1, kinds=("encoder",), dtype="u8", num_targets=4) == 9
    assert attention_bytes(3, 5, num_layers=2, num_heads=1, kinds=("decoder",), dtype="u8", num_targets=4) == 200
    assert attention_bytes(3, 5, num_layers=1, num_heads=2, num_targets=4) == 240
