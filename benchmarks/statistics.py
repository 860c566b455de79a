"""What is computed from measurements. Pure functions: no clock, no model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from dragoman_export.dimensions import Dimensions


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of some measurements and the spread they had, from the lowest to the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Raises ValueError when there are no values."""
        if not values:
            raise ValueError("there is nothing to summarise")
        return cls(median(values), min(values), max(values))

    @classmethod
    def single(cls, value: float) -> "Summary":
        """Of a figure that was measured once, or that is no measurement."""
        return cls(value, value, value)


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """How many times as fast we are, from runs that alternated: each ratio is of two runs next to each other.

    What slows the machine down for a while hits both halves of a pair, so that it leaves their ratio alone, while it
    would move the ratio of two medians.

    Raises:
        ValueError: the runs are not paired, or there are none.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} runs cannot be paired with {len(theirs)}")
    return Summary.of([a / b for a, b in zip(ours, theirs, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank).

    It is always one of the values, so that infinity may stand for a call that failed.

    Raises:
        ValueError: there are no values, or `percent` is not above 0 and at most 100.
    """
    if not values:
        raise ValueError("there is nothing to take a percentile of")
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent}, must be above 0 and at most 100")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


# -- the rate that a server sustains ---------------------------------------------------------------------------------


def bracket(p95_by_rate: Mapping[float, float], bound: float) -> tuple[float, float]:
    """The highest rate up to which every measured p95 keeps the bound, and the next one, which does not.

    0 comes first when none does, infinity last when all do.
    """
    rates = [0.0, *sorted(p95_by_rate), math.inf]
    for low, high in pairwise(rates):
        if high == math.inf or p95_by_rate[high] > bound:
            return low, high
    raise AssertionError("the last rate is infinity")


def sustained_rate(holds: Callable[[float], bool], low: float, high: float, num_steps: int) -> float:
    """Bisects between a rate that holds and one that does not; returns the highest that was seen to hold.

    `holds` measures at a rate. Where `high` is infinity nothing is known to fail, and `low` is the answer.
    """
    if high == math.inf:
        return low
    for _ in range(num_steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


# -- work ------------------------------------------------------------------------------------------------------------


def encoder_multiply_adds(dims: Dimensions, num_source_tokens: int) -> int:
    """Multiply-adds to encode one sentence, cross-attention's keys and values included, which are computed once for it.

    With S source tokens, width D, inner width F, Le encoder and Ld decoder layers:

        Le * S * (4 D^2 + 2 D F)     projections of self-attention, feed-forward network
        Le * S * 2 S D               Q K^T and the mix of the values
        Ld * S * 2 D^2               keys and values for cross-attention

    Element-wise work, norms and softmax are not counted.
    """
    s, d, f = num_source_tokens, dims.d_model, dims.d_feed_forward
    layers = dims.num_encoder_layers * s * (4 * d * d + 2 * d * f + 2 * s * d)
    return layers + dims.num_decoder_layers * s * 2 * d * d


def decoder_multiply_adds(dims: Dimensions, num_source_tokens: int, num_target_tokens: int) -> int:
    """Multiply-adds to decode one sentence greedily with a KV cache.

    With S source and T target tokens, V entries of the vocabulary and the letters of `encoder_multiply_adds`:

        Ld * T * (6 D^2 + 2 D F)     4 projections of self-attention, 2 of cross-attention, feed-forward network
        Ld * 2 D * (T (T + 1) / 2)   self-attention: step t attends to t positions
        Ld * T * 2 S D               cross-attention
        T * V * D                    output projection
    """
    s, t, d, f = num_source_tokens, num_target_tokens, dims.d_model, dims.d_feed_forward
    layer = t * (6 * d * d + 2 * d * f) + d * t * (t + 1) + 2 * t * s * d
    return dims.num_decoder_layers * layer + t * dims.target_vocabulary_size * d
