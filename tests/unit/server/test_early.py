"""Calls that cannot be answered in time because of what comes after the first model: a second one, or attention."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dragoman_server.attention import worker as worker_module
from dragoman_server.attention.selection import SelectionFields
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.engine.sequence import Outline, Request
from dragoman_server.errors import NotInTimeError, QueueFullError
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.attention import Attender
from dragoman_server.service.calls import AlignCall, AttentionCall, CallContext, Pair
from dragoman_server.service.translate import Translator
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS, NOW, call, config
from support.fake_runner import FakeRunner, running_engine
from support.pivot import Leg, across, stream_call, streamed, translator_of
from support.server_parts import FakeEngine

PAIR = Pair("the old dog", None)
SOURCE_ONLY = AttentionCall(PAIR, config(), SelectionFields(kinds=("encoder",)), is_source_only=True)


def soon() -> CallContext:
    return CallContext(time.monotonic() + 5.0)


# -- two models --------------------------------------------------------------------------------------------------------


async def test_the_first_model_knows_how_long_the_second_takes(bundle: Bundle) -> None:
    first, second = Leg.of(bundle, "de", "en", str.upper), Leg.of(bundle, "en", "es", str.lower)
    second.engine.seconds_of_one = 3.0
    with translator_of(first.model, second.model) as translator:
        await translator.translate(across("Hallo.", "Welt."), NOW)
        await streamed(translator, stream_call("Hallo."))
    assert first.engine.seconds_after == [6.0, 3.0]
    assert [request.seconds_after for request in first.engine.requests] == [6.0, 6.0, 3.0]
    assert [request.seconds_after for request in second.engine.requests] == [0.0] * 3


# -- the engine --------------------------------------------------------------------------------------------------------


def test_time_for_what_comes_after_is_asked_of_the_engine() -> None:
    with running_engine(FakeRunner()) as engine:
        deadline = time.monotonic() + 5.0
        with pytest.raises(NotInTimeError, match="the answer would take 9 s, and the deadline is in") as refusal:
            engine.check(Outline(deadline=deadline, seconds_after=9.0))
        assert 4.0 <= refusal.value.retry_after_seconds < 9.0
        with pytest.raises(NotInTimeError):
            engine.submit([Request((7, 3), 9, deadline, seconds_after=9.0)])
        assert engine.num_pending == 0
        engine.check(Outline(seconds_after=9.0))
        engine.submit([Request((7, 3), 9, deadline, seconds_after=1.0)])[0].result(10)
        assert engine.seconds(Outline(3)) == 0.0  # nothing is known yet


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(tiny_bundles: dict[Precision, Bundle]) -> Iterator[AttentionWorker]:
    with closing(AttentionWorker(AttentionPass(tiny_bundles["fp32"], num_threads=1), max_waiting=4)) as worker:
        yield worker


@pytest.fixture
def model(tiny_bundles: dict[Precision, Bundle], worker: AttentionWorker) -> Model:
    return Model(tiny_bundles["fp32"], FakeEngine(), worker)


@pytest.fixture
def attender(model: Model) -> Iterator[Attender]:
    with closing(Attender(Registry.of(model), INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)) as attender:
        yield attender


async def taking(worker: AttentionWorker, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the worker know that a pass takes so long."""
    times = iter((0.0, 0.0, seconds))  # it is asked for, begins, ends
    with monkeypatch.context() as patched:
        # Of this module alone: others ask for the time, too, whenever they like.
        patched.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: next(times, seconds)))
        await worker.run(lambda _: None, math.inf)
    worker._last = time.monotonic()
    monkeypatch.setattr(worker_module, "_HALVING_SECONDS", 1e9)


async def test_the_engine_knows_how_long_attention_takes(
    attender: Attender, model: Model, worker: AttentionWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.uncached_engine
    assert isinstance(engine, FakeEngine)
    await taking(worker, 2.0, monkeypatch)
    await attender.align(AlignCall([PAIR, PAIR], config()), NOW)
    assert [round(seconds) for seconds in engine.seconds_after] == [4]
    assert {round(request.seconds_after) for request in engine.requests} == {4}
    await taking(worker, 2.0, monkeypatch)
    kinds = SelectionFields(kinds=("encoder", "cross"))
    assert [part async for part in attender.attention(AttentionCall(PAIR, config(), kinds), NOW)]
    assert engine.seconds_after[1] > 4.0  # two kinds of the target, and the header
    assert [part async for part in attender.attention(SOURCE_ONLY, NOW)]
    assert len(engine.seconds_after) == 2  # nothing is decoded


async def test_calls_with_attention_are_refused_before_their_texts_are_tokenized(
    attender: Attender, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.uncached_engine
    assert isinstance(engine, FakeEngine)
    engine.early_refusal = NotInTimeError("late", 1.0)
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(NotInTimeError):
        await attender.align(AlignCall([PAIR], config()), NOW)
    with pytest.raises(NotInTimeError):
        await anext(attender.attention(AttentionCall(PAIR, config()), NOW))


async def test_signals_are_counted_too(model: Model, worker: AttentionWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model.uncached_engine
    assert isinstance(engine, FakeEngine)
    await taking(worker, 2.0, monkeypatch)
    with closing(Translator(Registry.of(model), INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)) as translator:
        await translator.translate(replace(call("the old dog", "a cat"), include_signals=True), NOW)
        await translator.translate(call("the old dog"), NOW)
    assert [round(seconds) for seconds in engine.seconds_after] == [4, 0]


async def test_passes_that_cannot_be_done_in_time_are_not_begun(
    attender: Attender, worker: AttentionWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await taking(worker, 9.0, monkeypatch)
    too_long = r"the attention would take [89](\.\d)? s, and the deadline is in "
    with pytest.raises(NotInTimeError, match=too_long) as refusal:
        await anext(attender.attention(SOURCE_ONLY, soon()))
    assert 3.0 < refusal.value.retry_after_seconds < 4.1
    assert await anext(attender.attention(SOURCE_ONLY, NOW))


async def test_whoever_finds_too_much_waiting_is_told_how_long_it_takes(
    worker: AttentionWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def retry_after(num_pieces: int) -> float:
        with pytest.raises(QueueFullError) as refusal, worker.admitted(num_pieces):
            pass
        return refusal.value.retry_after_seconds

    with worker.admitted(3):
        assert retry_after(3) == 1.0  # nothing is known
        await taking(worker, 2.0, monkeypatch)
        assert 3.5 < retry_after(3) <= 4.0  # two of them are too many
        assert worker.seconds(1) == pytest.approx(4.0, abs=0.01)  # one of the other comes between
        assert worker.seconds(9) == pytest.approx(24.0, abs=0.01)  # all of the other do
    with worker.admitted(0), worker.admitted(0):
        assert worker.seconds(1) == pytest.approx(2.0)
    assert worker.seconds(2) == pytest.approx(4.0)


async def test_what_is_known_of_the_pace_of_attention_is_forgotten(
    worker: AttentionWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await taking(worker, 100.0, monkeypatch)
    monkeypatch.setattr(worker_module, "_HALVING_SECONDS", 2.0)
    worker._last -= 20.0
    assert worker.seconds(1) < 0.1
