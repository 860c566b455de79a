"""Search against short definitions of what it has to find, on small distributions."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Request
from support.fake_runner import EOS_ID, START_ID, Distribution, decode_alone

SOURCE = (7, 8)
NARROWING = EarlyStopping.NARROWING
Ids = tuple[int, ...]


def distributions(most_tokens: int = 9) -> st.SearchStrategy[Distribution]:
    """Random ones of few tokens. Coarse log-probs are multiples of 1/8: their sums are exact and many are tied."""

    def build(seed: int, num_tokens: int, is_coarse: bool, eos_bias: float) -> Distribution:
        def logprobs(source: Sequence[int], fed: Sequence[int]) -> NDArray[np.float32]:
            logits = np.random.default_rng([seed, *source, 99, *fed]).normal(0.0, 1.5, num_tokens)
            logits[EOS_ID] += eos_bias
            found = np.asarray(logits - np.log(np.exp(logits).sum()), np.float32)
            return np.asarray(np.round(found * 8) / 8, np.float32) if is_coarse else found

        return logprobs

    return st.builds(
        build, st.integers(0, 2**32), st.integers(5, most_tokens), st.booleans(), st.sampled_from((-2.0, 0.0, 1.0, 3.0))
    )


def beam_searches() -> st.SearchStrategy[SearchOptions]:
    plain = st.builds(
        SearchOptions,
        beam_size=st.integers(2, 5),
        length_penalty=st.sampled_from((-1.0, 0.0, 0.6, 1.0, 2.0)),
        early_stopping=st.sampled_from(EarlyStopping),
        min_target_tokens=st.sampled_from((0, 0, 3)),
    )
    return plain.flatmap(
        lambda options: st.builds(
            replace,
            st.just(options),
            num_hypotheses=st.integers(1, options.beam_size),
            patience=st.just(1.0) if options.early_stopping is NARROWING else st.sampled_from((1.0, 1.0, 0.5, 2.0)),
        )
    )


def beam_search(
    next_logprobs: Callable[[Ids], list[float]], options: SearchOptions, limit: int
) -> list[tuple[float, Ids]]:
    """`_beam_search` of Hugging Face's transformers 5 for one sentence, and `patience` of Kasai et al.; scores and ids.

    What a tensor of fixed shape has as -1e9 is absent here. A beam that narrows goes on until no hypothesis is live.
    """
    narrows = options.early_stopping is NARROWING
    num_kept = max(round(options.beam_size * options.patience), options.num_hypotheses)
    is_first = options.early_stopping is EarlyStopping.FIRST
    running: list[tuple[float, Ids]] = [(0.0, ())]
    finished: list[tuple[float, Ids]] = []
    for length in itertools.count(1):
        # The continuations of all running beams in one long row; the best of these, twice as many as there are beams.
        continuations = [
            (total + logprob, (*ids, token_id))
            for total, ids in running
            for token_id, logprob in enumerate(next_logprobs(ids))
            if logprob > -math.inf
        ]
        num_considered = options.beam_size - len(finished) if narrows else 2 * options.beam_size
        continuations = sorted(continuations, key=lambda each: -each[0])[:num_considered]
        hits_stopping_criteria = [ids[-1] == EOS_ID or length == limit for _, ids in continuations]
        # Only the best can be finished: the others are there so that enough go on.
        just_finished = [
            (total / length**options.length_penalty, ids)
            for (total, ids), hits in list(zip(continuations, hits_stopping_criteria, strict=True))[: options.beam_size]
            if hits and not (is_first and len(finished) == num_kept)
        ]
        finished = sorted(finished + just_finished, key=lambda each: -each[0])[:num_kept]
        going_on = zip(continuations, hits_stopping_criteria, strict=True)
        running = [each for each, hits in going_on if not hits][: options.beam_size]
        if not running:
            break
        if len(finished) == num_kept:
            is_patient = options.early_stopping is EarlyStopping.NEVER and options.length_penalty > 0.0
            best_hypothetical_length = limit if is_patient else length
            best_possible_score = running[0][0] / best_hypothetical_length**options.length_penalty
            worst_finished_score = finished[-1][0]
            if is_first or not best_possible_score > worst_finished_score:
                break
    return finished[: options.num_hypotheses]


def decode(distribution: Distribution, options: SearchOptions, limit: int, **search: Any) -> tuple[Hypothesis, ...]:
    request = Request(SOURCE, max_target_tokens=limit, options=options)
    return decode_alone(request, distribution, Search(START_ID, EOS_ID, **search))


@settings(max_examples=200)
@given(distributions(), beam_searches(), st.integers(1, 10), st.frozensets(st.sampled_from([0, 1, START_ID])))
def test_beam_search_is_hugging_faces(
    distribution: Distribution, options: SearchOptions, limit: int, suppressed_ids: frozenset[int]
) -> None:
    def next_logprobs(ids: Ids) -> list[float]:
        logprobs = [float(logprob) for logprob in distribution(SOURCE, (START_ID, *ids))]
        banned = suppressed_ids | ({EOS_ID} if len(ids) < options.min_target_tokens else set())
        return [-math.inf if i in banned else logprob for i, logprob in enumerate(logprobs)]

    expected = beam_search(next_logprobs, options, limit)
    found = decode(distribution, options, limit, suppressed_ids=suppressed_ids)
    assert [hypothesis.token_ids for hypothesis in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], [score for score, _ in expected], rtol=1e-12)
    for hypothesis in found:
        has_ended = hypothesis.token_ids[-1] == EOS_ID
        assert hypothesis.finish_reason is (FinishReason.STOP if has_ended else FinishReason.LENGTH)


@settings(max_examples=50)
@given(distributions(most_tokens=5), st.integers(1, 3), st.sampled_from((0.0, 1.0)))
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_targets(
    distribution: Distribution, limit: int, length_penalty: float
) -> None:
    num_tokens = len(distribution(SOURCE, (START_ID,)))
    others = [i for i in range(num_tokens) if i != EOS_ID]
    targets = [
        (*words, last)
        for length in range(limit)
        for words in itertools.product(others, repeat=length)
        for last in (range(num_tokens) if length == limit - 1 else [EOS_ID])
    ]

    def score(ids: Ids) -> float:
        logprobs = [float(distribution(SOURCE, (START_ID, *ids[:i]))[token_id]) for i, token_id in enumerate(ids)]
        return float(math.fsum(logprobs) / len(ids) ** length_penalty)

    options = SearchOptions(
        beam_size=num_tokens**limit, length_penalty=length_penalty, early_stopping=EarlyStopping.NEVER
    )
    [best] = decode(distribution, options, limit)
    assert best.score == max(map(score, targets))


@given(distributions(), st.integers(0, 12), st.sampled_from((0.2, 0.5, 0.9, 1.0)), st.integers(0, 2**32))
def test_samples_never_leave_their_nucleus(distribution: Distribution, top_k: int, top_p: float, seed: int) -> None:
    options = SearchOptions(is_sampling=True, num_hypotheses=4, top_k=top_k, top_p=top_p, temperature=0.8, seed=seed)
    for hypothesis in decode(distribution, options, 6):
        for position, token_id in enumerate(hypothesis.token_ids):
            fed = (START_ID, *hypothesis.token_ids[:position])
            weights = np.exp(distribution(SOURCE, fed).astype(np.float64) / 0.8)
            better = np.sort(weights[weights > weights[token_id]])
            assert not top_k or len(better) < top_k
            kept = np.sort(weights)[::-1][: top_k or None]
            # What is more probable does not make up the nucleus by itself.
            assert better.sum() < top_p * kept.sum() * (1 + 1e-9)


@given(distributions(), beam_searches(), st.integers(0, 2**32), st.integers(1, 3))
def test_no_ngram_comes_twice_in_any_search(
    distribution: Distribution, beams: SearchOptions, seed: int, size: int
) -> None:
    samples = SearchOptions(is_sampling=True, num_hypotheses=3, seed=seed)
    for options in (SearchOptions(), beams, samples, replace(samples, top_k=0), replace(beams, repetition_penalty=0.7)):
        for hypothesis in decode(distribution, replace(options, no_repeat_ngram_size=size), 12):
            ids = hypothesis.token_ids
            ngrams = [ids[i : i + size] for i in range(len(ids) - size + 1)]
            assert len(set(ngrams)) == len(ngrams)


@given(distributions(), beam_searches(), st.integers(1, 10))
def test_a_hypothesis_that_is_forced_has_the_score_that_it_was_found_with(
    distribution: Distribution, options: SearchOptions, limit: int
) -> None:
    for hypothesis in decode(distribution, options, limit):
        request = Request(
            SOURCE,
            max_target_tokens=len(hypothesis.token_ids),
            options=SearchOptions(length_penalty=options.length_penalty),
            prefix_ids=hypothesis.token_ids,
        )
        assert decode_alone(request, distribution) == (hypothesis,)


@given(distributions(), st.integers(1, 10))
def test_samples_of_the_most_probable_token_and_a_prefix_of_greedy_search_are_greedy_search(
    distribution: Distribution, limit: int
) -> None:
    greedy = decode(distribution, SearchOptions(), limit)
    assert decode(distribution, SearchOptions(is_sampling=True, top_k=1), limit) == greedy
    ids = greedy[0].token_ids
    for length in range(len(ids)):
        request = Request(SOURCE, limit, prefix_ids=ids[:length])
        assert decode_alone(request, distribution) == greedy
