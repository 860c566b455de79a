"""A cache before an engine: who decodes, who waits, and who is answered at once."""

import gc
import math
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any

import pytest

from dragoman_server.engine.caching_engine import CachingEngine
from dragoman_server.engine.completion_cache import CompletionCache
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Completion, Outline, Priority, Request
from dragoman_server.errors import DeadlineError, EngineDeadError, InferenceError, QueueFullError
from support.server_parts import FakeEngine, echo

A, B = Request((4, 5, 6), 20), Request((4, 7, 8, 9), 20)
LATE = DeadlineError("the deadline passed")


class Lookups(list[tuple[int, int, int]]):
    """Hits, shared ones and misses of each call."""

    def __call__(self, *counts: int) -> None:
        self.append((counts[0], counts[1], counts[2]))


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.is_holding = True
    return engine


@pytest.fixture
def lookups() -> Lookups:
    return Lookups()


@pytest.fixture
def cache() -> CompletionCache:
    return CompletionCache(100_000)


@pytest.fixture
def cached(engine: FakeEngine, cache: CompletionCache, lookups: Lookups) -> CachingEngine:
    return CachingEngine(engine, cache.part(), lookups)


class Told(list[tuple[int, tuple[int, ...]]]):
    """Progress, by the place of the request in the call."""

    def __call__(self, index: int, ids: tuple[int, ...]) -> None:
        self.append((index, ids))


def test_what_was_answered_is_not_decoded_again(cached: CachingEngine, engine: FakeEngine, lookups: Lookups) -> None:
    first = cached.submit([A, B])
    assert not any(future.done() for future in first)
    engine.release()
    assert [future.result(0).hypotheses for future in first] == [echo(A).hypotheses, echo(B).hypotheses]
    later = replace(A, deadline=time.monotonic() + 5, priority=Priority.BULK)
    (answer,) = cached.submit([later])
    assert answer.result(0) == Completion(echo(A).hypotheses, 0.0, 0.0, 0.0)
    assert engine.requests == [A, B]
    assert lookups == [(0, 0, 2), (1, 0, 0)]


def test_what_was_answered_is_freed_without_the_garbage_collector(cached: CachingEngine, engine: FakeEngine) -> None:
    gc.disable()
    try:
        futures = [*cached.submit([A, B]), *cached.submit([A])]
        engine.release()
        futures += cached.submit([B])
        left = [weakref.ref(future) for future in [*futures, *engine.futures]]
        assert len(left) == 6
        del futures
        engine.futures.clear()
        assert [future() for future in left] == [None] * 6
    finally:
        gc.enable()


def test_what_is_being_decoded_is_waited_for(cached: CachingEngine, engine: FakeEngine, lookups: Lookups) -> None:
    futures = [*cached.submit([A, B, A]), *cached.submit([B])]
    assert engine.requests == [A, B]
    engine.release(1)
    assert [future.done() for future in futures] == [False, True, False, True]
    engine.release(0)
    assert [future.result(0).hypotheses[0].token_ids for future in futures] == [(5, 6), (7, 8, 9), (5, 6), (7, 8, 9)]
    assert lookups == [(0, 1, 2), (0, 1, 0)]


def test_times_are_those_that_a_caller_has_waited(cached: CachingEngine, engine: FakeEngine) -> None:
    started = time.monotonic()
    (first,) = cached.submit([A])
    time.sleep(0.02)
    middle = time.monotonic()
    (second,) = cached.submit([A])
    engine.release()
    end = time.monotonic()
    for future, begun in ((first, started), (second, middle)):
        answer = future.result(0)
        assert 0 < answer.decode_seconds <= end - begun  # the engine has said 0.5 s
        assert answer.queue_seconds == answer.encode_seconds == 0.0


def test_who_is_first_may_leave(cached: CachingEngine, engine: FakeEngine) -> None:
    (first,), (second,), (third,) = (cached.submit([A]) for _ in range(3))
    assert first.cancel()
    assert third.cancel()
    assert not engine.futures[0].cancelled()
    engine.release()
    assert second.result(0).hypotheses == echo(A).hypotheses
    assert len(engine.requests) == 1


def test_when_the_last_has_left_it_is_withdrawn(cached: CachingEngine, engine: FakeEngine) -> None:
    futures = [*cached.submit([A, A]), *cached.submit([A])]
    for future in futures:
        assert not engine.futures[0].cancelled()
        future.cancel()
    assert engine.futures[0].cancelled()
    (again,) = cached.submit([A])
    assert engine.requests == [A, A]
    engine.release(1)
    assert again.result(0).hypotheses == echo(A).hypotheses


