"""What attention says of a translation, on attention made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman_server.attention.signals import Signals, Suspicion
from dragoman_server.attention.signals import signals as all_signals
from dragoman_server.text.tokenizer import Span

SPANS = [(0, 3), (4, 7), (7, 9), (10, 10), (10, 14)]


def signals(
    cross: NDArray[np.float32],
    source_spans: Sequence[Span],
    target_ids: Sequence[int],
    is_cut_off: bool,
    is_copied: bool = True,
    unspelt_share: float = 0.0,
) -> Signals:
    return all_signals(cross, source_spans, target_ids, is_cut_off, is_copied, unspelt_share)


def one_hot(columns: list[int], num_columns: int) -> NDArray[np.float32]:
    return np.eye(num_columns, dtype=np.float32)[columns]


def test_a_diagonal_is_all_covered_and_certain() -> None:
    found = signals(one_hot([0, 1, 2, 3, 4, 5], 6), SPANS, [11, 12, 13, 14, 15], False)  # five tokens, the end
    assert (found.source_coverage, found.uncovered_spans) == (1.0, [])
    assert found.attention_entropy == pytest.approx(0)
    assert found.end_of_sentence_share == pytest.approx(1 / 6)
    assert (found.repetition, found.length_ratio, found.suspicions) == (0.0, 1.0, ())


def test_neighbours_that_are_not_covered_are_one_span() -> None:
    found = signals(one_hot([0, 4, 5], 6), SPANS, [11, 12], False)
    assert found.source_coverage == pytest.approx(2 / 5)
    assert found.uncovered_spans == [(4, 9)]
    found = signals(one_hot([1, 5], 6), SPANS, [11], False)
    assert found.uncovered_spans == [(0, 3), (7, 14)]
    assert Suspicion.UNCOVERED in found.suspicions


def test_weights_add_up_over_the_target() -> None:
    weights = np.full((2, 6), 0.11, np.float32)
    weights[:, 5] = 0.45
    assert signals(weights, SPANS, [11], False).source_coverage == 1.0
    assert signals(weights[:1], SPANS, [], False).source_coverage == 0.0


def test_weights_on_what_was_left_out_before_the_text_do_not_count() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(6), 4).astype(np.float32)
    whole, halves = (
        signals(cross, SPANS, [11, 12, 13], False) for cross in (weights, (weights / 2).astype(np.float32))
    )
    assert whole.uncovered_spans == halves.uncovered_spans
    for name in ("source_coverage", "attention_entropy", "end_of_sentence_share"):
        assert getattr(whole, name) == pytest.approx(getattr(halves, name), abs=1e-6)


def test_what_follows_end_of_sentence_counts_with_it() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(6), 4).astype(np.float32)
    apart = np.concatenate([weights[:, :5], weights[:, 5:] / 4, weights[:, 5:] * 3 / 4], axis=1).astype(np.float32)
    one, two = (signals(cross, SPANS, [11, 12, 13], False) for cross in (weights, apart))
    assert one.uncovered_spans == two.uncovered_spans
    assert one.end_of_sentence_share == pytest.approx(two.end_of_sentence_share)


def test_even_attention_is_detached() -> None:
    found = signals(np.full((3, 6), 1 / 6, np.float32), SPANS, [11, 12], False)
    assert found.attention_entropy == pytest.approx(1)
    assert found.suspicions == (Suspicion.DETACHED,)


def test_attention_that_rests_at_the_end_is_detached() -> None:
    found = signals(one_hot([5, 5, 5, 0], 6), SPANS, [11, 12, 13], False)
    assert found.end_of_sentence_share == pytest.approx(3 / 4)
    assert Suspicion.DETACHED in found.suspicions


@pytest.mark.parametrize(
    ("ids", "repetition"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 0),
        ([1, 2, 3, 1, 2, 3], 0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 4 / 8),
        ([1, 1, 1, 1, 1], 4 / 5),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 5 / 10),
        ([], 0),
    ],
)
def test_repetition_is_the_share_that_came_before(ids: list[int], repetition: float) -> None:
    found = signals(one_hot([0] * (len(ids) + 1), 6), SPANS, ids, False)
    assert found.repetition == pytest.approx(repetition)
    assert (Suspicion.REPETITIVE in found.suspicions) == (repetition > 0.3)


@pytest.mark.parametrize(
    ("num_target", "num_source", "is_unusual"), [(30, 11, True), (4, 11, True), (11, 11, False), (6, 1, False)]
)
def test_lengths_that_do_not_go_together(num_target: int, num_source: int, is_unusual: bool) -> None:
    spans = [(i, i + 1) for i in range(num_source)]
    found = signals(one_hot([0] * (num_target + 1), num_source + 1), spans, list(range(num_target)), False)
    assert found.length_ratio == pytest.approx(num_target / num_source)
    assert (Suspicion.LENGTH in found.suspicions) == is_unusual


def test_a_target_at_its_limit_was_cut_off() -> None:
    assert Suspicion.CUT_OFF in signals(one_hot([0], 6), SPANS, [11], True).suspicions


def test_what_was_not_copied_and_what_cannot_be_spelt() -> None:
    diagonal = one_hot([0, 1, 2, 3, 4, 5], 6)
    assert signals(diagonal, SPANS, [11, 12, 13, 14, 15], False, is_copied=False).suspicions == (Suspicion.NOT_COPIED,)
    assert signals(diagonal, SPANS, [11, 12, 13, 14, 15], False, unspelt_share=0.3).suspicions == ()
    found = signals(diagonal, SPANS, [11, 12, 13, 14, 15], False, unspelt_share=0.31)
    assert found.suspicions == (Suspicion.UNKNOWN_SCRIPT,)


def test_bytes_repeat_and_differ_in_number_more_than_words_do() -> None:
    """A phrase of four bytes comes back in most texts, and Devanagari has three bytes for a letter."""
    source = "the hen and the other hens"
    target = "अ" * 3 + "आ" * 5 + "इ" * 14
    spans = [(place, place + 1) for place in range(len(source))]
    cross = np.eye(len(source) + 1, dtype=np.float32)
    english, hindi = [*source.encode()], [*target.encode()]
    assert all_signals(cross, spans, english, False, True, 0.0, are_bytes=True).suspicions == ()
    assert Suspicion.REPETITIVE in all_signals(cross, spans, english, False, True, 0.0).suspicions
    assert len(hindi) > 2.5 * len(spans)
    longer = all_signals(cross, spans, hindi, False, True, 0.0, are_bytes=True)
    assert Suspicion.LENGTH not in longer.suspicions
    assert Suspicion.REPETITIVE in longer.suspicions


@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_shares_are_shares(num_source: int, num_target: int, num_following: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(num_source + 1 + num_following, 0.3), num_target + 1).astype(np.float32)
    spans = [(2 * i, 2 * i + 1) for i in range(num_source)]
    found = signals(weights, spans, rng.integers(0, 3, num_target).tolist(), False)
    for share in (found.source_coverage, found.attention_entropy, found.end_of_sentence_share, found.repetition):
        assert -1e-6 <= share <= 1 + 1e-6
    covered = num_source - sum((end - begin + 1) // 2 for begin, end in found.uncovered_spans)
    assert found.source_coverage == pytest.approx(covered / num_source)
