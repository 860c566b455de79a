import gc
import math
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import pytest

from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine, StepReport
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.engine.search import StepOutput
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Completion, FinishReason, Outline, Priority, Request
from dragoman_server.engine.slots import Move
from dragoman_server.errors import (
    DeadlineError,
    DeviceLostError,
    EngineDeadError,
    InferenceError,
    NotInTimeError,
    QueueFullError,
)
from dragoman_server.runtime.device import Device
from support.fake_runner import SEARCH, FakeRunner, Gate, decode_alone, engine_on, expected, running_engine, wild

REQUESTS = [Request(tuple(range(10, 10 + n)), max_target_tokens=20) for n in (3, 1, 7, 2, 5)]


def hypotheses(futures: list["Future[Completion]"]) -> list[object]:
    return [future.result(timeout=30).hypotheses for future in futures]


@pytest.mark.parametrize("max_running", [1, 2, 64])
def test_every_request_gets_its_own_translation(max_running: int) -> None:
    with running_engine(FakeRunner(), max_running=max_running) as engine:
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
        assert engine.num_pending == 0


@pytest.mark.parametrize("is_watched", [False, True])
def test_the_longest_begin_where_nobody_watches(is_watched: bool) -> None:
    encoded: list[int] = []
    runner = FakeRunner(on_encode=lambda sources: encoded.extend(map(len, sources)))
    on_progress = (lambda *_: None) if is_watched else None
    with running_engine(runner, max_running=1) as engine:
        for future in engine.submit(REQUESTS, on_progress=on_progress):
            future.result(timeout=30)
    lengths = [len(request.source_ids) for request in REQUESTS]
    assert encoded == (lengths if is_watched else sorted(lengths, reverse=True))


def test_greedy_beam_and_sampled_requests_share_a_batch() -> None:
    options = [
        SearchOptions(),
        SearchOptions(beam_size=4, num_hypotheses=4),
        SearchOptions(is_sampling=True, num_hypotheses=3, seed=1, top_k=0),
        SearchOptions(beam_size=3, repetition_penalty=1.3, no_repeat_ngram_size=2),
    ]
    requests = [Request((7, 8, 9), 12, options=SearchOptions(min_target_tokens=3))]
    requests += [Request((4 + i, 5), 12, options=each) for i, each in enumerate(options)]
    runner = FakeRunner(distribution=wild)
    with running_engine(runner) as engine:
        assert hypotheses(engine.submit(requests)) == [decode_alone(request, wild) for request in requests]
    assert runner.batch_sizes[:2] == [5, 1 + 1 + 4 + 3 + 3]


def test_a_request_that_needs_more_rows_than_there_are_is_refused() -> None:
    with running_engine(FakeRunner(), max_running=4) as engine:
        with pytest.raises(ValueError, match="needs 5 rows, max_running is 4"):
            engine.submit([REQUESTS[0], Request((4,), 9, options=SearchOptions(beam_size=5))])
        assert engine.num_pending == 0


def test_the_kv_budget_bounds_what_runs_together() -> None:
    runner = FakeRunner()  # of a byte for each token
    with running_engine(runner, max_kv_bytes=2 * (5 + 20)) as engine:
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
    assert max(runner.batch_sizes) == 2