def test_whoever_has_more_time_than_the_first_gets_an_answer(cached: CachingEngine, engine: FakeEngine) -> None:
    hurried, patient, endless = (replace(A, deadline=deadline) for deadline in (1.0, 2.0, math.inf))
    (first,) = cached.submit([hurried], "a", identity="A")
    (short,) = cached.submit([hurried], "b")
    (second,) = cached.submit([patient], "c")
    (third,) = cached.submit([replace(endless, priority=Priority.BULK)], "d", identity="D")
    (gone,) = cached.submit([patient], "e")
    gone.cancel()
    engine.futures[0].set_exception(LATE)
    assert first.exception(0) is short.exception(0) is LATE
    assert not second.done()
    assert engine.requests[1] == endless  # for the one with most time, in the turn of the most urgent
    assert engine.callers == ["a", "d"]
    assert engine.identities == ["A", "D"]
    third.cancel()
    engine.release(1)
    assert second.result(0).hypotheses == echo(A).hypotheses
    assert cached.submit([A])[0].done()


def test_who_was_let_in_is_not_refused_when_the_first_is_late(cached: CachingEngine, engine: FakeEngine) -> None:
    cached.submit([replace(A, deadline=1.0)])
    (second,) = cached.submit([A])
    engine.is_full = True
    engine.futures[0].set_exception(LATE)
    engine.release(1)
    assert second.result(0).hypotheses == echo(A).hypotheses


def test_who_waits_for_one_who_is_late_is_told_of_the_end_of_the_engine(
    cached: CachingEngine, engine: FakeEngine
) -> None:
    cached.submit([replace(A, deadline=1.0)])
    (second,) = cached.submit([A])
    engine.refusal = EngineDeadError("the engine was stopped")
    engine.futures[0].set_exception(LATE)
    assert second.exception(0) is engine.refusal


def test_who_is_more_urgent_does_not_wait_behind_others(cached: CachingEngine, engine: FakeEngine) -> None:
    bulk, urgent = (replace(A, priority=priority) for priority in (Priority.BULK, Priority.INTERACTIVE))
    futures = [cached.submit([request])[0] for request in (bulk, bulk, urgent, A, bulk)]
    assert engine.requests == [bulk, urgent]
    engine.release(1)
    assert [future.done() for future in futures] == [False, False, True, True, True]
    engine.release(0)
    assert all(future.done() for future in futures)


def test_a_stream_is_told_what_another_stream_is(cached: CachingEngine, engine: FakeEngine) -> None:
    first, second, third = Told(), Told(), Told()
    cached.submit([B, A], on_progress=first)
    engine.progress[1]((5,))
    cached.submit([A], on_progress=second)
    (unwatched,) = cached.submit([A])
    engine.progress[1]((5, 6))
    engine.progress[0]((7,))
    assert first == [(1, (5,)), (1, (5, 6)), (0, (7,))]
    assert second == [(0, (5,)), (0, (5, 6))]
    engine.release()
    cached.submit([A], on_progress=third)  # comes as a whole
    assert third == []
    assert unwatched.done()
    assert engine.requests == [B, A]


def test_a_stream_does_not_wait_where_it_would_be_told_nothing(cached: CachingEngine, engine: FakeEngine) -> None:
    told = Told()
    cached.submit([A])
    cached.submit([A], on_progress=told)
    engine.progress[1]((5,))
    assert told == [(0, (5,))]
    assert engine.requests == [A, A]


def test_a_stream_is_told_no_beginning_twice(cached: CachingEngine, engine: FakeEngine) -> None:
    told = Told()
    cached.submit([replace(A, deadline=1.0)], on_progress=Told())
    cached.submit([replace(A, deadline=2.0)], on_progress=told)  # has more time: it would have to begin anew
    assert len(engine.requests) == 2
    engine.futures[0].set_exception(LATE)
    engine.progress[1]((5,))
    assert told == [(0, (5,))]


@pytest.mark.parametrize("begun", [[], [A]])
def test_a_call_without_room_is_refused_as_a_whole(
    cached: CachingEngine, engine: FakeEngine, begun: Sequence[Request]
) -> None:
    waiting = cached.submit(begun)
    engine.is_full = True
    with pytest.raises(QueueFullError):
        cached.submit([A, B])
    engine.is_full = False
    if not begun:
        cached.submit([A])
    assert engine.requests == [A]
    for future in waiting:
        future.cancel()
    assert all(future.cancelled() for future in engine.futures) is bool(begun)  # the refused one does not wait


class BusyEngine(FakeEngine):
    """Does something else while it is called, on the same thread."""

    def __init__(self) -> None:
        super().__init__()
        self.is_holding = True
        self.meanwhile: Callable[[], object] = lambda: None

    def submit(self, *arguments: Any, **keywords: Any) -> list[Future[Completion]]:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return super().submit(*arguments, **keywords)


