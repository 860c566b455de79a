import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import MAX_TOP_K, SearchOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Request, Sequence, SequenceGroup
from support.fake_runner import (
    EOS_ID,
    LOGIT_OFFSET,
    SEARCH,
    START_ID,
    Distribution,
    decode_alone,
    random_options,
    wild,
)

SOURCES = [(4, 5), (6,), (7, 8, 9), (4,), (5, 6), (9, 9, 9), (10, 4), (11,), (8, 4, 4), (6, 5)]
MAX_TARGET_TOKENS = 12


def always(*logprobs: float) -> Distribution:
    """The same distribution at every step."""
    fixed = np.array(logprobs, np.float32)
    return lambda source, fed: fixed


def decode(
    distribution: Distribution = wild,
    source: tuple[int, ...] = SOURCES[0],
    prefix_ids: tuple[int, ...] = (),
    max_target_tokens: int = MAX_TARGET_TOKENS,
    search: Search = SEARCH,
    num_framing_ids: int = 0,
    **options: Any,
) -> tuple[Hypothesis, ...]:
    search_options = SearchOptions(**options)
    request = Request(
        source, max_target_tokens, options=search_options, prefix_ids=prefix_ids, num_framing_ids=num_framing_ids
    )
    return decode_alone(request, distribution, search)


def best(**arguments: Any) -> tuple[int, ...]:
    return decode(**arguments)[0].token_ids


def model_logprobs(hypothesis: Hypothesis, source: tuple[int, ...]) -> tuple[float, ...]:
    ids = hypothesis.token_ids
    return tuple(float(wild(source, [START_ID, *ids[:i]])[token_id]) for i, token_id in enumerate(ids))


# -- greedy search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_greedy_search_takes_the_most_probable_token_until_the_sentence_ends(source: tuple[int, ...]) -> None:
    expected: list[int] = []
    while EOS_ID not in expected and len(expected) < MAX_TARGET_TOKENS:
        expected.append(int(wild(source, [START_ID, *expected]).argmax()))
    [hypothesis] = decode(source=source)
    assert hypothesis.token_ids == tuple(expected)
    assert hypothesis.finish_reason is (FinishReason.STOP if EOS_ID in expected else FinishReason.LENGTH)
    assert hypothesis.token_logprobs == model_logprobs(hypothesis, source)
    assert hypothesis.score == hypothesis.sum_logprob / len(expected)


# The second is decided with the whole vocabulary at hand.
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.0 + 1e-9])
@pytest.mark.parametrize("beam_size", [1, 2, 3])
def test_ties_go_to_the_lower_id(repetition_penalty: float, beam_size: int) -> None:
    tied = always(*[-9.0] * 5, *[-1.0, -2.0] * 60)
    hypotheses = decode(
        tied,
        max_target_tokens=1,
        beam_size=beam_size,
        num_hypotheses=beam_size,
        repetition_penalty=repetition_penalty,
    )
    assert [hypothesis.token_ids for hypothesis in hypotheses] == [(5,), (7,), (9,)][:beam_size]


# -- what is forced ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"is_sampling": True, "num_hypotheses": 3, "seed": 1}])
def test_every_hypothesis_begins_with_the_prefix_and_its_log_probs_are_the_models(options: dict[str, Any]) -> None:
    prefix = (9, 9, 4)
    hypotheses = decode(prefix_ids=prefix, **options)
    assert len(hypotheses) == options.get("num_hypotheses", 1)
    for hypothesis in hypotheses:
        assert hypothesis.token_ids[:3] == prefix
        assert len(hypothesis.token_ids) > 3
        assert hypothesis.token_logprobs == model_logprobs(hypothesis, SOURCES[0])


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"beam_size": 3, "repetition_penalty": 1.2}])
def test_what_a_framing_forces_counts_in_the_length_of_a_score_and_costs_nothing(options: dict[str, Any]) -> None:
    for prefix, num_framing_ids in (((9, 9, 4), 2), ((9, 9, 4), 0), ((9, 9, EOS_ID), 2)):
        (found,) = decode(prefix_ids=prefix, num_framing_ids=num_framing_ids, length_penalty=0.6, **options)
        assert found.token_logprobs == model_logprobs(found, SOURCES[0])
        if "repetition_penalty" not in options or found.token_ids == prefix:
            chosen = sum(found.token_logprobs[num_framing_ids:])
            assert found.score == pytest.approx(chosen / len(found.token_ids) ** 0.6, abs=1e-6)


