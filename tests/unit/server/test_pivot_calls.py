"""Calls that two models answer together: their options and limits, and what becomes of them where something fails."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Generation
from dragoman_server.engine.search_options import EarlyStopping
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    QueueFullError,
)
from dragoman_server.registry.registry import Registry
from dragoman_server.service import planner
from dragoman_server.service.calls import (
    CallContext,
    ExchangeInput,
    StreamCall,
    TextInput,
    TranslateConfig,
)
from dragoman_server.service.results import TranslatedText
from dragoman_server.service.translate import Translator
from dragoman_server.text.segmentation import Segmentation
from support.calls import (
    INPUT_LIMITS,
    MAX_ROWS,
    MAX_SEGMENTS,
    NOW,
    config,
    refused,
    translated,
    violations,
)
from support.pivot import (
    DE_ES,
    Leg,
    across,
    exchanged,
    stream_call,
    streamed,
    translator_of,
)
from support.server_parts import LIMITS


@pytest.fixture
def registry(first: Leg, second: Leg) -> Registry:
    """Of the translator."""
    return Registry.of(first.model, second.model)


# -- options and limits ------------------------------------------------------------------------------------------------

ROUTE = "de-es goes through en, by de-en@0123456789ab and en-es@0123456789ab"


async def test_all_that_makes_no_sense_across_two_models_is_refused_at_once(translator: Translator) -> None:
    asked = across("Eins.", num_hypotheses=2, beam_size=2, suppressed_words=[""], max_target_tokens=97)
    with pytest.raises(InvalidInputError) as caught:
        await translator.translate(replace(asked, include_signals=True), NOW)
    assert [(v.field, v.description, v.reason) for v in caught.value.violations] == [
        ("options.max_target_tokens", "is 97, must be from 1 to 96", "OUT_OF_RANGE"),
        ("options.suppressed_words[0]", "has no tokens, must have at least 1", "SUPPRESSED_WORD_EMPTY"),
        ("options.num_hypotheses", f"is 2, may be at most 1, as {ROUTE}", "NOT_WITH_PIVOT"),
        ("include_signals", f"must be false, as {ROUTE}", "NOT_WITH_PIVOT"),
    ]


async def test_a_target_prefix_is_refused_with_all_else_that_is_wrong_with_an_input(translator: Translator) -> None:
    long = "Wort " * 200
    prefixed = [TextInput("Eins. Zwei.", "Uno"), TextInput(long, "Uno"), TextInput("x" * 3_001, "Uno")]
    refusal = f"must be empty, as {ROUTE}"
    outcome = await translator.translate(across(*prefixed, "Drei.", segmentation=Segmentation.LINE), NOW)
    assert violations(outcome, 0) == [("inputs[0].target_prefix", refusal)]
    assert refused(outcome, 0) == ("inputs[0].target_prefix", "NOT_WITH_PIVOT")
    assert [field for field, _ in violations(outcome, 1)] == ["inputs[1].text", "inputs[1].target_prefix"]
    assert [field for field, _ in violations(outcome, 2)] == ["inputs[2].text", "inputs[2].target_prefix"]
    assert translated(outcome, 3).text == "SEDrei."
    with pytest.raises(InvalidInputError, match=rf"^input\.target_prefix: {refusal}$"):
        await anext(translator.stream(StreamCall(prefixed[0], config(**DE_ES)), NOW))
    result = (await exchanged(translator, prefixed[0]))["0"].result
    assert str(result) == f"input.target_prefix: {refusal}"


async def test_a_stream_of_texts_refuses_a_config(translator: Translator) -> None:
    with pytest.raises(
        InvalidInputError, match=rf"^config\.options\.num_hypotheses: is 2, may be at most 1, as {ROUTE}$"
    ):
        await exchanged(translator, "Eins.", num_hypotheses=2, beam_size=2)


async def test_options_hold_for_both_models(translator: Translator, first: Leg, second: Leg) -> None:
    values = {
        "max_target_tokens": 9,
        "min_target_tokens": 2,
        "beam_size": 3,
        "length_penalty": 0.5,
        "patience": 2.0,
        "early_stopping": EarlyStopping.NEVER,
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 4,
    }
    context = CallContext(deadline=time.monotonic() + 1000)
    await translator.translate(across("Eins.", priority=Priority.BULK, **values), context)
    (one,), (two,) = first.engine.requests, second.engine.requests
    assert one.options == two.options
    assert {name: getattr(one.options, name) for name in values if hasattr(one.options, name)} == {
        name: value for name, value in values.items() if name != "max_target_tokens"
    }
    for request in (one, two):
        assert (request.max_target_tokens, request.priority, request.deadline) == (9, Priority.BULK, context.deadline)
    await translator.translate(across("Eins.", seed=5, top_k=3, max_length_ratio=0.5), NOW)
    for request in (first.engine.requests[1], second.engine.requests[1]):
        assert (request.options.is_sampling, request.options.seed, request.options.top_k) == (True, 5, 3)
        assert request.max_target_tokens == math.ceil(len(request.source_ids) / 2)


async def test_suppressed_words_are_words_of_the_target(translator: Translator, first: Leg, second: Leg) -> None:
    await translator.translate(across("Eins.", suppressed_words=["gato"]), NOW)
    assert first.engine.requests[0].options.suppressed == ()
    assert second.engine.requests[0].options.suppressed == (tuple(second.model.tokenizer.encode_target("gato")),)
    with pytest.raises(InvalidInputError, match=r"options\.suppressed_words\[1\]: has no tokens"):
        await translator.translate(across("Eins.", suppressed_words=["gato", ""]), NOW)


async def test_each_model_has_its_own_defaults_and_limits(bundle: Bundle) -> None:
    limits = replace(LIMITS, max_target_tokens=50)
    first = Leg.of(bundle, "de", "en", str.upper, generation=Generation(beam_size=2))
    second = Leg.of(bundle, "en", "es", str.lower, limits=limits, generation=Generation(length_penalty=0.5))
    with translator_of(first.model, second.model) as translator:
        await translator.translate(across("Eins."), NOW)
        (one,), (two,) = first.engine.requests, second.engine.requests
        assert (one.options.beam_size, one.options.length_penalty) == (2, 1.0)
        assert (two.options.beam_size, two.options.length_penalty) == (1, 0.5)
        with pytest.raises(InvalidInputError, match=r"^options\.max_target_tokens: is 60, must be from 1 to 50$"):
            await translator.translate(across("Eins.", max_target_tokens=60), NOW)


async def test_codes_are_those_that_the_model_at_their_end_understands(bundle: Bundle) -> None:
    first = Leg.of(bundle, "de", "en", str.upper, aliases={"::de": "de"})
    second = Leg.of(bundle, "en", "es", str.lower, aliases={"::es": "es"})
    with translator_of(first.model, second.model) as translator:
        pair = {"source_language_code": "::de", "target_language_code": "::es"}
        assert translated(await translator.translate(across("Eins.", **pair), NOW)).text == "eins."


async def test_a_text_that_the_first_model_makes_too_long_for_the_second_is_an_error_of_its_input(
    bundle: Bundle,
) -> None:
    def translation(text: str) -> str:
        return {"Lang.": "long " * 15, "Sehr lang.": "word " * 70}.get(text, text)

    limits = replace(LIMITS, max_target_tokens=400)
    first = Leg.of(bundle, "de", "en", translation, limits=limits)
    second = Leg.of(bundle, "en", "es", str.upper, limits=replace(LIMITS, max_source_tokens=20))
    texts = ["Eins.", "Lang.", "Sehr lang.\n" * 60, "Zwei."]
    with translator_of(first.model, second.model) as translator:
        outcome = await translator.translate(across(*texts, max_target_tokens=90), NOW)
        assert [translated(outcome, index).text for index in (0, 3)] == ["EINS.", "ZWEI."]
        assert refused(outcome, 1) == ("inputs[1].text", "SEGMENT_TOO_LONG")
        assert refused(outcome, 2) == ("inputs[2].text", "TEXT_TOO_LONG")
        ((_, too_many_tokens),), ((_, too_many_characters),) = violations(outcome, 1), violations(outcome, 2)
        assert too_many_tokens.startswith("translated into en, characters 0 to 74 are one segment of ")
        assert too_many_tokens.endswith(" tokens; the model takes at most 20")
        assert re.fullmatch(r"translated into en, has \d+ characters, may have at most 3000", too_many_characters)
        with pytest.raises(InvalidInputError, match=r"^input\.text: translated into en, characters 0 to 74 "):
            await streamed(translator, stream_call("Lang.", max_target_tokens=90))
        outcomes = await exchanged(translator, *texts, max_target_tokens=90)
    assert isinstance(outcomes["1"].result, InvalidInputError)
    assert isinstance(outcomes["3"].result, TranslatedText)


async def test_an_input_at_fault_does_not_disturb_the_others(translator: Translator, first: Leg, second: Leg) -> None:
    outcome = await translator.translate(across("Eins.", "x" * 3_001, "", "12:30"), NOW)
    assert [translated(outcome, index).text for index in (0, 2, 3)] == ["SEEins.", "", "12:30"]
    assert refused(outcome, 1) == ("inputs[1].text", "TEXT_TOO_LONG")
    assert len(first.engine.requests) == len(second.engine.requests) == 1


# -- the queue, deadlines, cancellation --------------------------------------------------------------------------------


def each_method(translator: Translator, text: str, context: CallContext = NOW) -> list[asyncio.Task[Any]]:
    """Translate, StreamTranslation and ExchangeTranslations of a text."""
    calls: list[Coroutine[Any, Any, Any]] = [
        translator.translate(across(text), context),
        streamed(translator, stream_call(text), context),
        exchanged(translator, text, context=context),
    ]
    return [asyncio.create_task(method) for method in calls]


async def test_what_the_first_model_has_done_is_not_refused_by_the_second(
    translator: Translator, first: Leg, second: Leg
) -> None:
    second.engine.is_full = True
    await asyncio.gather(*each_method(translator, "Eins. Zwei."))
    assert len(second.engine.requests) == 6
    first.engine.is_full = True
    results = await asyncio.gather(*each_method(translator, "Eins."), return_exceptions=True)
    assert [isinstance(result, QueueFullError) for result in results] == [True, True, False]


@pytest.mark.parametrize("leg", ["first", "second"])
async def test_who_leaves_withdraws_what_is_decoded(
    translator: Translator, registry: Registry, first: Leg, second: Leg, leg: str
) -> None:
    engine = {"first": first, "second": second}[leg].engine
    engine.is_holding = True
    tasks = each_method(translator, "Eins.\nZwei.")
    await engine.submitted(6)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert all(future.cancelled() for future in engine.futures)
    assert registry.num_leases == 0
    assert len(second.engine.requests) == (6 if leg == "second" else 0)


async def test_a_stream_that_is_closed_withdraws_the_second_translation(
    translator: Translator, registry: Registry, second: Leg
) -> None:
    second.engine.is_holding = True
    parts = translator.stream(stream_call("Eins.\nZwei."), NOW)
    delta = asyncio.ensure_future(anext(parts))
    await second.engine.submitted(2)
    second.engine.release(0)
    assert await delta == "SEEins.\n"
    await parts.aclose()
    assert second.engine.futures[1].cancelled()
    assert registry.num_leases == 0


async def test_a_deadline_holds_for_both_together(
    translator: Translator, first: Leg, second: Leg, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes while the first model translates."""
    now = 0.0
    monkeypatch.setattr(planner, "time", SimpleNamespace(monotonic=lambda: now))
    first.engine.is_holding = True
    tasks = each_method(translator, "Eins.", CallContext(deadline=1.0))
    await first.engine.submitted(3)
    now = 2.0
    first.engine.release()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [DeadlineError] * 3
    assert second.engine.requests == []