@pytest.mark.timeout(20)
def test_an_engine_may_answer_others_while_it_is_called(cache: CompletionCache) -> None:
    engine = BusyEngine()
    cached = CachingEngine(engine, cache.part())
    (hurried,), (patient,) = cached.submit([replace(A, deadline=1.0)]), cached.submit([A])
    engine.meanwhile = lambda: engine.futures[0].set_exception(LATE)
    (other,), (same,) = cached.submit([B]), cached.submit([A])
    assert hurried.exception(0) is LATE
    assert engine.requests == [replace(A, deadline=1.0), A, B]
    engine.release()
    assert all(future.result(0) for future in (patient, other, same))


def test_who_has_joined_a_call_that_is_refused_is_not(cache: CompletionCache) -> None:
    engine, joined, told = BusyEngine(), list[Future[Completion]](), Told()
    cached = CachingEngine(engine, cache.part())

    def join() -> None:
        joined.extend(cached.submit([B], on_progress=told))
        engine.is_full = True

    engine.meanwhile = join
    with pytest.raises(QueueFullError):
        cached.submit([A, B], on_progress=Told())
    assert engine.requests == [B]  # once more, for the one who has joined
    engine.progress[0]((7,))
    assert told == [(0, (7,))]
    engine.release()
    assert joined[0].result(0).hypotheses == echo(B).hypotheses


def test_who_leaves_while_the_engine_is_called_leaves_nothing_behind(cache: CompletionCache) -> None:
    engine, seen = BusyEngine(), list[Future[Completion]]()
    cached = CachingEngine(engine, cache.part())
    engine.meanwhile = lambda: seen.extend(cached.submit([A]))
    (first,) = cached.submit([A])
    (joined,) = seen
    for future in (first, joined):
        future.cancel()
    assert [future.cancelled() for future in engine.futures] == [True]


def test_what_needs_no_decoding_needs_no_room(cached: CachingEngine, engine: FakeEngine) -> None:
    cached.submit([A])
    engine.release()
    cached.submit([B])
    engine.is_full = True
    first, second = cached.submit([A, B])
    assert first.done()
    engine.release()
    assert second.done()


def test_a_failure_is_told_to_all_and_not_kept(cached: CachingEngine, engine: FakeEngine) -> None:
    futures = cached.submit([A, A])
    error = InferenceError("the batch failed")
    engine.futures[0].set_exception(error)
    assert [future.exception(0) for future in futures] == [error, error]
    (again,) = cached.submit([A])
    engine.release(1)
    assert again.result(0).hypotheses == echo(A).hypotheses


def test_samples_without_a_seed_are_each_drawn(cached: CachingEngine, engine: FakeEngine, lookups: Lookups) -> None:
    sample = replace(A, options=SearchOptions(is_sampling=True))
    futures = cached.submit([sample, sample])
    assert engine.requests == [sample, sample]
    futures[0].cancel()
    assert [future.cancelled() for future in engine.futures] == [True, False]
    engine.release()
    assert futures[1].result(0).hypotheses == echo(A).hypotheses
    assert not cached.submit([sample])[0].done()
    assert lookups == [(0, 0, 0)] * 2


def test_what_the_engine_withdraws_is_cancelled_for_all(cached: CachingEngine, engine: FakeEngine) -> None:
    futures = cached.submit([A, A])
    engine.futures[0].cancel()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_with_the_engine_its_answers_go(cached: CachingEngine, engine: FakeEngine, cache: CompletionCache) -> None:
    other = CachingEngine(FakeEngine(), cache.part())
    other.submit([A])
    (answered,) = cached.submit([A])
    engine.release()
    assert answered.done()
    (waiting,) = cached.submit([B])
    assert cache.num_bytes
    cached.stop()
    assert isinstance(waiting.exception(0), EngineDeadError)
    with pytest.raises(EngineDeadError):
        cached.submit([A])
    other.stop()
    assert cache.num_bytes == 0


def test_the_rest_is_the_engine(cached: CachingEngine, engine: FakeEngine) -> None:
    engine.stalled_seconds = 3.0
    assert cached.stalled_seconds == 3.0
    cached.give_back_memory()
    assert engine.num_given_back == 1


def test_nobody_is_refused_before_it_is_known_what_is_asked_for_while_the_cache_helps(
    cached: CachingEngine, engine: FakeEngine
) -> None:
    engine.seconds_of_one = 2.0
    engine.early_refusal = full = QueueFullError("the queue is full", retry_after_seconds=1.0)

    def is_refused() -> bool:
        try:
            cached.check(Outline(3, seconds_after=0.5))
        except QueueFullError as error:
            return error is full
        return False

    assert is_refused()  # nothing is in the cache
    assert cached.seconds(Outline(3)) == 6.0
    assert engine.seconds_after == [0.5]
    cached.submit([A] * 30)
    assert not is_refused()
    assert cached.seconds(Outline(3)) == 0.0
    cached.submit([replace(A, source_ids=(number, 3)) for number in range(400)])
    assert is_refused()