def test_engines_share_the_kv_budget() -> None:
    gate = Gate()
    first, second = FakeRunner(on_decode=gate), FakeRunner()  # of a byte for each token
    budget = KvBudget(3 * (5 + 20))
    with (
        Device(1) as device,
        Device(1) as other_device,
        engine_on(device, [first], SEARCH, budget) as busy,
        engine_on(other_device, [second], SEARCH, budget) as other,
    ):
        running = busy.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        assert hypotheses(other.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
        assert max(second.batch_sizes) == 2
        gate.open.set()
        hypotheses(running)
        assert hypotheses(other.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
        assert max(second.batch_sizes) == 3
    assert budget.left_to(None) == budget.max_bytes


def test_memory_is_given_back_only_while_there_is_no_work() -> None:
    gate = Gate()
    runner = FakeRunner(on_decode=gate)
    with running_engine(runner) as engine:
        answers = engine.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        engine.give_back_memory()
        assert runner.num_given_back == 0
        gate.open.set()
        assert hypotheses(answers) == [(expected(REQUESTS[0]),)]
        engine.give_back_memory()
        assert runner.num_given_back == 1
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]


def test_a_call_with_one_text_does_not_wait_for_a_call_with_many() -> None:
    gate = Gate()
    encoded: list[object] = []
    runner = FakeRunner(on_encode=encoded.extend, on_decode=gate)
    with running_engine(runner, max_running=1) as engine:
        many = engine.submit([Request((10 + i,), 20) for i in range(50)])
        assert gate.reached.wait(timeout=30)
        single = engine.submit([Request((99,), 20)])
        gate.open.set()
        hypotheses(single + many)
    assert encoded[:4] == [(10,), (11,), (99,), (12,)]


def test_the_beginning_of_the_translation_is_told_as_soon_as_it_is_certain() -> None:
    told: list[tuple[int, tuple[int, ...]]] = []
    with running_engine(FakeRunner()) as engine:
        requests = [Request((10, 11), 20), Request((12,), 20)]
        hypotheses(engine.submit(requests, on_progress=lambda index, ids: told.append((index, ids))))
    # The end, which comes last, is not told.
    assert told == [(0, (11,)), (1, (12,)), (0, (11, 10))]


def test_rows_join_and_leave_between_steps() -> None:
    runner = FakeRunner()
    with running_engine(runner, max_running=2) as engine:
        hypotheses(engine.submit(REQUESTS))
    # 8, 6, 4, 3 and 2 tokens by two rows, neither of which is ever idle while somebody waits.
    assert runner.batch_sizes == [2] * 11 + [1]


def test_a_translation_at_its_limit_says_so() -> None:
    with running_engine(FakeRunner()) as engine:
        [future] = engine.submit([Request((10, 11, 12), max_target_tokens=2)])
        [hypothesis] = future.result(timeout=30).hypotheses
    assert hypothesis.token_ids == (12, 11)
    assert hypothesis.finish_reason is FinishReason.LENGTH
    assert hypothesis.sum_logprob == sum(hypothesis.token_logprobs)
    assert hypothesis.score == hypothesis.sum_logprob / 2


def test_a_cancelled_request_leaves_its_row_at_the_next_step_and_disturbs_nobody() -> None:
    gate = Gate()
    runner = FakeRunner(on_decode=gate)
    with running_engine(runner) as engine:
        futures = engine.submit(REQUESTS)
        assert gate.reached.wait(timeout=30)
        assert futures[2].cancel()
        gate.open.set()
        others = [0, 1, 3, 4]
        assert hypotheses([futures[i] for i in others]) == [(expected(REQUESTS[i]),) for i in others]
        with pytest.raises(CancelledError):
            futures[2].result(timeout=30)
    assert runner.batch_sizes[:2] == [5, 4]
    assert engine.num_pending == 0


def test_a_request_cancelled_while_it_waits_is_never_encoded() -> None:
    gate = Gate()
    encoded: list[object] = []
    runner = FakeRunner(on_encode=encoded.extend, on_decode=gate)
    with running_engine(runner, max_running=1) as engine:
        first, second, third = engine.submit(REQUESTS[:3])
        assert gate.reached.wait(timeout=30)
        second.cancel()
        gate.open.set()
        hypotheses([first, third])
    assert encoded == [REQUESTS[2].source_ids, REQUESTS[0].source_ids]


def test_a_deadline_ends_what_runs_and_what_waits() -> None:
    gate = Gate()
    with running_engine(FakeRunner(on_decode=gate), max_running=2) as engine:
        deadline = time.monotonic() + 0.05
        late = [Request(r.source_ids, r.max_target_tokens, deadline) for r in REQUESTS[:1] + REQUESTS[3:]]
        futures = engine.submit([late[0], REQUESTS[1], *late[1:]])
        assert gate.reached.wait(timeout=30)
        threading.Event().wait(deadline - time.monotonic())  # until the deadline, however early we are
        gate.open.set()
        assert futures[1].result(timeout=30).hypotheses == (expected(REQUESTS[1]),)
        for future in (futures[0], *futures[2:]):
            with pytest.raises(DeadlineError):
                future.result(timeout=30)


@pytest.mark.parametrize("failing_step", [1, 2, 4])
@pytest.mark.parametrize(("num_failures", "num_failed"), [(1, 0), (2, 1), (4, 2)])
def test_a_failed_step_is_run_again_then_with_half_of_its_requests(
    failing_step: int, num_failures: int, num_failed: int
) -> None:
    steps = 0

    def fail(_: int) -> None:
        nonlocal steps
        steps += 1
        if failing_step <= steps < failing_step + num_failures:
            raise RuntimeError("out of memory")

    gate = Gate()
    with running_engine(FakeRunner(on_encode=gate, on_decode=fail)) as engine:
        futures = engine.submit([REQUESTS[2], REQUESTS[4]])
        gate.open.set()
        errors = [future.exception(timeout=30) for future in futures]
        assert [type(error) for error in errors if error] == [InferenceError] * num_failed
        for future, request in zip(futures, (REQUESTS[2], REQUESTS[4]), strict=True):
            if not future.exception():
                assert hypotheses([future]) == [(expected(request),)]
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]


