"""The attention graph against the PyTorch model, and the pass that runs it."""

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dragoman.types import AttentionKind
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import greedy_decode, pad
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import ATTENTION_FILE, Precision
from dragoman_server.runtime import background as background_module
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.runner import OnnxRunner
from dragoman_server.runtime.session import open_session
from support.tiny_model import random_source, random_sources

KINDS: tuple[AttentionKind, ...] = ("encoder", "decoder", "cross")
SOURCE_LENGTHS, TARGET_LENGTHS = (9, 3, 17, 7), (5, 12, 1, 8)
Pair = tuple[tuple[int, ...], list[int]]


def random_pairs(checkpoint: Checkpoint) -> list[Pair]:
    rng = random.Random(4)
    size = checkpoint.config.dimensions.target_vocabulary_size
    sources = [random_source(checkpoint, length, rng).ids for length in SOURCE_LENGTHS]
    return [(source, rng.choices(range(6, size), k=n)) for source, n in zip(sources, TARGET_LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def pairs(tiny_checkpoint: Checkpoint) -> list[Pair]:
    return random_pairs(tiny_checkpoint)


@torch.inference_mode()
def forced(checkpoint: Checkpoint, pair: Pair) -> tuple[list[NDArray[np.floating]], NDArray[np.floating]]:
    """PyTorch's weights by kind, [L, H, rows, columns], and its log-probs of the target."""
    source, target = pair
    ids, inputs = torch.tensor([source]), torch.tensor([[checkpoint.config.bos_token_id, *target[:-1]]])
    logits, weights = checkpoint.model(ids, torch.ones_like(ids, dtype=torch.bool), inputs)
    logprobs = logits[0].log_softmax(-1).gather(-1, torch.tensor(target).unsqueeze(-1)).squeeze(-1)
    return [of_kind[0].numpy() for of_kind in weights], logprobs.numpy()


def assert_is_attention(encoder: NDArray[np.float32], decoder: NDArray[np.float32], cross: NDArray[np.float32]) -> None:
    """Rows sum to 1, and nobody sees what is to come."""
    for weights in (encoder, decoder, cross):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert (np.triu(decoder, k=1) == 0).all()


def test_weights_and_logprobs_are_those_of_pytorch(
    tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]
) -> None:
    attention_pass = AttentionPass(tiny_bundles["fp32"], num_threads=1)
    for pair in pairs:
        found = attention_pass.encoder(pair[0]), attention_pass.decoder(*pair), attention_pass.cross(*pair)
        weights, logprobs = forced(tiny_checkpoint, pair)
        assert_is_attention(*found)
        for ours, theirs in zip(found, weights, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(attention_pass.logprobs(*pair), logprobs, atol=1e-4)


def test_everything_at_once_is_what_each_is_alone(tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]) -> None:
    attention = AttentionPass(tiny_bundles["int8"], num_threads=1)
    for source_ids, target_ids in pairs:
        everything = attention.everything(source_ids, target_ids)
        for kind in KINDS:
            alone = np.stack(attention.weights(kind, source_ids, target_ids))
            np.testing.assert_array_equal(getattr(everything, kind), alone)
        np.testing.assert_array_equal(everything.logprobs, attention.logprobs(source_ids, target_ids))


def test_logprobs_that_are_computed_in_parts_are_those_of_the_whole(
    tiny_bundles: dict[Precision, Bundle], pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    attention_pass = AttentionPass(tiny_bundles["fp32"], num_threads=1)
    whole = [attention_pass.logprobs(*pair) for pair in pairs]
    monkeypatch.setattr("dragoman_server.runtime.attention_pass._MAX_TABLE_BYTES", 4 * 400 * 3)  # three rows
    for pair, expected in zip(pairs, whole, strict=True):
        np.testing.assert_allclose(attention_pass.logprobs(*pair), expected, atol=1e-6)


@pytest.mark.slow
def test_the_default_model_attends_as_its_checkpoint(default_bundles: dict[Precision, Path]) -> None:
    """To 1e-5 beyond what PyTorch itself is off by: its encoder's weights differ by 3e-5 from those in float64."""
    checkpoint = Checkpoint.load(Path(__file__).parent.parent.parent / "models" / "default")
    in_float64 = dataclasses.replace(checkpoint, model=copy.deepcopy(checkpoint.model).double())
    bundle = Bundle.open(default_bundles["fp32"])
    attention_pass = AttentionPass(bundle, num_threads=1)
    sources = [golden.source_ids for golden in bundle.manifest.parity.golden]
    targets = greedy_decode(checkpoint.model, checkpoint.config, sources, 60)
    for source, target in zip(sources, targets, strict=True):
        pair = source, list(target)
        found = attention_pass.encoder(source), attention_pass.decoder(*pair), attention_pass.cross(*pair)
        (weights, logprobs), (exact, _) = forced(checkpoint, pair), forced(in_float64, pair)
        assert_is_attention(*found)
        for ours, theirs, true in zip(found, weights, exact, strict=True):
            np.testing.assert_allclose(ours, true, atol=1e-5 + np.abs(theirs - true).max())
        np.testing.assert_allclose(attention_pass.logprobs(*pair), logprobs, atol=1e-4)


def test_what_is_terminated_and_begun_again_gives_the_same(
    tiny_bundles: dict[Precision, Bundle], pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(background_module._IdleThread, "cpu_seconds", lambda _: 0.0)
    in_front = AttentionPass(tiny_bundles["int8"], num_threads=1)
    background = Background()
    behind = AttentionPass(tiny_bundles["int8"], num_threads=1, background=background)
    for pair in pairs * 2:
        assert (behind.cross(*pair) == in_front.cross(*pair)).all()
        assert (behind.logprobs(*pair) == in_front.logprobs(*pair)).all()
    background.close()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.5)])
