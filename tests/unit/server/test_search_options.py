import math
from typing import Any

import pytest

from dragoman_server.engine.search_options import SearchOptions

MAX_ROWS = 8


def faulty(**options: Any) -> list[str]:
    """The names of the options at fault."""
    return [name for name, _ in SearchOptions(**options).faults(MAX_ROWS)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 8, "num_hypotheses": 8, "patience": 2.0, "length_penalty": -10.0},
        {"is_sampling": True, "num_hypotheses": 8, "top_k": 0, "top_p": 1e-6, "temperature": 0.01, "seed": -1},
        {"min_target_tokens": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1, "suppressed": ((4, 5), (6,))},
    ],
)
def test_what_makes_sense_has_no_faults(options: dict[str, Any]) -> None:
    assert faulty(**options) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("beam_size", (0, -1, MAX_ROWS + 1)),
        ("num_hypotheses", (0, -1, 2)),
        ("length_penalty", (-10.5, 10.5, math.inf)),
        ("temperature", (0.0, -1.0, 101.0, math.inf)),
        ("top_k", (-1, 2**31)),
        ("top_p", (0.0, 1.1, -0.5)),
        ("min_target_tokens", (-1, 2**31)),
        ("repetition_penalty", (0.0, -1.0, 101.0, math.inf)),
        ("no_repeat_ngram_size", (-1, 2**31)),
        ("suppressed", (((),), ((4,), ()))),
    ],
)
def test_each_option_has_its_limits(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert name in faulty(**{name: value}), value


@pytest.mark.parametrize("name", ["length_penalty", "patience", "temperature", "top_p", "repetition_penalty"])
def test_not_a_number_is_a_fault_of_every_option_that_is_a_float(name: str) -> None:
    assert faulty(**{"beam_size": 2, name: math.nan}) == [name]


@pytest.mark.parametrize("patience", [0.05, 11.0, math.inf])
def test_patience_has_its_limits_in_a_beam_search(patience: float) -> None:
    assert faulty(beam_size=2, patience=patience) == ["patience"]


def test_patience_without_a_beam_is_a_fault() -> None:
    assert faulty(patience=2.0) == ["patience"]


def test_a_beam_cannot_be_sampled() -> None:
    assert faulty(is_sampling=True, beam_size=2) == ["beam_size"]


def test_only_samples_can_be_more_than_there_are_beams() -> None:
    assert faulty(beam_size=4, num_hypotheses=5) == ["num_hypotheses"]
    assert faulty(is_sampling=True, num_hypotheses=5) == []
    assert faulty(is_sampling=True, num_hypotheses=MAX_ROWS + 1) == ["num_hypotheses"]


def test_all_faults_are_found_together_and_say_what_is_allowed() -> None:
    faults = dict(SearchOptions(beam_size=9, temperature=0.0, top_p=2.0).faults(MAX_ROWS))
    assert faults == {
        "beam_size": "is 9, must be from 1 to 8",
        "temperature": "is 0, must be from 0.01 to 100",
        "top_p": "is 2, must be from 1e-06 to 1",
    }


@pytest.mark.parametrize(
    ("options", "num_rows"),
    [
        (SearchOptions(), 1),
        (SearchOptions(beam_size=4, num_hypotheses=2), 4),
        (SearchOptions(is_sampling=True, num_hypotheses=3), 3),
    ],
)
def test_a_request_takes_a_row_for_each_beam_or_sample(options: SearchOptions, num_rows: int) -> None:
    assert options.num_rows == num_rows


@pytest.mark.parametrize(
    ("patience", "num_hypotheses", "num_finished"), [(1.0, 1, 4), (2.0, 4, 8), (0.5, 1, 2), (0.1, 3, 3)]
)
def test_patience_says_how_many_finished_hypotheses_a_beam_search_keeps(
    patience: float, num_hypotheses: int, num_finished: int
) -> None:
    options = SearchOptions(beam_size=4, num_hypotheses=num_hypotheses, patience=patience)
    assert options.num_finished == num_finished
