"""What stands between handlers and the engine, and the threads that work on texts."""

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from dragoman_server.engine.sequence import Request
from dragoman_server.errors import InferenceError
from dragoman_server.service.submission import StreamBacklog, TextThreads, completed
from support.fake_runner import Gate
from support.server_parts import FakeEngine

LONG, SHORT = 20_000, 5_000  # characters


@pytest.mark.parametrize("error", [None, InferenceError("it failed")])
async def test_what_was_answered_is_freed_without_the_garbage_collector(error: InferenceError | None) -> None:
    engine = FakeEngine()
    engine.is_holding = True
    gc.disable()
    try:
        task = asyncio.create_task(completed(engine, [Request((4,), 9)] * 3))
        await asyncio.sleep(0)
        left = [weakref.ref(future) for future in engine.futures]
        if error is None:
            engine.release()
        else:
            engine.futures[0].set_exception(error)
        await asyncio.wait([task])
        assert (task.exception() is None) == (error is None)
        del task
        engine.futures.clear()
        assert len(left) == 3
        assert [future() for future in left][1:] == [None] * 2  # an error has the frames that it passed
    finally:
        gc.enable()


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_streams_that_have_filled_the_queue_go_on_with_an_equal_share() -> None:
    backlog, engine = StreamBacklog(12), FakeEngine()
    engine.is_holding = True
    with ExitStack() as inputs:

        def submit(stream: str, num_segments: int) -> None:
            assert backlog.may_grow(stream)
            inputs.enter_context(backlog.submitted(engine, [Request((4,), 9)] * num_segments, stream))

        submit("a", 5)
        submit("a", 5)
        submit("a", 20)  # one alone may have more
        assert not backlog.may_grow("a")
        submit("b", 4)  # of two streams each has a share of 6
        submit("b", 2)
        assert not backlog.may_grow("b")
        submit("c", 0)
        submit("c", 3)  # of three, 4
        submit("c", 1)
        assert not any(map(backlog.may_grow, "abc"))
        assert backlog.may_grow("d")
    assert all(map(backlog.may_grow, "abcd"))
    assert all(future.cancelled() for future in engine.futures)


async def test_a_stream_gets_the_share_of_those_that_are_done() -> None:
    backlog, engine = StreamBacklog(12), FakeEngine()
    engine.is_holding = True
    with backlog.submitted(engine, [Request((4,), 9)] * 10, "a"):
        with backlog.submitted(engine, [Request((4,), 9)] * 2, "b"):
            assert not backlog.may_grow("a")
        assert backlog.may_grow("a")


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_the_answers_of_all_requests_come_in_order() -> None:
    engine = FakeEngine()
    requests = [Request((4 + number,), 9) for number in range(20)]
    assert await completed(engine, requests) == [future.result() for future in engine.futures]
    assert engine.requests == requests
    assert await completed(engine, []) == []


async def test_the_event_loop_wakes_up_once_for_the_answers_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    engine.is_holding = True
    loop, num_wakes = asyncio.get_running_loop(), itertools.count()
    task = asyncio.create_task(completed(engine, [Request((4,), 9)] * 20))
    await asyncio.sleep(0)
    wake = loop.call_soon_threadsafe

    def count(*args: Any, **kwargs: Any) -> asyncio.Handle:
        next(num_wakes)
        return wake(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    await asyncio.to_thread(engine.release)
    assert len(await task) == 20
    # One is that of `to_thread`.
    assert next(num_wakes) == 2


async def test_the_first_failure_withdraws_the_other_requests_of_a_call() -> None:
    engine = FakeEngine()
    engine.is_holding = True
    task = asyncio.create_task(completed(engine, [Request((4,), 9)] * 3))
    await asyncio.sleep(0)
    engine.futures[1].set_exception(InferenceError("the graph has failed"))
    with pytest.raises(InferenceError, match="the graph has failed"):
        await task
    assert [future.cancelled() for future in engine.futures] == [True, False, True]


async def test_a_caller_that_leaves_withdraws_its_requests() -> None:
    engine = FakeEngine()
    engine.is_holding = True
    task = asyncio.create_task(completed(engine, [Request((4,), 9)] * 3))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(future.cancelled() for future in engine.futures)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[TextThreads]:
    threads = TextThreads()
    yield threads
    threads.close()


def numbered(name: str, count: int, done: list[str]) -> Iterator[str]:
    """Names that are noted when they are taken."""
    for number in range(count):
        done.append(f"{name}{number}")
        yield done[-1]


@pytest.mark.parametrize("num_characters", [1, 100, 300, SHORT, LONG])
async def test_all_results_are_taken_in_order(threads: TextThreads, num_characters: int) -> None:
    expected = [f"a{number}" for number in range(10)]
    assert await threads.run_all([num_characters] * 10, numbered("a", 10, [])) == expected
    assert await threads.run_all([], numbered("a", 0, [])) == []


async def test_long_calls_take_turns(threads: TextThreads) -> None:
    done: list[str] = []
    calls = [threads.run_all([LONG] * 3, numbered(name, 3, done)) for name in "ab"]
    assert await asyncio.gather(*calls) == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]
    assert done == ["a0", "b0", "a1", "b1", "a2", "b2"]


async def test_short_texts_of_a_long_call_are_not_done_one_by_one(threads: TextThreads) -> None:
    done: list[str] = []
    await asyncio.gather(*(threads.run_all([LONG, *[100] * 200], numbered(name, 201, done)) for name in "ab"))
    num_turns = sum(one[0] != other[0] for one, other in itertools.pairwise(done)) + 1
    assert num_turns == 2 * 3  # the long one, about 100 short ones, the others


async def test_short_work_does_not_wait_for_long_work(threads: TextThreads) -> None:
    gate = Gate()
    long = asyncio.create_task(threads.run(LONG, gate))
    assert await threads.run(SHORT, lambda: "done") == "done"
    assert not long.done()
    gate.open.set()
    await long


async def test_nothing_more_is_done_for_a_caller_who_has_left(threads: TextThreads) -> None:
    gate, done = Gate(), list[str]()

    def results() -> Iterator[str]:
        for name in numbered("a", 10, done):
            gate()
            yield name

    call = asyncio.create_task(threads.run_all([LONG] * 10, results()))
    waiting = asyncio.create_task(threads.run_all([LONG] * 10, numbered("b", 10, done)))
    await asyncio.to_thread(gate.reached.wait, 30)
    call.cancel()
    waiting.cancel()
    await asyncio.wait((call, waiting))
    gate.open.set()
    await threads.run(LONG, lambda: None)  # what was submitted before is done, or never will be
    assert done == ["a0"]


async def test_what_fails_fails_the_call(threads: TextThreads) -> None:
    def results() -> Iterator[str]:
        yield "a"
        raise ValueError("too many")

    for num_characters in (1, SHORT, LONG):
        with pytest.raises(ValueError, match="too many"):
            await threads.run_all([num_characters] * 3, results())


async def test_what_takes_no_time_is_done_at_once(threads: TextThreads) -> None:
    assert await threads.run(100, threading.current_thread) is threading.main_thread()
    assert await threads.run(SHORT, threading.current_thread) is not threading.main_thread()