def test_a_step_that_is_too_large_fails_no_more_than_half_of_its_requests() -> None:
    def refuse(num_rows: int) -> None:
        if num_rows > 6:
            raise MemoryError

    gate, requests = Gate(), [replace(REQUESTS[index % 5], priority=Priority.DEFAULT) for index in range(10)]
    with running_engine(FakeRunner(on_encode=gate, on_decode=refuse)) as engine:
        futures = engine.submit(requests)
        gate.open.set()
        errors = [future.exception(timeout=30) for future in futures]
        answered = [(f, r) for f, r, error in zip(futures, requests, errors, strict=True) if error is None]
        assert len(answered) >= 5
        assert hypotheses([future for future, _ in answered]) == [(expected(request),) for _, request in answered]


def test_a_batch_that_cannot_be_encoded_is_encoded_one_by_one() -> None:
    def refuse(sources: Sequence[Sequence[int]]) -> None:
        if len(sources) > 1 or REQUESTS[2].source_ids in sources:
            raise MemoryError

    with running_engine(FakeRunner(on_encode=refuse)) as engine:
        futures = engine.submit(REQUESTS)
        with pytest.raises(InferenceError):
            futures[2].result(timeout=30)
        others = [0, 1, 3, 4]
        assert hypotheses([futures[i] for i in others]) == [(expected(REQUESTS[i]),) for i in others]


def test_a_failed_encoding_answers_its_batch_and_nobody_else() -> None:
    def refuse_long(sources: object) -> None:
        if sources == [REQUESTS[2].source_ids]:
            raise RuntimeError("out of memory")

    # A budget of one source per step: each is a batch of its own.
    with running_engine(FakeRunner(on_encode=refuse_long), max_encoder_tokens=1) as engine:
        futures = engine.submit(REQUESTS)
        with pytest.raises(InferenceError):
            futures[2].result(timeout=30)
        others = [0, 1, 3, 4]
        assert hypotheses([futures[i] for i in others]) == [(expected(REQUESTS[i]),) for i in others]


def test_a_request_for_which_the_model_gives_no_numbers_fails_and_nobody_else() -> None:
    class Broken(FakeRunner):
        def decode_step(self, *arguments: Any) -> StepOutput:
            output = super().decode_step(*arguments)
            for row in range(len(output.top_ids)):
                if self.pool[row].source == REQUESTS[2].source_ids and len(self.pool[row].fed) > 3:
                    output.top_logprobs[row] = math.nan
            return output

    with running_engine(Broken()) as engine:
        futures = engine.submit(REQUESTS)
        with pytest.raises(InferenceError):
            futures[2].result(timeout=30)
        others = [0, 1, 3, 4]
        assert hypotheses([futures[i] for i in others]) == [(expected(REQUESTS[i]),) for i in others]
        assert hypotheses(engine.submit(REQUESTS[:2])) == [(expected(request),) for request in REQUESTS[:2]]


def test_a_full_queue_refuses_a_call_as_a_whole() -> None:
    gate = Gate()
    with running_engine(FakeRunner(on_decode=gate), max_running=1, max_waiting=3) as engine:
        running = engine.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        waiting = engine.submit(REQUESTS[:2])
        with pytest.raises(QueueFullError, match="limit of 3") as refusal:
            engine.submit(REQUESTS[:2])
        assert refusal.value.retry_after_seconds > 0
        assert engine.num_pending == 3
        waiting += engine.submit(REQUESTS[:1])  # one still fits
        gate.open.set()
        assert len(hypotheses(running + waiting)) == 4


