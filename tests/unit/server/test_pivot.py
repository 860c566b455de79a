"""What two models make of a text together: the same as one after the other, with the places of the caller's text."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import DefaultSegmentation, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis
from dragoman_server.errors import (
    UnsupportedLanguageError,
)
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.service.pivot import joined
from dragoman_server.service.results import StreamOutcome, TranslatedText
from dragoman_server.service.translate import Translator
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.wire.messages import exchange_response, stream_response, translate_response
from support.calls import (
    LONG_LINE,
    NOW,
    call,
    score_call,
    translated,
)
from support.marian_tokenizer import EOS_ID, write_tokenizer
from support.pivot import (
    DE_ES,
    Leg,
    across,
    exchanged,
    renamed,
    reworded,
    stream_call,
    streamed,
    translator_of,
)
from support.server_parts import LIMITS

TEXTS = [
    "Die alte Katze schläft.",
    "Eins. Zwei. Drei! Vier?",
    "Wo ist sie?\n\n  Im Haus.\r\nDort.\n",
    "12:30",
    "",
    " \n\t\n",
    "Name\tAlter     Ort\n{name}\t12\tein Haus. Ein Hof.",
    "Siehe `hier. Dort. Da` und https://example.com/. Danke, z.B. heute.",
    "句子一。句子二。\n第三。",
    LONG_LINE,
]
"""Lines, sentences, blank lines, wide gaps, no words, no spaces between sentences."""

WORDS = "the a small large old young red house river dog sees takes finds near under. with and now one two"


@pytest.fixture
def registry(first: Leg, second: Leg) -> Registry:
    """Of the translator."""
    return Registry.of(first.model, second.model)


async def by_hand(translator: Translator, text: str, pivot: str, target: str, **values: object) -> str:
    """What a caller gets who translates twice."""
    pair = {"source_language_code": "de", "target_language_code": pivot}
    halfway = translated(await translator.translate(call(text, **pair, **values), NOW)).text
    pair = {"source_language_code": pivot, "target_language_code": target}
    return translated(await translator.translate(call(halfway, **pair, **values), NOW)).text


# -- the same as by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segmentation", [None, *Segmentation])
@pytest.mark.parametrize(("pivot", "target"), [("en", "es"), ("zh", "es"), ("en", "zh"), ("zh", "ja")])
@pytest.mark.parametrize(("of_first", "of_second"), [("sentence", "packed"), ("line", "sentence")])
async def test_a_text_is_what_two_calls_make_of_it(
    bundle: Bundle,
    pivot: str,
    target: str,
    segmentation: Segmentation | None,
    of_first: DefaultSegmentation,
    of_second: DefaultSegmentation,
) -> None:
    limits = replace(LIMITS, max_source_tokens=400)
    first = Leg.of(bundle, "de", pivot, reworded, segmentation=of_first, limits=limits)
    second = Leg.of(bundle, pivot, target, partial(reworded, seed=1), segmentation=of_second, limits=limits)
    values: dict[str, Any] = {"segmentation": segmentation, "target_language_code": target}
    texts = [*TEXTS, *("\n".join(TEXTS[start::3]) for start in range(3))]
    with translator_of(first.model, second.model) as translator:
        expected = [await by_hand(translator, text, pivot, target, segmentation=segmentation) for text in texts]
        found = [translated(await translator.translate(across(text, **values), NOW)).text for text in texts]
        streams = [await streamed(translator, stream_call(text, **values)) for text in texts]
        outcomes = await exchanged(translator, *texts, **values)
    assert found == expected
    assert [(deltas, result.text) for deltas, result in streams] == [*zip(expected, expected, strict=True)]
    results = [outcomes[str(number)].result for number in range(len(texts))]
    assert [result.text for result in results if isinstance(result, TranslatedText)] == expected


async def test_real_models_make_of_many_texts_what_two_calls_make_of_them(
    tiny_bundles: dict[Precision, Bundle],
) -> None:
    """All at once, greedily, and some with a beam."""
    bundle, options = tiny_bundles["fp32"], EngineOptions(max_running=16, lanes=2, num_threads=1)
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS.split(), k=rng.randint(1, 8))) for _ in range(200)]
    texts = ["\n".join(lines[start::50]) for start in range(50)]
    with (
        Hardware(options) as hardware,
        Model.open(bundle.folder, options, hardware) as model,
        translator_of(renamed(model, "de", "en"), renamed(model, "en", "es")) as translator,
    ):
        expected = await asyncio.gather(*(by_hand(translator, text, "en", "es") for text in texts))
        calls = (translator.translate(across(*texts[start : start + 4]), NOW) for start in range(0, 50, 4))
        results = [result for outcome in await asyncio.gather(*calls) for result in outcome.results]
        assert [result.text for result in results if isinstance(result, TranslatedText)] == expected
        assert len({*expected}) > 40
        streams = await asyncio.gather(*(streamed(translator, stream_call(text)) for text in texts))
        assert [deltas for deltas, _ in streams] == [result.text for _, result in streams] == expected
        beam: dict[str, object] = {"beam_size": 3, "length_penalty": 0.6}
        expected = await asyncio.gather(*(by_hand(translator, text, "en", "es", **beam) for text in texts[:9]))
        streams = await asyncio.gather(*(streamed(translator, stream_call(text, **beam)) for text in texts[:9]))
        assert [deltas for deltas, _ in streams] == [result.text for _, result in streams] == expected


async def test_deltas_are_those_of_the_second_translation(translator: Translator, second: Leg) -> None:
    second.engine.is_holding = True
    parts = translator.stream(stream_call("Eins.\nZwei."), NOW)
    delta = asyncio.ensure_future(anext(parts))
    await second.engine.submitted(2)
    second.engine.progress[0](tuple(second.model.tokenizer.encode("SEE")))
    assert await delta == "SEE"
    second.engine.release()
    *deltas, outcome = [part async for part in parts]
    assert isinstance(outcome, StreamOutcome)
    assert "SEE" + "".join(map(str, deltas)) == outcome.result.text == "SEEins.\nSEZwei."


# -- segments ----------------------------------------------------------------------------------------------------------


async def test_a_segment_has_the_place_in_the_callers_text_and_the_tokens_of_the_second_model(
    translator: Translator, first: Leg, second: Leg
) -> None:
    text = " Die Katze.\r\n\r\n Wo ist sie?\n"
    result = translated(await translator.translate(across(text), NOW))
    assert result.text == " SEDie Katze.\r\n\r\n SEWo ist sie?\n"
    assert [text[part.begin : part.end] for part in result.segments] == ["Die Katze.", "Wo ist sie?"]
    tokenizer = second.model.tokenizer
    for part, read, written in zip(result.segments, first.engine.requests, second.engine.futures, strict=True):
        (candidate,) = part.candidates
        assert candidate.hypothesis == written.result().hypotheses[0]
        assert candidate.text == tokenizer.decode(candidate.hypothesis.token_ids)
        assert candidate.pieces == tokenizer.pieces(candidate.hypothesis.token_ids)
        assert part.num_source_tokens == len(read.source_ids)
    assert result.num_source_tokens == sum(len(request.source_ids) for request in first.engine.requests)
    num_tokens = [len(future.result().hypotheses[0].token_ids) for future in second.engine.futures]
    assert result.num_target_tokens == sum(num_tokens)
    assert (result.queue_seconds, result.encode_seconds, result.decode_seconds) == (0.5, 0.25, 1.0)


GERMAN = {
    "Eins.": "One.",
    "Zwei drei vier.": "Two. Three; four.",
    "Elf.": "11!",
    "Nichts.": "",
    "Eins. Elf.": "One. 11!",
}


@pytest.mark.parametrize(
    ("of_first", "of_second", "text", "parts"),
    [
        ("sentence", "sentence", "Eins. Eins.", [("Eins.", "ONE."), ("Eins.", "ONE.")]),
        (
            "sentence",
            "sentence",
            "Eins.\tZwei drei vier.",
            [("Eins.", "ONE."), ("Zwei drei vier.", "TWO. THREE; FOUR.")],
        ),
        # The second model reads two sentences as one, or with what has no words.
        ("sentence", "line", "Eins. Eins.\nEins.", [("Eins. Eins.", "ONE. ONE."), ("Eins.", "ONE.")]),
        ("sentence", "line", " 12:30! Eins. 13:00! ", [("12:30! Eins. 13:00!", "12:30! ONE. 13:00!")]),
        # There is nothing to read for it in what the first has written.
        ("sentence", "sentence", "Eins. Elf. Eins.", [("Eins.", "ONE."), ("Elf.", "11!"), ("Eins.", "ONE.")]),
        ("sentence", "sentence", "Elf.", [("Elf.", "11!")]),
        ("line", "sentence", "Eins. Elf.", [("Eins. Elf.", "ONE. 11!")]),
        ("sentence", "sentence", "Eins. Nichts. Eins.", [("Eins.", "ONE."), ("Nichts.", ""), ("Eins.", "ONE.")]),
        ("sentence", "line", "Eins. Nichts. Eins.", [("Eins. Nichts. Eins.", "ONE. ONE.")]),
        ("sentence", "sentence", "Nichts.", [("Nichts.", "")]),
        # It reads what the first has not.
        ("line", "sentence", "Eins.\n `aa. Bb` ", [("Eins.", "ONE."), ("`aa.", "`AA."), ("Bb`", "BB`")]),
    ],
)
async def test_segments_of_both_models_that_have_text_in_common_are_one(
    bundle: Bundle,
    of_first: DefaultSegmentation,
    of_second: DefaultSegmentation,
    text: str,
    parts: Sequence[tuple[str, str]],
) -> None:
    first = Leg.of(bundle, "de", "en", GERMAN.__getitem__, segmentation=of_first)
    second = Leg.of(bundle, "en", "es", str.upper, segmentation=of_second)
    with translator_of(first.model, second.model) as translator:
        result = translated(await translator.translate(across(text), NOW))
    assert [(text[p.begin : p.end], p.candidates[0].text) for p in result.segments] == parts
    assert result.num_source_tokens == sum(len(request.source_ids) for request in first.engine.requests)
    hypotheses = [future.result().hypotheses[0] for future in second.engine.futures]
    assert result.num_target_tokens == sum(len(hypothesis.token_ids) for hypothesis in hypotheses)


async def test_segments_with_nothing_between_them_stay_apart(bundle: Bundle) -> None:
    first, second = (
        Leg.of(bundle, "ja", "zh", lambda text: f"句{text}"),
        Leg.of(bundle, "zh", "es", lambda text: f"S{text}"),
    )
    with translator_of(first.model, second.model) as translator:
        result = translated(await translator.translate(across("一。二。", source_language_code="ja"), NOW))
    assert result.text == "S句一。 S句二。"
    assert [(p.begin, p.end, p.candidates[0].text) for p in result.segments] == [(0, 2, "S句一。"), (2, 4, "S句二。")]


async def test_each_model_has_its_own_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    marian = Bundle(tmp_path, replace(bundle.manifest, tokenizer="marian", eos_token_id=EOS_ID), "0")
    first, second = Leg.of(marian, "de", "en", lambda _: "le chat"), Leg.of(bundle, "en", "es", str.upper)
    with translator_of(first.model, second.model) as translator:
        result = translated(await translator.translate(across("the dog"), NOW))
    assert result.text == "LE CHAT"
    assert result.segments[0].candidates[0].pieces[-1] == "</s>"


async def test_several_segments_of_the_second_model_have_one_hypothesis(bundle: Bundle) -> None:
    first = Leg.of(bundle, "de", "en", lambda _: "One. Two. Three.")
    second = Leg.of(bundle, "en", "es", str.upper)
    with translator_of(first.model, second.model) as translator:
        result = translated(await translator.translate(across("Eins zwei drei.", length_penalty=2.0), NOW))
    ((candidate,),) = [part.candidates for part in result.segments]
    hypotheses = [future.result().hypotheses[0] for future in second.engine.futures]
    whole = candidate.hypothesis
    assert len(hypotheses) == 3
    assert whole.token_ids == tuple(token_id for h in hypotheses for token_id in h.token_ids)
    assert whole.token_logprobs == tuple(logprob for h in hypotheses for logprob in h.token_logprobs)
    assert whole.sum_logprob == sum(h.sum_logprob for h in hypotheses)
    assert whole.score == whole.sum_logprob / len(whole.token_ids) ** 2
    assert whole.finish_reason is FinishReason.STOP
    assert len(candidate.pieces) == len(whole.token_ids)


def test_what_penalties_ranked_by_is_summed() -> None:
    ranked = [
        Hypothesis((7, 3), (-1.0, -1.0), FinishReason.STOP, 1.0, -3.0),
        Hypothesis((3,), (-1.0,), FinishReason.STOP, 1.0, -3.0),
    ]
    assert joined(ranked, is_cut_off=False).score == -2.0


async def test_a_segment_that_either_model_has_cut_off_says_so(bundle: Bundle) -> None:
    """Of the first and the third segment the translation into the pivot is cut off, of the second that out of it."""
    texts = {"Eins.": "One one one one one one.", "Zwei.": "Two.", "Elf.": "11 11 11 11 11 11.", "Drei.": "Tres."}
    first = Leg.of(bundle, "de", "en", texts.__getitem__)
    second = Leg.of(bundle, "en", "es", lambda text: "Dos dos dos dos dos dos." if text == "Two." else "Si.")
    with translator_of(first.model, second.model) as translator:
        asked = across("Eins.\nZwei.\nElf.\nDrei.", max_target_tokens=7)
        result = translated(await translator.translate(asked, NOW))
    reasons = [part.candidates[0].hypothesis.finish_reason for part in result.segments]
    assert reasons == [FinishReason.LENGTH] * 3 + [FinishReason.STOP]


# -- what the answer says ----------------------------------------------------------------------------------------------

Response = pb.TranslateResponse | pb.StreamTranslationResponse | pb.ExchangeTranslationsResponse
PIVOT = pb.Pivot(language_code="en", model="de-en@0123456789ab", vocabulary=pb.VOCABULARY_FULL)


async def test_the_answer_names_both_models_and_the_language_between(translator: Translator) -> None:
    outcome = await translator.translate(across("Eins.", source_language_code="de-AT"), NOW)
    assert (outcome.model, outcome.direction) == ("en-es@0123456789ab", ("de", "es"))
    assert outcome.pivot == ("en", "de-en@0123456789ab", "full")
    *_, last = [part async for part in translator.stream(stream_call("Eins."), NOW)]
    exchange = (await exchanged(translator, "Eins.", "x" * 3_001)).values()
    messages: list[Response] = [translate_response(outcome), stream_response(last), *map(exchange_response, exchange)]
    for message in messages:
        assert message.pivot == PIVOT
        assert message.model == "en-es@0123456789ab"
        assert (message.source_language_code, message.target_language_code) == ("de", "es")


async def test_there_is_no_pivot_where_one_model_translates(translator: Translator) -> None:
    pair: dict[str, Any] = {"source_language_code": "de", "target_language_code": "en"}
    outcome = await translator.translate(across("Eins.", **pair), NOW)
    *_, last = [part async for part in translator.stream(stream_call("Eins.", **pair), NOW)]
    exchange = (await exchanged(translator, "Eins.", **pair)).values()
    assert outcome.pivot is None
    for message in (translate_response(outcome), stream_response(last), *map(exchange_response, exchange)):
        assert not message.HasField("pivot")


async def test_scores_do_not_go_through_a_pivot(translator: Translator) -> None:
    with pytest.raises(UnsupportedLanguageError):
        await translator.score(score_call(("Eins.", "Uno."), **DE_ES), NOW)
