import math
import random

import pytest

from benchmarks.paragraphs import paragraphs
from benchmarks.statistics import (
    Summary,
    bracket,
    decoder_multiply_adds,
    encoder_multiply_adds,
    paired_ratios,
    percentile,
    sustained_rate,
)
from dragoman_export.model import Dimensions, Transformer


def test_a_summary_is_the_median_and_the_extremes() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    assert Summary.of([1.0, 2.0]) == Summary(1.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="nothing"):
        Summary.of([])


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine was twice as slow in the second pair; the ratio of medians would depend on it.
    assert paired_ratios([30.0, 15.0, 30.0], [10.0, 5.0, 20.0]) == Summary(3.0, 1.5, 3.0)


def test_runs_that_are_not_paired_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="nothing"):
        paired_ratios([], [])


def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed() -> None:
    values = [float(i) for i in range(1, 101)]
    random.Random(0).shuffle(values)
    assert [percentile(values, p) for p in (1, 50, 95, 99, 100)] == [1.0, 50.0, 95.0, 99.0, 100.0]
    assert percentile([7.0], 50) == 7.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0


def test_failed_calls_count_in_a_percentile() -> None:
    latencies = [0.1] * 95 + [math.inf] * 5
    assert percentile(latencies, 95) == 0.1
    assert percentile(latencies, 96) == math.inf


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_there_is_no_such_percentile(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_the_bracket_ends_at_the_first_rate_that_is_too_slow() -> None:
    assert bracket({10.0: 0.1, 20.0: 0.2, 30.0: 0.9, 40.0: 0.3}, bound=0.5) == (20.0, 30.0)
    assert bracket({40.0: 0.9, 10.0: 0.5}, bound=0.5) == (10.0, 40.0)


def test_a_bracket_may_be_open() -> None:
    assert bracket({10.0: 0.9}, bound=0.5) == (0.0, 10.0)
    assert bracket({10.0: 0.1}, bound=0.5) == (10.0, math.inf)
    assert bracket({10.0: math.inf}, bound=0.5) == (0.0, 10.0)


def test_the_sustained_rate_is_one_that_was_seen_to_hold() -> None:
    measured: list[float] = []

    def holds(rate: float) -> bool:
        measured.append(rate)
        return rate <= 137.0

    rate = sustained_rate(holds, 100.0, 200.0, num_steps=10)
    assert rate in measured
    assert 137.0 - 100 / 2**10 <= rate <= 137.0
    assert len(measured) == 10


def test_nothing_is_measured_above_what_is_known_to_hold() -> None:
    def holds(rate: float) -> bool:
        raise AssertionError(f"measured at {rate}")

    assert sustained_rate(holds, 50.0, math.inf, num_steps=4) == 50.0


def test_paragraphs_use_every_sentence_before_one_comes_again() -> None:
    sources, references = [f"S{i}." for i in range(40)], [f"R{i}." for i in range(40)]
    made = paragraphs(sources, references, 6, seed=1)
    used = " ".join(made.sources).split()
    assert len(set(used)) == len(used)
    assert all(3 <= len(text.split()) <= 6 for text in made.sources)
    assert [text.replace("S", "R") for text in made.sources] == made.references
    assert paragraphs(sources, references, 6, seed=1) == made != paragraphs(sources, references, 6, seed=2)
    assert len(paragraphs(sources, references, 100, seed=1).sources) == 100


def test_multiply_adds_by_hand() -> None:
    dims = Dimensions(10, 10, d_model=8, num_heads=1, d_feed_forward=16, num_encoder_layers=2, num_decoder_layers=3)
    # Per source token and encoder layer: 4 x 64 + 2 x 128, and 2 x 5 x 8 of attention. Cross keys and values: 2 x 64.
    assert encoder_multiply_adds(dims, 5) == 2 * 5 * (256 + 256 + 80) + 3 * 5 * 128
    # One target token: 6 x 64 + 2 x 128, 2 x 8 of self-attention, 2 x 5 x 8 of cross-attention; then 10 x 8.
    assert decoder_multiply_adds(dims, 5, 1) == 3 * (384 + 256 + 16 + 80) + 80
    # Two steps attend to 1 + 2 positions.
    assert decoder_multiply_adds(dims, 5, 2) == 3 * (2 * (384 + 256 + 80) + 3 * 16) + 2 * 80


def test_multiply_adds_follow_the_weights() -> None:
    """Apart from attention itself, each token costs one multiply-add for every weight of the matrices it meets."""
    dims = Dimensions(100, 100, d_model=32, num_heads=4, d_feed_forward=64, num_encoder_layers=2, num_decoder_layers=3)
    model = Transformer(dims)
    encoder = sum(p.numel() for layer in model.encoder_layers for p in layer.parameters() if p.dim() == 2)
    decoder = sum(p.numel() for layer in model.decoder_layers for p in layer.parameters() if p.dim() == 2)
    cross_kv = 3 * 2 * 32 * 32
    assert encoder_multiply_adds(dims, 1) == encoder + cross_kv + 2 * 2 * 32
    assert decoder_multiply_adds(dims, 1, 1) == decoder - cross_kv + 3 * 2 * 2 * 32 + 100 * 32