def test_the_log_prob_of_what_a_framing_forces_does_not_decide_between_short_and_long() -> None:
    """It is the same for all, and divided by their lengths it would be more for the short ones."""

    def logits(source: Rows[int], fed: Rows[int]) -> NDArray[np.float32]:
        row = np.full_like(wild(source, fed), -30.0)
        if len(fed) == 1:  # the language is next, which the model finds most improbable
            row[5] = 0.0
        else:
            row[EOS_ID], row[6] = np.log(0.5), np.log(0.5)
        return row

    arguments: dict[str, Any] = {"prefix_ids": (9,), "beam_size": 2, "max_target_tokens": 4}
    assert decode(logits, num_framing_ids=1, **arguments)[0].token_ids == (9, EOS_ID)
    assert decode(logits, **arguments)[0].token_ids != (9, EOS_ID)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"is_sampling": True, "num_hypotheses": 3, "seed": 1}])
def test_a_prefix_that_ends_the_sentence_is_scored_and_nothing_is_searched(options: dict[str, Any]) -> None:
    for prefix, limit, reason in (
        ((9, 4, EOS_ID), 12, FinishReason.STOP),
        ((9, 4, 5), 3, FinishReason.LENGTH),
        ((9, 4, 5, 6), 3, FinishReason.LENGTH),
    ):
        [hypothesis] = decode(prefix_ids=prefix, max_target_tokens=limit, length_penalty=0.6, **options)
        assert hypothesis.token_ids == prefix[:3]
        assert hypothesis.finish_reason is reason
        assert hypothesis.token_logprobs == model_logprobs(hypothesis, SOURCES[0])
        assert hypothesis.score == math.fsum(hypothesis.token_logprobs) / 3**0.6


def test_what_is_forced_may_be_what_is_banned() -> None:
    options = SearchOptions(min_target_tokens=9, no_repeat_ngram_size=1, suppressed=((4,),))
    request = Request((6,), 9, options=options, prefix_ids=(4, 4, EOS_ID))
    assert decode_alone(request, wild, Search(START_ID, EOS_ID, frozenset({4})))[0].token_ids == (4, 4, EOS_ID)


# -- what is banned ----------------------------------------------------------------------------------------------------

SEARCHES: list[dict[str, Any]] = [
    {},
    {"beam_size": 3, "num_hypotheses": 3},
    {"is_sampling": True, "num_hypotheses": 4, "seed": 5, "top_k": 4},
    {"is_sampling": True, "num_hypotheses": 4, "seed": 5, "top_k": 0},
    {"repetition_penalty": 0.7},  # which is to say: the same again, please
    {"beam_size": 3, "num_hypotheses": 3, "repetition_penalty": 0.7},
]


def all_hypotheses(**arguments: Any) -> Iterator[Hypothesis]:
    for source in SOURCES:
        yield from decode(source=source, **arguments)


@pytest.mark.parametrize("options", SEARCHES)
def test_the_sentence_does_not_end_before_its_least_length(options: dict[str, Any]) -> None:
    assert min(len(h.token_ids) for h in all_hypotheses(**options)) < 5
    for hypothesis in all_hypotheses(min_target_tokens=5, **options):
        assert EOS_ID not in hypothesis.token_ids[:5]


def test_the_end_is_not_counted_and_may_come_right_behind_the_least_length() -> None:
    likely_end = always(-9.0, -9.0, -9.0, -0.1, -2.0, -3.0)
    assert best(distribution=likely_end, min_target_tokens=3) == (4, 4, 4, EOS_ID)
    assert best(distribution=likely_end, min_target_tokens=3, max_target_tokens=3) == (4, 4, 4)
    assert best(distribution=likely_end, min_target_tokens=0) == (EOS_ID,)