@pytest.mark.parametrize("leg", ["first", "second"])
async def test_a_model_that_fails_fails_the_call_or_the_text(
    translator: Translator, first: Leg, second: Leg, leg: str
) -> None:
    engine = {"first": first, "second": second}[leg].engine
    engine.is_holding = True
    tasks = each_method(translator, "Eins.")
    await engine.submitted(3)
    engine.fail(InferenceError("no memory"))
    *errors, outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [InferenceError] * 2
    assert isinstance(outcomes, dict)
    assert isinstance(outcomes["0"].result, InferenceError)


# -- streams of texts --------------------------------------------------------------------------------------------------


async def test_each_text_of_a_stream_goes_through_both_models_by_itself(
    translator: Translator, first: Leg, second: Leg
) -> None:
    """And all of them are one caller, to both."""
    first.engine.is_holding = True
    task = asyncio.create_task(exchanged(translator, "Eins.", "Zwei. Drei.", "12:30"))
    await first.engine.submitted(3)
    first.engine.release(1)
    first.engine.release(2)
    await second.engine.submitted(2)
    assert not first.engine.futures[0].done()
    first.engine.release(0)
    outcomes = await task
    assert [*outcomes] == ["2", "1", "0"]
    assert [outcome.result.text for outcome in outcomes.values() if isinstance(outcome.result, TranslatedText)] == [
        "12:30",
        "SEZwei. SEDrei.",
        "SEEins.",
    ]
    assert len({*first.engine.callers, *second.engine.callers}) == 1
    assert first.engine.callers[0] is not None