def test_who_limits_itself_is_neither_refused_nor_takes_room_from_others() -> None:
    gate = Gate()
    with running_engine(FakeRunner(on_decode=gate), max_running=1, max_waiting=3) as engine:
        running = engine.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        waiting = engine.submit(REQUESTS, is_unlimited=True)
        waiting += engine.submit(REQUESTS[:3])
        with pytest.raises(QueueFullError, match="3 segments are waiting and 1 more"):
            engine.submit(REQUESTS[:1])
        waiting += engine.submit(REQUESTS, is_unlimited=True)
        gate.open.set()
        assert len(hypotheses(running + waiting)) == 14
        assert len(hypotheses(engine.submit(REQUESTS[:3]))) == 3  # all have given their room back


def test_rows_and_tokens_of_the_queue_are_limited_too() -> None:
    gate = Gate()
    limits = {"max_running": 4, "max_waiting_rows": 5, "max_waiting_tokens": 9}
    beam = Request((4, 5), 9, options=SearchOptions(beam_size=4))
    with running_engine(FakeRunner(on_decode=gate, distribution=wild), **limits) as engine:
        futures = engine.submit([beam])
        assert gate.reached.wait(timeout=30)
        futures += engine.submit([beam])
        with pytest.raises(QueueFullError, match="4 rows are waiting and 4 more"):
            engine.submit([beam])
        with pytest.raises(QueueFullError, match="2 source tokens are waiting and 10 more"):
            engine.submit([Request((4,) * 10, 9)])
        gate.open.set()
        assert len(hypotheses(futures)) == 2


def slow_engine(**options: int) -> AbstractContextManager[Engine]:
    """One row, and steps of 5 ms: a request of 20 tokens takes 0.1 s."""
    return running_engine(FakeRunner(on_decode=lambda _: time.sleep(0.005)), max_running=1, **options)


LONG = Request(tuple(range(10, 29)), 20)


def test_who_cannot_be_answered_in_time_is_refused_at_once() -> None:
    with slow_engine() as engine:
        waiting = engine.submit([LONG] * 100, "a", identity="a")  # 10 s
        hypotheses(waiting[:5])
        soon = time.monotonic() + 2.0
        for refuse in (
            lambda: engine.submit([replace(LONG, deadline=soon)] * 50, identity="a"),
            lambda: engine.check(Outline(50, identity="a", deadline=soon)),
        ):
            with pytest.raises(NotInTimeError, match="the deadline is in") as refusal:
                refuse()
            assert refusal.value.retry_after_seconds > 1.0
        engine.check(Outline(50, identity="a"))  # whoever has time waits
        engine.check(Outline(50, identity="a", deadline=time.monotonic() + 100.0))
        engine.check(Outline(1, identity="b", deadline=soon))  # others have turns of their own
        (single,) = engine.submit([replace(LONG, deadline=time.monotonic() + 2.0)], identity="b")
        hypotheses([single])
        unlimited = engine.submit([replace(LONG, deadline=soon)] * 50, is_unlimited=True)
        for future in (*waiting, *unlimited):
            future.cancel()


def test_what_was_answered_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        with running_engine(FakeRunner()) as engine:
            answers = engine.submit(REQUESTS, on_progress=lambda *_: None)
            hypotheses(answers)
            left = [weakref.ref(answer) for answer in answers]
            del answers
            give_up = time.monotonic() + 10  # a lane still holds them when it has told
            while any(answer() for answer in left) and time.monotonic() < give_up:
                time.sleep(0.01)
            assert [answer() for answer in left] == [None] * len(REQUESTS)
    finally:
        gc.enable()