def test_logprobs_are_those_of_the_decoder(
    precision: Precision, tolerance: float, tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]
) -> None:
    """In int8 a rounding that falls the other way can change them as much as quantisation itself does."""
    bundle = tiny_bundles[precision]
    attention_pass, runner = AttentionPass(bundle, num_threads=1), OnnxRunner.open(bundle, max_rows=1, num_threads=1)
    start = bundle.manifest.decoder_start_token_id
    sources = [source.ids for source in random_sources(tiny_checkpoint, 12, seed=9)]
    targets = greedy_decode(tiny_checkpoint.model, tiny_checkpoint.config, sources, 40)
    for source, target in zip(sources, targets, strict=True):
        runner.encode([source], first_row=0)
        decoder = [
            runner.decode_step([token_id], [position], score_ids=[label]).score_logprobs[0]
            for position, (token_id, label) in enumerate(zip([start, *target[:-1]], target, strict=True))
        ]
        np.testing.assert_allclose(attention_pass.logprobs(source, target), decoder, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_heads_can_be_had_alone(
    kind: AttentionKind, precision: Precision, tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]
) -> None:
    attention_pass = AttentionPass(tiny_bundles[precision], num_threads=1)
    source, target = pairs[0]
    everything = np.stack(attention_pass.weights(kind, source, target))
    for layers, heads in (([1], [0, 3]), ([0, 1], [2]), ([0], [0, 1, 2, 3])):
        some = np.stack(attention_pass.weights(kind, source, target, layers, heads))
        np.testing.assert_array_equal(some, everything[np.ix_(layers, heads)])


def test_the_weights_of_the_source_do_not_depend_on_the_target(
    tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]
) -> None:
    attention_pass = AttentionPass(tiny_bundles["fp32"], num_threads=1)
    source, target = pairs[0]
    for alone, with_target in zip(
        attention_pass.weights("encoder", source), attention_pass.weights("encoder", source, target), strict=True
    ):
        np.testing.assert_array_equal(alone, with_target)


def test_an_empty_target_has_weights_of_no_rows(tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]) -> None:
    attention_pass = AttentionPass(tiny_bundles["fp32"], num_threads=1)
    source, _ = pairs[0]
    assert attention_pass.cross(source, []).shape == (2, 4, 0, len(source))
    assert attention_pass.decoder(source, []).shape == (2, 4, 0, 0)
    assert attention_pass.logprobs(source, []).shape == (0,)


# -- the graph, in batches ---------------------------------------------------------------------------------------------


def feeds(pairs: list[Pair]) -> dict[str, NDArray[Any]]:
    """Inputs of the attention graph: a batch, padded on both sides; all layers and heads."""
    source_ids, mask = pad([source for source, _ in pairs], 0)
    decoder_input_ids, _ = pad([[2, *target[:-1]] for _, target in pairs], 0)
    return {
        "input_ids": source_ids.numpy(),
        "attention_mask": mask.int().numpy(),
        "decoder_input_ids": decoder_input_ids.numpy(),
        "hidden_states": np.zeros((1, 64), np.float32),
        "labels": np.zeros(1, np.int64),
        "heads": np.arange(4),
        **{f"{kind}_layers": np.ones(2, np.int64) for kind in KINDS},
    }


def run(bundle: Bundle, pairs: list[Pair]) -> tuple[dict[AttentionKind, NDArray[np.float32]], NDArray[np.float32]]:
    """The weights [b, L, H, rows, columns] by kind, and the decoder's states."""
    session = open_session(bundle.contents(), ATTENTION_FILE, num_threads=2)
    *weights, states, _ = session.run(None, feeds(pairs))
    by_kind = {kind: np.stack(weights[2 * i : 2 * i + 2], axis=1) for i, kind in enumerate(KINDS)}
    return by_kind, states


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_padded_sentence_attends_as_the_sentence_alone(
    precision: Precision, tiny_bundles: dict[Precision, Bundle], pairs: list[Pair]
) -> None:
    together, states = run(tiny_bundles[precision], pairs)
    for row, (source, target) in enumerate(pairs):
        s, t = len(source), len(target)
        alone, own_states = run(tiny_bundles[precision], [(source, target)])
        # An int8 rounding that falls the other way moves a weight by about 0.001: neighbours would move it by far more.
        tolerance = 1e-5 if precision == "fp32" else 0.02
        for kind, (num_rows, num_columns) in zip(KINDS, ((s, s), (t, t), (t, s)), strict=True):
            found = together[kind][row, :, :, :num_rows, :num_columns]
            np.testing.assert_allclose(found, alone[kind][0], atol=tolerance)
        np.testing.assert_allclose(states[row, :t], own_states[0], atol=1e-4 if precision == "fp32" else 0.5)
        assert (together["cross"][row, :, :, :, s:] == 0).all()
        assert (together["encoder"][row, :, :, :, s:] == 0).all()
        assert (np.triu(together["decoder"][row], k=1) == 0).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_without_padding_the_weights_are_the_same_to_the_last_bit(
    precision: Precision, tiny_bundles: dict[Precision, Bundle], tiny_checkpoint: Checkpoint
) -> None:
    rng = random.Random(6)
    pairs = [(random_source(tiny_checkpoint, 11, rng).ids, rng.choices(range(6, 100), k=7)) for _ in range(8)]
    together, states = run(tiny_bundles[precision], pairs)
    for row, pair in enumerate(pairs):
        alone, own_states = run(tiny_bundles[precision], [pair])
        for kind in KINDS:
            np.testing.assert_array_equal(together[kind][row], alone[kind][0])
        np.testing.assert_array_equal(states[row], own_states[0])
