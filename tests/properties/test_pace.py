"""Estimates of an engine that works at any constant pace, in steps of any length."""

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from dragoman_server.engine.pace import Pace

STEPS = st.lists(st.tuples(st.floats(0.0001, 2.0), st.integers(1, 512)), min_size=8, max_size=60)


def paced(steps: list[tuple[float, int]], rate: float, start: float = 1000.0) -> tuple[Pace, float]:
    """An engine that has always enough to do: each step takes as long as its rows take at the rate."""
    pace, now = Pace(), start
    pace.note_step(now, 0, is_busy=True)
    for _, num_rows in steps:
        now += num_rows / rate
        pace.note_step(now, num_rows, is_busy=True)
    return pace, now


@given(steps=STEPS, rate=st.floats(1.0, 1e6), weight=st.floats(0.0, 1e9))
def test_a_constant_rate_is_found(steps: list[tuple[float, int]], rate: float, weight: float) -> None:
    pace, now = paced(steps, rate)
    assume(now > 1000.25)  # enough has been seen
    assert math.isclose(pace.seconds_of(weight, now), weight / rate, rel_tol=1e-6)


@given(steps=STEPS, pauses=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=60))
def test_what_is_done_with_empty_rows_and_in_pauses_does_not_count(
    steps: list[tuple[float, int]], pauses: list[float]
) -> None:
    pace, now = paced(steps, 1000.0)
    known = pace.seconds_of(1.0, now)
    pace.note_step(now, 0, is_busy=False)
    for pause, (_, num_rows) in zip(pauses, steps, strict=False):
        now += pause
        pace.note_step(now, num_rows, is_busy=False)
        assert pace.seconds_of(1.0, now) <= known * (1 + 1e-9)
    pace.note_step(now, 1, is_busy=True)
    assert math.isclose(pace.seconds_of(1.0, now), known, rel_tol=1e-9)  # the pauses are no work of the busy engine


@given(steps=STEPS, first=st.floats(0.0, 1e6), second=st.floats(0.0, 1e6))
def test_an_old_estimate_refuses_less_and_less(steps: list[tuple[float, int]], first: float, second: float) -> None:
    pace, now = paced(steps, 10.0)
    earlier, later = sorted((first, second))
    assert 0.0 <= pace.seconds_of(1e6, now + later) <= pace.seconds_of(1e6, now + earlier)
    assert pace.seconds_of(1e6, now + 1e6) < 1e-3


@given(answers=st.lists(st.tuples(st.integers(1, 100), st.floats(0.2, 5.0)), min_size=1, max_size=50))
def test_targets_are_expected_to_be_as_long_as_they_were(answers: list[tuple[int, float]]) -> None:
    pace, now = paced([(0.0, 100)] * 50, 1000.0)
    for size, ratio in answers:
        pace.note_answer(size, max(1, round(ratio * size)))
    ratios = [1.0, *(max(1, round(ratio * size)) / size for size, ratio in answers)]
    seconds = pace.seconds_of(1000.0, now)
    assert min(ratios) - 1e-6 <= seconds <= max(ratios) + 1e-6
    assert min(size for size, _ in answers) <= pace.usual_size


def test_the_latest_pace_counts_most() -> None:
    pace, now = paced([(0.0, 100)] * 100, 100.0)
    for _ in range(100):
        now += 0.1
        pace.note_step(now, 100, is_busy=True)  # ten times as fast, for 10 s
    assert 1.0 <= pace.seconds_of(1000.0, now) <= 1.05


def test_nothing_is_known_in_the_beginning() -> None:
    pace = Pace()
    assert pace.seconds_of(1e9, 0.0) == pace.decoding_seconds(1e9, 100, 0.0) == pace.usual_size == 0.0
    pace, now = paced([(0.0, 1)] * 7, rate=1.0)  # the few rows of the first steps, of a server that gets no time
    assert pace.seconds_of(1e9, now) == 0.0