def test_what_is_made_ready_counts_for_its_caller() -> None:
    with slow_engine(max_waiting=30_000) as engine, ExitStack() as coming:
        hypotheses(engine.submit([LONG] * 5, identity="a"))
        call = Outline(5, identity="a", deadline=time.monotonic() + 100.0)
        engine.check(call)
        with engine.expecting(Outline(9_000, identity="a")):  # 900 s, and calls of a caller take turns
            engine.check(call)
        for _ in range(300):
            coming.enter_context(engine.expecting(Outline(30, identity="a")))
        with pytest.raises(NotInTimeError):
            engine.check(call)
        with pytest.raises(QueueFullError, match=r"^9000 segments are waiting or to come and 25000 more"):
            engine.check(Outline(25_000, identity="a"))
        engine.check(replace(call, identity="b"))
        coming.close()
        engine.check(call)


def test_what_is_made_ready_costs_nobody_time_while_there_are_rows_for_all() -> None:
    with running_engine(FakeRunner(on_decode=lambda _: time.sleep(0.005)), max_running=8) as engine:
        hypotheses(engine.submit([LONG] * 16, identity="a"))
        alone = engine.seconds(Outline(2, identity="a"))
        with engine.expecting(Outline(6, identity="a")):
            assert engine.seconds(Outline(2, identity="a")) == pytest.approx(alone, rel=0.02)
        with engine.expecting(Outline(7, identity="a")):
            assert engine.seconds(Outline(2, identity="a")) > 1.2 * alone


@pytest.mark.parametrize("priority", [Priority.INTERACTIVE, Priority.DEFAULT])
def test_bulk_work_that_is_made_ready_leaves_others_their_room_and_their_share(priority: Priority) -> None:
    with slow_engine(max_waiting=100) as engine, ExitStack() as coming:
        hypotheses(engine.submit([LONG] * 5, identity="a"))
        call = Outline(25, priority=Priority.BULK, identity="a")
        for _ in range(4):
            engine.check(call)
            coming.enter_context(engine.expecting(call))
        with pytest.raises(QueueFullError, match=r"^100 segments are waiting or to come and 1 more") as refused:
            engine.check(replace(call, num_requests=1))
        assert 0.05 < refused.value.retry_after_seconds < 0.5  # one of those 100 has to go first: 0.1 s
        # 10 s come before it: by the shares of the priorities no more than 0.6 of what it takes itself.
        deadline = time.monotonic() + 2.0
        engine.check(Outline(1, priority=priority, identity="a", deadline=deadline))


def test_before_texts_are_known_their_rows_count() -> None:
    with slow_engine() as engine:
        hypotheses(engine.submit([LONG] * 5))
        assert engine.seconds(Outline(5, num_rows=10)) > 5 * engine.seconds(Outline(5)) > 0.0


def test_how_much_longer_than_usual_the_longest_of_a_call_is_is_learned() -> None:
    call = [LONG, *[Request((10,), 2)] * 9]
    with running_engine(FakeRunner(on_decode=lambda _: time.sleep(0.002)), max_running=2) as engine:

        def ratio() -> float:
            hypotheses(engine.submit(call * 5))  # the pace is known
            return engine.seconds(Outline(10)) / engine.seconds(Outline(1))

        first = ratio()
        for _ in range(40):
            hypotheses(engine.submit(call))
        assert ratio() > 1.2 * first


def test_a_full_queue_says_how_long_it_takes_to_have_room() -> None:
    with slow_engine(max_waiting=100) as engine:
        waiting = engine.submit([LONG] * 100)
        hypotheses(waiting[:3])
        with pytest.raises(QueueFullError) as refusal:
            engine.check(Outline(50, priority=Priority.BULK, identity="b"))
        assert refusal.value.retry_after_seconds > 1.0  # about 50 have to leave
        with pytest.raises(QueueFullError):
            engine.submit([LONG] * 100)
        for future in waiting:
            future.cancel()


def test_what_can_no_longer_be_in_time_leaves_the_queue_without_being_encoded() -> None:
    encoded: list[object] = []
    reports: list[StepReport] = []
    gate = Gate()
    runner = FakeRunner(on_encode=encoded.extend, on_decode=gate)
    with Device(1) as device:
        engine = Engine([runner], SEARCH, EngineOptions(max_running=1), device, on_step=reports.append)
        engine.start()
        first = engine.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        (late,) = engine.submit([replace(REQUESTS[1], deadline=time.monotonic() + 400.0)])
        last = engine.submit([replace(REQUESTS[2], deadline=time.monotonic() + 1000.0), REQUESTS[3]])
        engine._admission._pace.decoding_seconds = lambda *_: 500.0  # type: ignore[method-assign]
        gate.open.set()
        with pytest.raises(DeadlineError, match="would pass"):
            late.result(timeout=30)
        assert hypotheses(first + last) == [(expected(REQUESTS[i]),) for i in (0, 2, 3)]
        engine.stop()
    assert REQUESTS[1].source_ids not in encoded
    assert sum(report.num_expired for report in reports) == 1
    assert engine.num_pending == 0


