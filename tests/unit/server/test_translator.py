import asyncio
import gc
import math
import threading
import time
from collections.abc import Sequence

import pytest

from dragoman_server.config import InputLimits
from dragoman_server.engine.sequence import FinishReason
from dragoman_server.errors import (
    DeadlineError,
    DragomanError,
    EngineDeadError,
    InferenceError,
    InvalidInputError,
    ModelNotFoundError,
    NotInTimeError,
    QueueFullError,
    UnknownValue,
    UnsupportedLanguageError,
)
from dragoman_server.registry.registry import Registry
from dragoman_server.service.calls import (
    CallContext,
    StreamCall,
    TextInput,
)
from dragoman_server.service.results import StreamOutcome
from dragoman_server.service.translate import Translator
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.text.tokenizer import Tokenizer
from support.calls import LONG_LINE, MAX_ROWS, MAX_SEGMENTS, NOW, call, config, refused, score_call, translated
from support.fake_runner import Gate
from support.server_parts import EOS_ID, LIMITS, FakeEngine


async def test_a_text_comes_back_translated(translator: Translator, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    text = " The old cat.\r\n\r\n How are you?\n"
    outcome = await translator.translate(call(text), NOW)
    result = translated(outcome)
    assert outcome.model == "tiny@0123456789ab"
    assert result.text == text
    assert [text[s.begin : s.end] for s in result.segments] == ["The old cat.", "How are you?"]
    for segment, request in zip(result.segments, engine.requests, strict=True):
        (candidate,) = segment.candidates
        assert candidate.text == text[segment.begin : segment.end]
        assert candidate.pieces == [*tokenizer.pieces(tokenizer.encode(candidate.text)), "</s>"]
        assert candidate.hypothesis.finish_reason is FinishReason.STOP
        assert segment.num_source_tokens == len(request.source_ids)
    assert result.num_source_tokens == sum(len(request.source_ids) for request in engine.requests)
    assert result.num_target_tokens == result.num_source_tokens - 2  # without the language tags
    assert (result.queue_seconds, result.encode_seconds, result.decode_seconds) == (0.25, 0.125, 0.5)


async def test_a_source_is_language_tag_pieces_and_end(
    translator: Translator, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    await translator.translate(call("The cat.", target_language_code="de"), NOW)
    assert engine.requests[0].source_ids == (6, *tokenizer.encode("The cat."), EOS_ID)
    assert engine.requests[0].deadline == math.inf


@pytest.mark.parametrize("text", ["", " ", "\n\n", " \t\r\n\u3000", "\u200b"])
async def test_blank_text_translates_to_itself(translator: Translator, engine: FakeEngine, text: str) -> None:
    result = translated(await translator.translate(call(text), NOW))
    assert (result.text, result.segments, result.num_source_tokens) == (text, [], 0)
    assert engine.requests == []


async def test_a_language_that_the_model_lacks_stands_for_its_nearest(
    translator: Translator, engine: FakeEngine
) -> None:
    outcome = await translator.translate(
        call("Hello.", source_language_code="EN_us", target_language_code="fr-CA"), NOW
    )
    assert outcome.direction == ("en", "fr")
    assert engine.requests[0].source_ids[0] == 5


@pytest.mark.parametrize("model", ["", "tiny", "tiny@0123456789ab"])
async def test_the_model_has_three_names(translator: Translator, model: str) -> None:
    assert (await translator.translate(call("Hello.", model=model), NOW)).model == "tiny@0123456789ab"


@pytest.mark.parametrize(
    ("model", "there_is"),
    [("other", "this server has 'tiny'"), ("tiny@ffffffffffff", "no such version; model 'tiny' has 0123456789ab")],
)
async def test_another_model_is_not_found(translator: Translator, model: str, there_is: str) -> None:
    with pytest.raises(ModelNotFoundError, match=there_is) as caught:
        await translator.translate(call("Hello.", model=model), NOW)
    assert caught.value.model == model


async def test_an_unsupported_pair_names_the_pairs_there_are(translator: Translator) -> None:
    with pytest.raises(UnsupportedLanguageError, match="it translates de-en, en-fr, en-de, fr-en") as caught:
        await translator.translate(call("Hallo.", source_language_code="de", target_language_code="it"), NOW)
    assert caught.value.language_pair == "de-it"


async def test_what_is_no_language_code_is_not_repeated(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="target_language_code: is not a BCP 47 language tag") as caught:
        await translator.translate(call("Hello.", target_language_code="my secret"), NOW)
    assert "secret" not in str(caught.value)


async def test_all_violations_of_a_call_are_listed_at_once(translator: Translator, engine: FakeEngine) -> None:
    bad = call(
        *["a"] * 5,
        source_language_code="",
        target_language_code="",
        segmentation=UnknownValue(7),
        priority=UnknownValue(7),
        max_target_tokens=0,
    )
    with pytest.raises(InvalidInputError) as caught:
        await translator.translate(bad, NOW)
    assert [(v.field, v.reason) for v in caught.value.violations] == [
        ("inputs", "TOO_MANY_INPUTS"),
        ("source_language_code", "REQUIRED_FIELD"),
        ("target_language_code", "REQUIRED_FIELD"),
        ("segmentation", "UNKNOWN_ENUM_VALUE"),
        ("priority", "UNKNOWN_ENUM_VALUE"),
        ("options.max_target_tokens", "OUT_OF_RANGE"),
    ]
    assert "has 5 elements, may have at most 4" in str(caught.value)
    assert "is 0, must be from 1 to 96" in str(caught.value)
    assert engine.requests == []


async def test_a_call_needs_inputs(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="inputs: is empty"):
        await translator.translate(call(), NOW)


@pytest.mark.parametrize("number", [1, LIMITS.max_target_tokens])
async def test_max_target_tokens_is_honoured(translator: Translator, engine: FakeEngine, number: int) -> None:
    await translator.translate(call("Hello.", max_target_tokens=number), NOW)
    assert engine.requests[0].max_target_tokens == number


async def test_max_target_tokens_has_a_limit(translator: Translator) -> None:
    with pytest.raises(InvalidInputError, match="max_target_tokens"):
        await translator.translate(call("Hello.", max_target_tokens=LIMITS.max_target_tokens + 1), NOW)


async def test_by_default_the_target_is_bounded_by_the_source(translator: Translator, engine: FakeEngine) -> None:
    await translator.translate(call("cat\n" + "cat " * 12), NOW)
    short, long = engine.requests
    assert short.max_target_tokens == 3 * len(short.source_ids) + 32 < LIMITS.max_target_tokens
    assert long.max_target_tokens == LIMITS.max_target_tokens


async def test_a_cut_off_target_is_stated(translator: Translator) -> None:
    result = translated(await translator.translate(call("The old cat.", max_target_tokens=2), NOW))
    assert result.segments[0].candidates[0].hypothesis.finish_reason is FinishReason.LENGTH
    assert result.num_target_tokens == 2


async def test_an_input_at_fault_does_not_disturb_the_others(translator: Translator) -> None:
    outcome = await translator.translate(call("One.", "x" * 3_001, "Q" * 100, "Two."), NOW)
    assert translated(outcome, 0).text == "One."
    assert refused(outcome, 1) == ("inputs[1].text", "TEXT_TOO_LONG")
    assert refused(outcome, 2) == ("inputs[2].text", "SEGMENT_TOO_LONG")
    assert translated(outcome, 3).text == "Two."


async def test_a_text_is_measured_before_it_is_tokenized(
    translator: Translator, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(text: str) -> list[int]:
        raise AssertionError("was tokenized")

    monkeypatch.setattr(tokenizer, "encode", encode)
    outcome = await translator.translate(call("x" * 3_001), NOW)
    assert refused(outcome) == ("inputs[0].text", "TEXT_TOO_LONG")


async def test_a_long_line_is_split_and_each_part_fits(translator: Translator, engine: FakeEngine) -> None:
    result = translated(await translator.translate(call(LONG_LINE), NOW))
    assert result.text == LONG_LINE
    assert len(result.segments) > 1
    assert all(len(request.source_ids) <= LIMITS.max_source_tokens for request in engine.requests)


async def test_a_long_line_that_may_not_be_split_is_refused(translator: Translator, engine: FakeEngine) -> None:
    outcome = await translator.translate(call(LONG_LINE, segmentation=Segmentation.LINE), NOW)
    assert refused(outcome) == ("inputs[0].text", "SEGMENT_TOO_LONG")
    assert engine.requests == []


async def test_sentences_are_segments_when_asked_for(translator: Translator) -> None:
    outcome = await translator.translate(call("One. Two.", segmentation=Segmentation.SENTENCE), NOW)
    assert len(translated(outcome).segments) == 2


async def test_a_call_may_not_have_more_segments_than_can_ever_queue(
    translator: Translator, engine: FakeEngine
) -> None:
    await translator.translate(call("a\n" * MAX_SEGMENTS), NOW)
    engine.requests.clear()
    with pytest.raises(InvalidInputError, match="more than the 500 segments") as caught:
        await translator.translate(call("a\n" * MAX_SEGMENTS, "b"), NOW)
    assert caught.value.violations[0].reason == "TOO_MANY_SEGMENTS"
    assert engine.requests == []


async def test_what_takes_long_leaves_the_event_loop(
    translator: Translator, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    encode = tokenizer.encode

    def noting(text: str) -> Sequence[int]:
        threads.append(threading.current_thread())
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", noting)
    await translator.translate(call("Hello."), NOW)
    await translator.translate(call("Hello. " * 400), NOW)
    assert threads[0] is threading.main_thread()
    assert threading.main_thread() not in threads[1:]


async def test_texts_of_callers_who_have_left_are_not_tokenized(
    registry: Registry, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoded = Gate(), list[str]()

    def encode(text: str) -> list[int]:
        encoded.append(text)
        gate()
        return [9]

    monkeypatch.setattr(tokenizer, "encode", encode)
    translator = Translator(registry, InputLimits(), MAX_SEGMENTS, MAX_ROWS)
    texts = ["x" * 20_000] * 100
    calls = [asyncio.create_task(translator.translate(call(*texts), NOW)) for _ in range(5)]
    await asyncio.to_thread(gate.reached.wait, 30)
    for task in calls:
        task.cancel()
    await asyncio.wait(calls)
    gate.open.set()
    await translator.translate(call("y" * 20_000), NOW)
    assert encoded == [texts[0], "y" * 20_000]
    translator.close()


async def test_a_past_deadline_is_told_without_any_work(translator: Translator, engine: FakeEngine) -> None:
    with pytest.raises(DeadlineError):
        await translator.translate(call("Hello."), CallContext(deadline=time.monotonic()))
    assert engine.requests == []


@pytest.mark.parametrize("error", [QueueFullError("full", 1.0), NotInTimeError("late", 1.0)])
async def test_who_is_refused_whatever_the_texts_are_is_refused_before_they_are_tokenized(
    translator: Translator,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    error: DragomanError,
) -> None:
    monkeypatch.setattr(tokenizer, "encode", None)
    engine.early_refusal = error
    context = CallContext(identity="a")
    with pytest.raises(type(error)):
        await translator.translate(call("Hello.", "https://a.b/c"), context)
    with pytest.raises(type(error)):
        await anext(translator.stream(StreamCall(TextInput("Hello."), config()), context))
    with pytest.raises(type(error)):
        await translator.score(score_call(("Hello.", "Bonjour.")), context)
    assert engine.requests == []


async def test_while_texts_are_tokenized_the_engine_expects_them(
    translator: Translator, engine: FakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = tokenizer.encode

    def watched(text: str) -> list[int]:
        seen.append(engine.num_expected)
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", watched)
    await translator.translate(call("Hello.", "World."), CallContext(identity="a"))
    assert seen == [2, 2]
    assert engine.num_expected == 0


async def test_a_call_without_anything_to_translate_is_never_refused(
    translator: Translator, engine: FakeEngine
) -> None:
    engine.early_refusal = engine.refusal = QueueFullError("full", 1.0)
    outcome = await translator.translate(call("", "12", "https://a.b/c"), NOW)
    assert len(outcome.results) == 3


async def test_the_engine_knows_the_deadline(translator: Translator, engine: FakeEngine) -> None:
    deadline = time.monotonic() + 10
    await translator.translate(call("Hello."), CallContext(deadline))
    assert engine.requests[0].deadline == deadline


@pytest.mark.parametrize("error", [QueueFullError("the queue is full", 1.5), EngineDeadError("dead")])
async def test_errors_of_submitting_pass_through(
    translator: Translator, engine: FakeEngine, error: DragomanError
) -> None:
    engine.refusal = error
    with pytest.raises(type(error)):
        await translator.translate(call("Hello."), NOW)


async def test_one_failed_segment_fails_the_call_and_withdraws_the_rest(
    translator: Translator, engine: FakeEngine
) -> None:
    engine.is_holding = True
    task = asyncio.create_task(translator.translate(call("One.\nTwo.\nThree."), NOW))
    await engine.submitted(3)
    engine.futures[1].set_exception(DeadlineError("too late"))
    with pytest.raises(DeadlineError):
        await task
    assert engine.futures[0].cancelled()
    assert engine.futures[2].cancelled()


async def test_cancelling_a_call_withdraws_all_of_it(translator: Translator, engine: FakeEngine) -> None:
    engine.is_holding = True
    task = asyncio.create_task(translator.translate(call("One.\nTwo.", "Three."), NOW))
    await engine.submitted(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(future.cancelled() for future in engine.futures)


async def test_calls_do_not_mix(translator: Translator, engine: FakeEngine) -> None:
    engine.is_holding = True
    tasks = [asyncio.create_task(translator.translate(call(f"Number {n}."), NOW)) for n in range(20)]
    await engine.submitted(20)
    engine.release()
    assert [translated(await task).text for task in tasks] == [f"Number {n}." for n in range(20)]


# -- stream ------------------------------------------------------------------------------------------------------------


async def test_a_stream_in_which_several_segments_fail_leaves_nothing_behind(
    translator: Translator, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.is_holding = True

    stream = translator.stream(StreamCall(TextInput("One.\nTwo.\nThree."), config()), NOW)
    task = asyncio.ensure_future(anext(stream))
    await engine.submitted(3)
    for future in engine.futures[:2]:
        future.set_exception(InferenceError("no memory"))
    with pytest.raises(InferenceError):
        await task
    assert engine.futures[2].cancelled()
    gc.collect()
    assert caplog.text == ""


async def test_a_long_text_is_streamed_whole(translator: Translator, engine: FakeEngine) -> None:
    text = "The old cat.\n" * 200
    *pieces, outcome = [part async for part in translator.stream(StreamCall(TextInput(text), config()), NOW)]
    assert isinstance(outcome, StreamOutcome)
    assert "".join(map(str, pieces)) == outcome.result.text == text