@pytest.mark.parametrize("options", SEARCHES)
def test_sequences_of_tokens_that_are_suppressed_do_not_come(options: dict[str, Any]) -> None:
    bigram = Counter(
        pair for h in all_hypotheses(**options) for pair in zip(h.token_ids, h.token_ids[1:], strict=False)
    )
    frequent = bigram.most_common(1)[0][0]
    for suppressed in ((frequent,), ((frequent[1],),), (frequent, (4,), (1, 5, 6))):
        for hypothesis in all_hypotheses(suppressed=suppressed, **options):
            ids = hypothesis.token_ids
            for words in suppressed:
                assert all(ids[i : i + len(words)] != words for i in range(len(ids)))


@pytest.mark.parametrize("options", SEARCHES)
def test_what_a_model_must_never_say_is_never_said(options: dict[str, Any]) -> None:
    search = Search(START_ID, EOS_ID, frozenset({0, 1, START_ID, 5}))
    for hypothesis in all_hypotheses(search=search, **options):
        assert search.suppressed_ids.isdisjoint(hypothesis.token_ids)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_would_repeat_an_ngram_is_banned_as_hugging_face_defines_it(size: int) -> None:
    rng = random.Random(size)
    group = SequenceGroup(Request((4,), 99, options=SearchOptions(no_repeat_ngram_size=size)), arrived=0.0)
    num_banned = 0
    for length in [0, 1, 2, *range(3, 40)]:
        ids = rng.choices(range(4, 9), k=length)
        # `_calc_banned_ngram_tokens` of transformers
        generated: dict[tuple[int, ...], list[int]] = {}
        for ngram in zip(*[ids[i:] for i in range(size)], strict=False):
            generated[tuple(ngram[:-1])] = [*generated.get(tuple(ngram[:-1]), []), ngram[-1]]
        expected = generated.get(tuple(ids[length + 1 - size : length]), []) if length + 1 >= size else []
        assert SEARCH.question(Sequence(group, token_ids=ids)).banned == set(expected)
        num_banned += len(expected)
    assert num_banned > 20


@pytest.mark.parametrize("options", [*SEARCHES, {"beam_size": 3, "prefix_ids": (5, 6, 5)}])
@pytest.mark.parametrize("prefix_ids", [(), (5, 6, 7)])
def test_everything_banned_is_the_end_by_length(options: dict[str, Any], prefix_ids: tuple[int, ...]) -> None:
    options = {"prefix_ids": prefix_ids} | options
    everything = Search(START_ID, EOS_ID, frozenset(range(12)))
    hypotheses = decode(search=everything, **options)
    assert hypotheses
    for hypothesis in hypotheses:
        assert hypothesis.token_ids == options["prefix_ids"]
        assert hypothesis.finish_reason is FinishReason.LENGTH
        assert math.isfinite(hypothesis.score)


@pytest.mark.parametrize("options", SEARCHES)
def test_everything_banned_by_and_by_is_the_end_by_length(options: dict[str, Any]) -> None:
    """No token twice, no end, and seven tokens left to choose from."""
    search = Search(START_ID, EOS_ID, frozenset(range(5)))
    hypotheses = decode(search=search, no_repeat_ngram_size=1, min_target_tokens=99, **options)
    assert len(hypotheses) == options.get("num_hypotheses", 1)
    for hypothesis in hypotheses:
        assert sorted(hypothesis.token_ids) == list(range(5, 12))
        assert hypothesis.finish_reason is FinishReason.LENGTH