def test_stopping_answers_everyone_and_refuses_the_next() -> None:
    gate = Gate()
    with running_engine(FakeRunner(on_decode=gate), max_running=1) as engine:
        futures = engine.submit(REQUESTS)
        assert gate.reached.wait(timeout=30)
        gate.open.set()
        engine.stop()
        for future in futures:
            error = future.exception(timeout=30)
            assert error is None or isinstance(error, EngineDeadError)
        assert engine.num_pending == 0
        with pytest.raises(EngineDeadError, match="stopped"):
            engine.submit(REQUESTS)


def test_a_dying_engine_answers_everyone_then_says_so_and_refuses_the_next() -> None:
    died = threading.Event()
    answered_before: list[bool] = []
    gate = Gate()
    futures: list[Future[Completion]] = []

    def die(_: StepReport) -> None:
        raise RuntimeError("a bug")

    def on_death() -> None:
        answered_before.append(all(future.done() for future in futures))
        died.set()

    with Device(1) as device:
        engine = Engine([FakeRunner(on_decode=gate)], SEARCH, EngineOptions(), device, on_step=die, on_death=on_death)
        with pytest.raises(EngineDeadError, match="not been started"):
            engine.submit(REQUESTS)
        engine.start()
        futures += engine.submit(REQUESTS)
        gate.open.set()
        assert died.wait(timeout=30)
        assert answered_before == [True]
        for future in futures:
            with pytest.raises(EngineDeadError, match="has died"):
                future.result(timeout=30)
        assert not engine.is_alive
        assert engine.num_pending == 0
        with pytest.raises(EngineDeadError, match="has died"):
            engine.submit(REQUESTS)


def test_an_error_between_leaving_the_scheduler_and_being_answered_leaves_nobody_waiting() -> None:
    class BrokenMoves(FakeRunner):
        def move_rows(self, moves: Sequence[Move]) -> None:
            raise DeviceLostError("an error of a kernel")

    with running_engine(BrokenMoves()) as engine:
        for future in engine.submit(REQUESTS):
            with pytest.raises(EngineDeadError):
                future.result(timeout=30)


@pytest.mark.parametrize("verb", ["encode", "decode_step"])
def test_a_device_that_is_lost_ends_the_engine(verb: str) -> None:
    def lost(*_: object, **__: object) -> None:
        raise DeviceLostError("an error of a kernel")

    runner = FakeRunner()
    setattr(runner, verb, lost)
    with running_engine(runner) as engine:
        for future in engine.submit(REQUESTS):
            with pytest.raises(EngineDeadError):
                future.result(timeout=30)
        assert not engine.is_alive


def test_rows_that_cannot_be_moved_fail_what_runs_and_nothing_after_it() -> None:
    class SometimesFull(FakeRunner):
        num_failures = 0

        def move_rows(self, moves: Sequence[Move]) -> None:
            if not self.num_failures:
                self.num_failures += 1
                raise MemoryError("the device has no memory")
            super().move_rows(moves)

    runner = SometimesFull()
    with running_engine(runner) as engine:
        outcomes = [future.exception(timeout=30) for future in engine.submit(REQUESTS)]
        assert runner.num_failures == 1
        assert any(isinstance(error, InferenceError) for error in outcomes)
        assert all(error is None or isinstance(error, InferenceError) for error in outcomes)
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
        assert engine.num_pending == 0