@pytest.mark.parametrize("leg", ["first", "second"])
async def test_a_stream_has_what_both_models_work_on_in_its_share(
    first: Leg, second: Leg, registry: Registry, leg: str
) -> None:
    """Its share is four segments, so that it is read no further than its second text, of three."""
    engine = {"first": first, "second": second}[leg].engine
    engine.is_holding = True
    with closing(Translator(registry, INPUT_LIMITS, 4, MAX_ROWS)) as translator:
        task = asyncio.create_task(exchanged(translator, *["Eins. Zwei. Drei."] * 4))
        await engine.submitted(6)
        await asyncio.sleep(0.01)
        assert len(engine.requests) == 6
        engine.is_holding = False
        engine.release()
        assert len(await task) == 4


async def test_a_stream_is_read_by_what_the_second_model_has_to_do(bundle: Bundle) -> None:
    """Four segments may be in flight, and the second model has four of each text."""
    first = Leg.of(bundle, "de", "en", lambda _: "One. Two. Three. Four.")
    second = Leg.of(bundle, "en", "es", str.upper)
    second.engine.is_holding = True
    limits = replace(INPUT_LIMITS, max_exchange_in_flight=4)
    with closing(Translator(Registry.of(first.model, second.model), limits, MAX_SEGMENTS, MAX_ROWS)) as translator:
        task = asyncio.create_task(exchanged(translator, *["Eins."] * 4))
        await second.engine.submitted(4)
        await asyncio.sleep(0.01)
        assert len(first.engine.requests) < 4
        second.engine.is_holding = False
        second.engine.release()
        assert len(await task) == 4


@pytest.mark.parametrize(
    ("pairs", "num_leases"),
    [("de-en de-es de-es de-en", 3), ("en-es de-es en-es", 3), ("de-es de-en en-es de-es", 2)],
)
async def test_a_stream_keeps_both_models_until_it_is_closed(
    translator: Translator, registry: Registry, pairs: str, num_leases: int
) -> None:
    """Each is held once for every lease that brought one that was not held yet."""

    async def messages() -> AsyncIterator[TranslateConfig | ExchangeInput]:
        for pair in pairs.split():
            source, target = pair.split("-")
            yield config(source_language_code=source, target_language_code=target)
            yield ExchangeInput(pair, TextInput("Eins."))

    nums_leases = [registry.num_leases async for _ in translator.exchange(messages(), NOW)]
    assert nums_leases[-1] == num_leases
    assert registry.num_leases == 0