def test_beams_end_where_the_model_itself_makes_everything_impossible() -> None:
    def nothing_after_two(source: Rows[int], fed: Rows[int]) -> NDArray[np.float32]:
        return wild(source, fed) if len(fed) < 3 else np.full_like(wild(source, fed), -np.inf)

    hypotheses = decode(nothing_after_two, beam_size=3, num_hypotheses=3, min_target_tokens=2)
    assert {hypothesis.finish_reason for hypothesis in hypotheses} == {FinishReason.LENGTH}
    assert all(len(hypothesis.token_ids) == 2 and hypothesis.score > -math.inf for hypothesis in hypotheses)


def test_a_sample_that_cannot_go_on_does_not_end_the_others() -> None:
    def after(source: object, fed: Any) -> NDArray[np.float32]:
        """5 or 6; what follows 6 is impossible, 5 goes on."""
        impossible = [-math.inf] * 12
        if fed[-1] != 6:
            impossible[5] = impossible[6] = math.log(0.5)
        return np.array(impossible, np.float32)

    hypotheses = decode(after, is_sampling=True, num_hypotheses=16, seed=0, max_target_tokens=4)
    lengths = [len(hypothesis.token_ids) for hypothesis in hypotheses]
    assert len(lengths) == 16
    assert set(lengths) == {1, 2, 3, 4}
    assert all(h.token_ids[-1] == 6 for h in hypotheses if len(h.token_ids) < 4)


# -- the repetition penalty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
@pytest.mark.parametrize("source", SOURCES)
def test_greedy_search_divides_the_logits_of_what_was_there_by_the_penalty(
    penalty: float, source: tuple[int, ...]
) -> None:
    ids: list[int] = []
    while EOS_ID not in ids and len(ids) < MAX_TARGET_TOKENS:
        logits = wild(source, [START_ID, *ids]) + np.float32(LOGIT_OFFSET)
        for token_id in {START_ID, *ids}:
            logits[token_id] = logits[token_id] / penalty if logits[token_id] > 0 else logits[token_id] * penalty
        ids.append(int(logits.argmax()))
    [hypothesis] = decode(source=source, repetition_penalty=penalty)
    assert hypothesis.token_ids == tuple(ids)
    assert hypothesis.token_logprobs == model_logprobs(hypothesis, source)
    assert hypothesis.score == hypothesis.sum_logprob / len(ids)  # the model's, as without a penalty


def test_a_beam_search_ranks_by_log_probs_that_are_multiplied_by_the_penalty() -> None:
    # Of the two, 4 is likelier at any time, and 5 and its repetition at 1.5 times its cost as well.
    twice = always(-9, -9, -9, -9, -1.0, -2.5)
    hypotheses = decode(twice, max_target_tokens=2, beam_size=4, num_hypotheses=4, repetition_penalty=2.0)
    found = {hypothesis.token_ids: hypothesis for hypothesis in hypotheses}
    assert found[4, 4].score == (-1.0 - 2 * 1.0) / 2
    assert found[4, 4].sum_logprob == -2.0
    assert found[4, 5].score == found[5, 4].score == (-1.0 - 2.5) / 2
    assert hypotheses[0] is found[4, 4]


# -- samples -----------------------------------------------------------------------------------------------------------

PROBABILITIES = [0.02, 0.3, 0.08, 0.1, 0.25, 0.05, 0.15, 0.05]