def test_steps_are_reported() -> None:
    reports: list[StepReport] = []
    with Device(1) as device:
        engine = Engine([FakeRunner()], SEARCH, EngineOptions(max_running=2), device, on_step=reports.append)
        engine.start()
        hypotheses(engine.submit(REQUESTS))
        engine.stop()
    assert sum(len(report.step.queue_seconds) for report in reports) == len(REQUESTS)
    assert sum(len(report.step.first_token_seconds) for report in reports) == len(REQUESTS)
    assert sum(report.step.num_encoded_tokens for report in reports) == sum(len(r.source_ids) for r in REQUESTS)
    assert sum(report.step.num_decoded for report in reports) == sum(len(r.source_ids) + 1 for r in REQUESTS)
    assert (reports[0].num_waiting, reports[0].num_running) == (3, 2)
    answers = [answer for report in reports for answer in report.step.answers]
    assert len(answers) == len(REQUESTS)
    assert all(0.0 < answer.seconds_per_token < answer.seconds for answer in answers)
    assert reports[0].step.num_padding_tokens == 7 - 5
    assert sum(report.step.num_wasted_tokens for report in reports) == 0
    assert reports[0].num_cached_tokens == sum(n + 1 for n in (7, 5))  # the longest
    assert (reports[-1].num_waiting, reports[-1].num_running) == (0, 0)


def test_who_leaves_as_its_deadline_passes_is_not_reported_as_having_given_up() -> None:
    """Its call is withdrawn, as are those of callers who do not want to wait any longer."""
    gate, reports = Gate(), list[StepReport]()
    options = EngineOptions(max_running=2)
    device = Device(1)
    engine = Engine([FakeRunner(on_decode=gate)], SEARCH, options, device, on_step=reports.append)
    engine.start()
    now = time.monotonic()
    futures = engine.submit([replace(REQUESTS[0], deadline=now + after) for after in (0.01, math.inf, 0.01, 600.0)])
    assert gate.reached.wait(timeout=30)
    for future in futures:
        future.cancel()
    gate.open.set()
    hypotheses(engine.submit(REQUESTS[:1]))
    engine.stop()
    device.close()
    assert sum(report.num_expired for report in reports) == 2
    assert sum(report.num_expired_waiting for report in reports) == 1  # there are two rows
    assert sum(report.num_cancelled for report in reports) == 2


def test_what_was_decoded_for_who_has_left_is_reported() -> None:
    gate, reports = Gate(), list[StepReport]()
    with Device(1) as device:
        options = EngineOptions(max_running=2)
        engine = Engine([FakeRunner(on_decode=gate)], SEARCH, options, device, on_step=reports.append)
        engine.start()
        (left,) = engine.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        left.cancel()
        gate.open.set()
        hypotheses(engine.submit(REQUESTS[1:2]))
        engine.stop()
    steps = [report.step for report in reports]
    num_of_other = len(REQUESTS[1].source_ids) + 1
    num_wasted = sum(step.num_wasted_tokens for step in steps)
    assert num_wasted == sum(step.num_decoded for step in steps) - num_of_other
    assert num_wasted > 0
    assert sum(len(step.answers) for step in steps) == 1


# -- several lanes -----------------------------------------------------------------------------------------------------


def test_a_call_is_spread_over_the_lanes() -> None:
    runners = [FakeRunner() for _ in range(3)]
    with running_engine(runners) as engine:
        assert hypotheses(engine.submit(REQUESTS)) == [(expected(request),) for request in REQUESTS]
    assert [runner.batch_sizes[0] for runner in runners] == [1, 2, 2]


def test_lanes_step_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=30)

    def meet(_: int) -> None:
        together.wait()

    with running_engine([FakeRunner(on_decode=meet) for _ in range(2)]) as engine:
        requests = [Request((10, 11), 20), Request((12, 13), 20)]  # as many steps for each
        assert hypotheses(engine.submit(requests)) == [(expected(request),) for request in requests]


def test_a_lane_that_hangs_does_not_keep_the_others() -> None:
    gate = Gate()
    with running_engine([FakeRunner(on_decode=gate), FakeRunner()]) as engine:
        stuck, *others = engine.submit(REQUESTS[:2])
        assert gate.reached.wait(timeout=30)
        assert hypotheses(others) == [(expected(REQUESTS[1]),)]
        assert hypotheses(engine.submit(REQUESTS[2:3])) == [(expected(REQUESTS[2]),)]
        assert engine.stalled_seconds > 0.0
        gate.open.set()
        assert hypotheses([stuck]) == [(expected(REQUESTS[0]),)]
    assert engine.stalled_seconds == 0.0


