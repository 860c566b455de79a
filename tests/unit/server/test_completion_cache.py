"""What is kept, by what, and for how long."""

import math
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.completion_cache import CachePart, CompletionCache
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Priority, Request

REQUEST = Request((4, 5, 6), 20, options=SearchOptions(beam_size=2), prefix_ids=(7,), num_framing_ids=1)
HYPOTHESES = (Hypothesis((5, 6, 3), (-0.1, -0.2, -0.3), FinishReason.STOP),)
OTHER_OPTIONS = SearchOptions(
    beam_size=3,
    num_hypotheses=2,
    length_penalty=0.6,
    patience=2.0,
    early_stopping=EarlyStopping.FIRST,
    is_sampling=True,
    temperature=0.5,
    top_k=5,
    top_p=0.9,
    seed=1,
    min_target_tokens=1,
    repetition_penalty=1.2,
    no_repeat_ngram_size=3,
    suppressed=((5,),),
)


@pytest.fixture
def part() -> CachePart:
    return CompletionCache(1_000_000).part()


def key_of(part: CachePart, request: Request) -> bytes:
    (key,) = part.keys([request])
    assert key is not None
    return key


@given(
    st.lists(
        st.builds(
            Hypothesis,
            token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple),
            token_logprobs=st.lists(st.floats(allow_nan=False), max_size=8).map(tuple),
            finish_reason=st.sampled_from(FinishReason),
            length_penalty=st.floats(-10, 10),
            ranked_logprob=st.none() | st.floats(allow_nan=False),
        ),
        max_size=4,
    ).map(tuple)
)
def test_what_is_found_is_what_was_kept_bit_for_bit(hypotheses: tuple[Hypothesis, ...]) -> None:
    part = CompletionCache(1_000_000).part()
    key = key_of(part, REQUEST)
    assert part.find(key) is None
    for hypothesis in hypotheses:
        assert not hypothesis.token_ids or hypothesis.length_penalty or hypothesis.score is not None  # is remembered
    part.keep(key, hypotheses)
    assert repr(part.find(key)) == repr(hypotheses)  # 0.0 is not -0.0 there


@pytest.mark.parametrize("name", [f.name for f in fields(SearchOptions)])
def test_every_option_makes_another_key(part: CachePart, name: str) -> None:
    options = replace(SearchOptions(seed=0), **{name: getattr(OTHER_OPTIONS, name)})
    assert key_of(part, replace(REQUEST, options=options)) != key_of(
        part, replace(REQUEST, options=SearchOptions(seed=0))
    )


@pytest.mark.parametrize(
    ("values", "is_same"),
    [
        ({"source_ids": (4, 5, 7)}, False),
        ({"max_target_tokens": 21}, False),
        ({"prefix_ids": (8,)}, False),
        ({"prefix_ids": ()}, False),
        ({"num_framing_ids": 0}, False),
        ({"candidates": Candidates(np.array([3, 5], np.int32))}, False),
        ({"deadline": 5.0}, True),
        ({"priority": Priority.BULK}, True),
    ],
)
def test_all_that_changes_an_answer_makes_another_key(
    part: CachePart, values: dict[str, object], is_same: bool
) -> None:
    other = replace(REQUEST, **values)  # type: ignore[arg-type]
    assert (key_of(part, other) == key_of(part, REQUEST)) is is_same


def test_a_field_of_a_request_is_looked_at_unless_it_is_known_not_to_matter() -> None:
    known = {"source_ids", "max_target_tokens", "deadline", "options", "prefix_ids", "num_framing_ids", "priority"}
    known |= {"seconds_after"}
    assert {f.name for f in fields(Request)} == {*known, "candidates"}, "decide whether it changes answers; add a case"


@pytest.mark.parametrize("is_shared", [False, True])
def test_lists_of_tokens_are_compared_by_their_contents(part: CachePart, is_shared: bool) -> None:
    same, too, other = (Candidates(np.array(ids, np.int32), is_shared) for ids in ([3, 5], [3, 5], [3, 6]))
    keys = [key_of(part, replace(REQUEST, candidates=candidates)) for candidates in (same, too, other, same)]
    assert keys[0] == keys[1] == keys[3] != keys[2]


def test_samples_without_a_seed_have_no_key(part: CachePart) -> None:
    random, seeded = (replace(REQUEST, options=SearchOptions(is_sampling=True, seed=seed)) for seed in (None, 1))
    kept = [key is not None for key in part.keys([random, seeded, REQUEST, random])]
    assert kept == [False, True, True, False]


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = CompletionCache(1_000_000)
    cache.put(b"a", b"-" * 100)
    small = CompletionCache(3 * cache.num_bytes)
    for key in (b"a", b"b", b"c"):
        small.put(key, b"-" * 100)
    assert small.find(b"a") is not None
    small.put(b"d", b"-" * 100)
    assert [small.find(key) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert small.num_bytes == small.max_bytes
    small.put(b"d", b"")
    assert small.find(b"d") == b""
    assert small.num_bytes == small.max_bytes - 100


def test_what_is_larger_than_the_cache_does_not_empty_it() -> None:
    cache = CompletionCache(1000)
    cache.put(b"a", b"-" * 100)
    cache.put(b"b", b"-" * 1000)
    assert cache.find(b"a") is not None
    assert cache.find(b"b") is None


def test_a_closed_part_is_forgotten_and_keeps_nothing_more_while_others_stay() -> None:
    cache = CompletionCache(10_000_000)
    first, second = cache.part(), cache.part()
    requests = [replace(REQUEST, source_ids=(i,)) for i in range(2500)]
    for part in (first, second):
        for key in part.keys(requests):
            assert key is not None
            part.keep(key, HYPOTHESES)
    half = cache.num_bytes / 2
    first.close()
    first.keep(key_of(first, REQUEST), HYPOTHESES)
    assert cache.num_bytes == half
    assert [first.find(key_of(first, request)) for request in requests] == [None] * len(requests)
    assert [second.find(key_of(second, request)) for request in requests] == [HYPOTHESES] * len(requests)


@pytest.mark.parametrize("num_tokens", [1, 30, 300])
@pytest.mark.parametrize("num_entries", [1000, 2731, 3000])  # tables are largest when they have just grown
def test_the_memory_is_no_more_than_is_said(num_tokens: int, num_entries: int) -> None:
    hypothesis = Hypothesis(tuple(range(300, 300 + num_tokens)), (-math.pi,) * num_tokens, FinishReason.STOP)
    cache = CompletionCache(2**30)
    part = cache.part()
    tracemalloc.start()
    try:
        for index in range(num_entries):
            part.keep(key_of(part, Request((index,), 20)), (hypothesis,))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.6 * cache.num_bytes < taken <= cache.num_bytes
