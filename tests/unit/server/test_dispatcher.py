"""Several engines as one: which gets what, and that a call is queued as a whole or not at all."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from dragoman_server.engine.dispatcher import Dispatcher
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Outline, Request
from dragoman_server.errors import EngineDeadError, NotInTimeError, QueueFullError
from support.fake_runner import FakeRunner, Gate, expected, running_engine
from support.server_parts import FakeEngine, echo


def requests(*nums_rows: int) -> list[Request]:
    """One for each number of rows."""
    options = [SearchOptions(beam_size=num_rows) for num_rows in nums_rows]
    return [Request((4 + i, 5, 6), 20, options=each) for i, each in enumerate(options)]


def holding(*nums_rows: int) -> list[FakeEngine]:
    """Engines that have so many rows pending, and answer when they are told to."""
    engines = [FakeEngine() for _ in nums_rows]
    for engine, num_rows in zip(engines, nums_rows, strict=True):
        engine.is_holding = True
        engine.num_pending_rows = num_rows
    return engines


@pytest.mark.parametrize(
    ("pending", "call", "dealt"),
    [
        ((0, 0), (1, 1, 1, 1), ([0, 2], [1, 3])),
        ((0, 0), (4, 1, 1, 1, 1, 1), ([0, 5], [1, 2, 3, 4])),
        ((3, 0), (1, 1, 1, 1, 1), ([3], [0, 1, 2, 4])),
        ((9, 0, 9), (1, 2, 3), ([], [0, 1, 2], [])),
    ],
)
def test_a_request_goes_where_the_fewest_rows_are_pending(
    pending: Sequence[int], call: Sequence[int], dealt: Sequence[list[int]]
) -> None:
    engines, given = holding(*pending), requests(*call)
    futures = Dispatcher(engines).submit(given)
    assert [[given.index(request) for request in engine.requests] for engine in engines] == [*dealt]
    for engine in reversed(engines):
        engine.release()
    assert [future.result() for future in futures] == [echo(request) for request in given]


def test_all_that_a_call_says_reaches_every_engine() -> None:
    engines = holding(0, 0)
    for engine in engines:
        engine.is_full = True
    Dispatcher(engines).submit(requests(1, 1), "caller", is_unlimited=True)
    assert [engine.callers for engine in engines] == [["caller"], ["caller"]]


def test_progress_is_told_by_the_place_in_the_call() -> None:
    engines, told = holding(0, 0), list[Any]()
    Dispatcher(engines).submit(requests(1, 1, 1, 1), on_progress=lambda index, ids: told.append((index, ids)))
    for engine in engines:
        for place, tell in enumerate(engine.progress):
            tell((place,))
    assert told == [(0, (0,)), (2, (1,)), (1, (0,)), (3, (1,))]


@pytest.mark.parametrize("error", [QueueFullError("full", 1.0), NotInTimeError("late", 1.0)])
def test_what_an_engine_has_no_room_for_goes_to_another(error: Exception) -> None:
    engines = holding(0, 0)
    engines[1].refusal = error
    futures = Dispatcher(engines).submit(requests(1, 1, 1), identity="a")
    assert futures == engines[0].futures[2:]
    assert [future.cancelled() for future in engines[0].futures] == [True, True, False, False, False]
    assert engines[0].identities == ["a"] * 5


def test_where_no_engine_has_room_the_call_is_refused_as_by_the_first() -> None:
    engines = holding(0, 0)
    engines[0].refusal, engines[1].refusal = QueueFullError("full", 1.0), QueueFullError("full, too", 1.0)
    with pytest.raises(QueueFullError) as caught:
        Dispatcher(engines).submit(requests(1, 1, 1))
    assert caught.value is engines[0].refusal


def test_a_call_is_refused_early_where_all_engines_refuse_it_as_by_the_one_that_has_room_first() -> None:
    engines = holding(0, 0)
    dispatcher = Dispatcher(engines)
    engines[0].early_refusal = QueueFullError("full", 2.0)
    dispatcher.check(Outline(3))
    engines[1].early_refusal = NotInTimeError("late", 1.0)
    with pytest.raises(NotInTimeError) as caught:
        dispatcher.check(Outline(3))
    assert caught.value is engines[1].early_refusal


@pytest.mark.parametrize("error", [EngineDeadError("dead"), ValueError("rows")])
def test_where_an_engine_refuses_the_others_forget_the_call(error: Exception) -> None:
    engines = holding(0, 0)
    engines[1].refusal = error
    with pytest.raises(type(error)) as caught:
        Dispatcher(engines).submit(requests(1, 1, 1))
    assert caught.value is error
    assert len(engines[0].futures) == 2
    assert all(future.cancelled() for future in engines[0].futures)


def test_the_worst_engine_counts() -> None:
    engines = holding(0, 0)
    engines[1].stalled_seconds = 3.0
    dispatcher = Dispatcher(engines)
    assert dispatcher.stalled_seconds == 3
    dispatcher.give_back_memory()
    assert [engine.num_given_back for engine in engines] == [1, 1]
    futures = dispatcher.submit(requests(1, 1))
    dispatcher.stop()
    for future in futures:
        with pytest.raises(EngineDeadError):
            future.result()


# -- engines on devices of their own -----------------------------------------------------------------------------------


@contextmanager
def dispatching(*runners: FakeRunner, **options: int) -> Iterator[tuple[Dispatcher, list[Engine]]]:
    """An engine for each runner, on a device of its own."""
    with ExitStack() as stack:
        engines = [stack.enter_context(running_engine(runner, **options)) for runner in runners]
        yield Dispatcher(engines), engines


def test_two_devices_answer_one_call() -> None:
    runners, given = [FakeRunner(), FakeRunner()], requests(*[1] * 20)
    with dispatching(*runners) as (dispatcher, engines):
        futures = dispatcher.submit(given)
        for request, future in zip(given, futures, strict=True):
            assert future.result(timeout=30).hypotheses == (expected(request),)
        assert [engine.num_pending_rows for engine in engines] == [0, 0]
    assert all(runner.batch_sizes for runner in runners)


def test_the_device_that_is_busy_gets_less() -> None:
    gate = Gate()
    with dispatching(FakeRunner(on_encode=gate), FakeRunner()) as (dispatcher, engines):
        (held,) = engines[0].submit(requests(4))
        assert [engine.num_pending_rows for engine in engines] == [4, 0]
        for future in dispatcher.submit(requests(1, 1, 1)):  # the other answers, though the first does nothing
            future.result(timeout=30)
        gate.open.set()
        held.result(timeout=30)
        assert [engine.num_pending_rows for engine in engines] == [0, 0]


def test_a_call_that_one_queue_has_no_room_for_leaves_nothing_in_the_other() -> None:
    gates, encoded = [Gate(), Gate()], list[Sequence[int]]()
    runners = [FakeRunner(on_encode=encoded.extend, on_decode=gates[0]), FakeRunner(on_decode=gates[1])]
    with dispatching(*runners, max_running=4, max_waiting=4) as (dispatcher, engines):
        before = [future for engine in engines for future in engine.submit(requests(4))]
        for gate in gates:
            assert gate.reached.wait(timeout=30)
        before += [*engines[0].submit(requests(2, 1, 1)), *engines[1].submit(requests(1, 1, 1, 1))]
        assert [engine.num_pending_rows for engine in engines] == [8, 8]
        refused = [Request((90,), 20), Request((91,), 20)]
        with pytest.raises(QueueFullError, match="4 segments are waiting"):
            dispatcher.submit(refused)
        for gate in gates:
            gate.open.set()
        for future in before:
            future.result(timeout=30)
        for future in dispatcher.submit(requests(1, 1)):  # what was cancelled leaves at the next steps
            future.result(timeout=30)
        assert [engine.num_pending_rows for engine in engines] == [0, 0]
    assert (90,) not in map(tuple, encoded)