def tempered(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> dict[int, float]:
    """The distribution that samples must have, by Hugging Face's definitions."""
    weights = {i: p ** (1 / temperature) for i, p in enumerate(PROBABILITIES)}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))[: top_k or None]
    total = math.fsum(weights[i] for i in ranked)
    nucleus: list[int] = []
    while math.fsum(weights[i] for i in nucleus) < top_p * total * (1 - 1e-6):
        nucleus.append(ranked[len(nucleus)])
    kept = math.fsum(weights[i] for i in nucleus)
    return {i: weights[i] / kept for i in nucleus}


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 50},
        {"top_k": MAX_TOP_K + 1},
        {"top_k": 3},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 6, "top_p": 0.8},
        {"top_k": 0, "temperature": 0.5},
        {"top_k": 5, "temperature": 2.0, "top_p": 0.9},
        {"top_k": 0, "top_p": 1e-6},
    ],
)
def test_samples_are_as_frequent_as_they_are_probable(options: dict[str, Any]) -> None:
    count = 4000
    distribution = always(*map(math.log, PROBABILITIES))
    samples = decode(distribution, is_sampling=True, num_hypotheses=count, seed=7, max_target_tokens=1, **options)
    frequencies = Counter(hypothesis.token_ids[0] for hypothesis in samples)
    probabilities = tempered(**options)
    assert frequencies.keys() == probabilities.keys()
    chi_square = sum((frequencies[i] - count * p) ** 2 / (count * p) for i, p in probabilities.items())
    freedom = len(probabilities) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)  # four standard deviations above its mean


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_banned_token_is_not_among_the_k_that_are_drawn_from(top_k: int) -> None:
    distribution = always(*map(math.log, PROBABILITIES))
    samples = decode(
        distribution,
        is_sampling=True,
        num_hypotheses=500,
        seed=7,
        max_target_tokens=1,
        top_k=top_k,
        suppressed=((1,), (4,)),
    )
    assert {h.token_ids[0] for h in samples} == {6, 3, 2, 5, 7} | (set() if top_k else {0})


@pytest.mark.parametrize("options", SEARCHES[2:4])
def test_the_same_seed_gives_the_same_samples_and_another_seed_others(options: dict[str, Any]) -> None:
    assert decode(**options) == decode(**options)
    assert decode(**options) != decode(**(options | {"seed": 6}))


def test_without_a_seed_samples_are_others_every_time() -> None:
    options: dict[str, Any] = {
        "is_sampling": True,
        "num_hypotheses": 20,
        "top_k": 0,
        "temperature": 5.0,
        "min_target_tokens": 12,
    }
    assert decode(**options) != decode(**options)


def test_how_many_samples_there_are_does_not_change_them() -> None:
    options: dict[str, Any] = {"is_sampling": True, "seed": 3, "top_k": 0}
    few, many = decode(num_hypotheses=3, **options), decode(num_hypotheses=8, **options)
    assert Counter(few) <= Counter(many)
    assert len(set(many)) > 3


@pytest.mark.parametrize("source", SOURCES)
def test_samples_of_the_most_probable_token_are_greedy_search(source: tuple[int, ...]) -> None:
    expected = decode(source=source)
    assert decode(source=source, is_sampling=True, top_k=1) == expected
    assert decode(source=source, is_sampling=True, top_k=0, top_p=1e-6) == expected
    assert decode(source=source, is_sampling=True, top_k=0, temperature=0.001, seed=1) == expected


# -- progress ----------------------------------------------------------------------------------------------------------


def told_along(request: Request) -> tuple[list[tuple[int, ...]], tuple[Hypothesis, ...]]:
    """What is certain after each step, and the outcome."""
    told: list[tuple[int, ...]] = []
    hypotheses = decode_alone(request, wild, on_step=lambda group: told.append(SEARCH.certain_ids(group)))
    return told, hypotheses


def test_what_is_certain_only_grows_and_is_what_the_best_hypothesis_begins_with() -> None:
    rng = random.Random(0)
    num_early = 0
    for i in range(300):
        prefix = (5, 6) if i % 3 == 0 else ()
        request = Request(SOURCES[i % 10], rng.randint(1, 14), options=random_options(rng), prefix_ids=prefix)
        told, hypotheses = told_along(request)
        final = tuple(token_id for token_id in hypotheses[0].token_ids if token_id != EOS_ID)
        assert told[-1] == final
        for earlier, later in itertools.pairwise(told):
            assert later[: len(earlier)] == earlier
        num_early += any(told[:-1])
    assert num_early > 200  # most are told something before the end


def test_greedy_search_is_certain_of_every_token_at_once() -> None:
    told, [hypothesis] = told_along(Request(SOURCES[2], 12, options=SearchOptions(min_target_tokens=5)))
    assert told[:5] == [hypothesis.token_ids[: i + 1] for i in range(5)]