def test_what_leaves_while_it_runs_in_another_lane_is_dropped_there() -> None:
    gate = Gate()
    slow, quick = FakeRunner(on_decode=gate), FakeRunner()
    with running_engine([slow, quick]) as engine:
        stuck, other = engine.submit(REQUESTS[:2])
        assert gate.reached.wait(timeout=30)
        hypotheses([other])
        assert stuck.cancel()
        hypotheses(engine.submit(REQUESTS[:1]))  # the other lane's step notices
        gate.open.set()
    assert slow.batch_sizes == [1]
    assert engine.num_pending == 0


def test_an_error_in_one_lane_ends_the_engine_and_answers_those_of_all_lanes() -> None:
    class BrokenMoves(FakeRunner):
        def move_rows(self, moves: Sequence[Move]) -> None:
            raise DeviceLostError("an error of a kernel")

    deaths: list[None] = []
    gate = Gate()
    with Device(2) as device:
        runners = [FakeRunner(on_decode=gate), BrokenMoves()]
        engine = Engine(runners, SEARCH, EngineOptions(), device, on_death=lambda: deaths.append(None))
        engine.start()
        for future in engine.submit(REQUESTS):
            with pytest.raises(EngineDeadError):
                future.result(timeout=30)
        gate.open.set()  # whose step ends after everybody was answered
        engine.stop()
    assert deaths == [None]
    assert engine.num_pending == 0


# -- several engines on one device -------------------------------------------------------------------------------------


def test_a_request_takes_a_lane_where_no_other_engine_computes() -> None:
    gate = Gate()
    runners = [FakeRunner(on_decode=gate), FakeRunner()], [FakeRunner(), FakeRunner()]
    with Device(2) as device, engine_on(device, runners[0]) as first, engine_on(device, runners[1]) as second:
        [stuck] = first.submit(REQUESTS[:1])
        assert gate.reached.wait(timeout=30)
        assert hypotheses(second.submit(REQUESTS[1:2])) == [(expected(REQUESTS[1]),)]
        gate.open.set()
        assert hypotheses([stuck]) == [(expected(REQUESTS[0]),)]


def test_a_lane_is_alone_where_neither_its_engine_nor_another_computes_in_any_other() -> None:
    class Noting(FakeRunner):
        def decode_step(self, *arguments: Any) -> StepOutput:
            was_alone.append(self.is_alone)
            return super().decode_step(*arguments)

    was_alone: list[bool] = []
    gate = Gate()
    with Device(2) as device, engine_on(device, [Noting(), Noting()]) as engine:
        hypotheses(engine.submit(REQUESTS[:1]))
        assert set(was_alone) == {True}
        with engine_on(device, [FakeRunner(on_decode=gate), FakeRunner()]) as other:
            [stuck] = other.submit(REQUESTS[:1])
            assert gate.reached.wait(timeout=30)
            was_alone.clear()
            hypotheses(engine.submit(REQUESTS[:1]))
            assert set(was_alone) == {False}
            gate.open.set()
            hypotheses([stuck])
        was_alone.clear()
        hypotheses(engine.submit(REQUESTS[:1]))
        assert set(was_alone) == {True}


def test_an_engine_that_dies_leaves_the_others_on_its_device_alone() -> None:
    class BrokenMoves(FakeRunner):
        def move_rows(self, moves: Sequence[Move]) -> None:
            raise DeviceLostError("an error of a kernel")

    with Device(1) as device, engine_on(device, [BrokenMoves()]) as broken, engine_on(device, [FakeRunner()]) as other:
        failing, futures = broken.submit(REQUESTS), other.submit(REQUESTS)
        assert hypotheses(futures) == [(expected(request),) for request in REQUESTS]
        for future in failing:
            with pytest.raises(EngineDeadError):
                future.result(timeout=30)


def test_a_stopped_engine_gives_its_runners_up_whoever_has_futures_of_it() -> None:
    runners = [FakeRunner(), FakeRunner()]
    left = [weakref.ref(runner) for runner in runners]
    with running_engine(runners) as engine:
        futures = engine.submit(REQUESTS)
        hypotheses(futures)
        runners.clear()
    assert engine.stalled_seconds == 0.0
    gc.disable()  # references go at once, not when they are found to be a cycle
    try:
        del engine
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()
