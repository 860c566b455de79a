"""Every way to decode, from the SDK through a real server process and the real engine on the tiny model."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from dragoman import AsyncClient, Client, DragomanError, FinishReason, InvalidArgumentError, Translation
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process
from support.tiny_model import WORDS

LANGUAGES: dict[str, Any] = {"source": "en", "target": "fr"}
LINES = ("the old dog sees a small bird", "here", "two red cats find three houses under a tree", "not now")
TEXTS = (*LINES, "\n  ".join(LINES) + "\n", "", "\n")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_target_tokens": 6},
    {"beam_size": 4},
    {"beam_size": 4, "num_hypotheses": 4, "length_penalty": 0.0, "early_stopping": "never"},
    {"beam_size": 3, "patience": 2.0, "early_stopping": "first", "max_target_tokens": 9},
    {"seed": 7, "num_hypotheses": 3, "top_k": 5},
    {"temperature": 1.5, "top_k": 0, "top_p": 0.8, "seed": 1},
    {"no_repeat_ngram_size": 1, "suppressed_words": ["house"], "min_target_tokens": 5},
)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def bundle(request: pytest.FixtureRequest, tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    precision: Precision = request.param
    return tiny_bundles[precision]


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    with server_process(bundle.folder) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address, timeout=60) as client:
        yield client


def whole(translation: Translation | DragomanError) -> tuple[object, ...]:
    """All of a translation but how long it took."""
    assert isinstance(translation, Translation)
    return translation.text, translation.segments, translation.model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_deltas_are_together_what_translate_answers(client: Client, options: dict[str, Any]) -> None:
    for text in TEXTS:
        unary = client.translate(text, **LANGUAGES, **options)
        stream = client.stream(text, **LANGUAGES, **options)
        assert "".join(stream) == unary.text
        assert whole(stream.result) == whole(unary)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_are_bit_for_bit_those_of_translating(client: Client, options: dict[str, Any]) -> None:
    translations = client.translate(LINES, **LANGUAGES, **options)
    hypotheses = [(line, h) for line, t in zip(LINES, translations, strict=True) for h in t.hypotheses]
    sources, targets = [line for line, _ in hypotheses], [hypothesis.token_ids for _, hypothesis in hypotheses]
    scores = client.score(sources, targets, source="en", target="fr", length_penalty=options.get("length_penalty", 1.0))
    assert len(hypotheses) == len(LINES) * options.get("num_hypotheses", 1)
    for (_, hypothesis), score in zip(hypotheses, scores, strict=True):
        assert score.tokens == hypothesis.tokens
        assert score.sum_logprob == hypothesis.sum_logprob
        assert score.score == hypothesis.score


def test_both_ways_to_end_have_been_scored(client: Client) -> None:
    reasons = {
        hypothesis.finish_reason
        for options in OPTIONS
        for translation in client.translate(LINES, **LANGUAGES, **options)
        for hypothesis in translation.hypotheses
    }
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}


def test_a_text_is_scored_with_its_end(client: Client, bundle: Bundle) -> None:
    ids = bundle.tokenizer.encode("old green house")
    text = client.score("the dog", "old green house", **LANGUAGES)
    assert text.token_ids == (*ids, bundle.manifest.eos_token_id)
    assert text == client.score("the dog", text.token_ids, **LANGUAGES)
    assert client.score("the dog", ids, **LANGUAGES).tokens == text.tokens[:-1]


def test_a_translation_is_found_again_from_its_beginning(client: Client) -> None:
    prefixed = client.translate(LINES[0], target_prefix="old green", beam_size=4, **LANGUAGES)
    assert prefixed.text.startswith("old green")
    greedy = client.translate(LINES[0], target_prefix="old green", **LANGUAGES)
    stream = client.stream(LINES[0], target_prefix="old green", **LANGUAGES)
    assert "".join(stream) == greedy.text
    assert stream.result.tokens == greedy.tokens


def test_the_same_seed_gives_the_same_samples(client: Client) -> None:
    first, again, other = (
        client.translate(LINES[0], seed=seed, num_hypotheses=4, **LANGUAGES).hypotheses for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) > 1


def test_hypotheses_are_ranked_and_different(client: Client) -> None:
    hypotheses = client.translate(LINES[2], beam_size=6, num_hypotheses=6, **LANGUAGES).hypotheses
    scores = [hypothesis.score for hypothesis in hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert len({hypothesis.token_ids for hypothesis in hypotheses}) == 6


def test_an_option_at_fault_is_refused_with_its_limit(client: Client) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.translate("a", beam_size=129, top_p=2.0, **LANGUAGES)
    assert [(v.field, v.description) for v in caught.value.field_violations] == [
        ("options.beam_size", "is 129, must be from 1 to 128"),
        ("options.top_p", "is 2, must be from 1e-06 to 1"),
        ("options.beam_size", "is 129, must be 1 with sampling"),
    ]


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}], ids=str)
def test_an_exchange_translates_as_translate_does(client: Client, options: dict[str, Any]) -> None:
    texts = [" ".join(words) for words in itertools.permutations(WORDS[:5], 3)]
    expected = client.translate(texts, **LANGUAGES, **options)
    results = dict(client.exchange(iter(texts), **LANGUAGES, **options))
    assert [whole(results[index]) for index in range(len(texts))] == [whole(translation) for translation in expected]


def test_results_of_an_exchange_overtake_each_other(client: Client) -> None:
    texts = [" ".join(WORDS * 3) if number % 10 == 0 else "here" for number in range(100)]
    order = [index for index, _ in client.exchange(texts, **LANGUAGES)]
    assert sorted(order) == list(range(100))
    assert order != list(range(100))


def test_a_bad_text_of_an_exchange_concerns_it_alone(client: Client) -> None:
    results = dict(client.exchange(["here", "x" * 20_001, "not now"], **LANGUAGES))
    assert isinstance(results[1], InvalidArgumentError)
    assert results[1].reason == "TEXT_TOO_LONG"
    assert isinstance(results[0], Translation)
    assert isinstance(results[2], Translation)


def test_leaving_streams_frees_all_rows(tiny_bundles: dict[Precision, Bundle]) -> None:
    """Four rows are all there are: were one not given back, the last call would not be answered.

    To decode what was left would take minutes.
    """
    text = "\n".join(LINES * 20)

    async def leave(address: str) -> None:
        async with AsyncClient(address) as client:
            for _ in range(5):
                stream = client.stream(text, beam_size=4, **LANGUAGES)
                async for _ in stream:
                    break
                await stream.close()
                results = client.exchange([text] * 20, beam_size=4, **LANGUAGES)
                reading = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0.05)
                reading.cancel()
                await asyncio.wait([reading])

    with server_process(tiny_bundles["int8"].folder, "--max-running=4", "--max-waiting=2000") as server:
        asyncio.run(leave(server.address))
        with Client(server.address, timeout=30) as client:
            assert client.translate("here", beam_size=4, **LANGUAGES).text
        assert server.terminate() == 0
