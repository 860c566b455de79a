"""Random programs on the scheduler and on the whole engine."""

import random
from concurrent.futures import CancelledError, Future

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.sequence import Completion, Request, Sequence
from dragoman_server.engine.slots import Move
from dragoman_server.errors import DeadlineError
from support.fake_runner import EOS_ID, START_ID, FakeRunner, expected


class Scheduling(RuleBasedStateMachine):
    """Adds, starts and removes sequences at random, beside a pool whose rows are copied as the scheduler says."""

    MAX_RUNNING, MAX_ENCODER_TOKENS = 5, 12

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.MAX_RUNNING, self.MAX_ENCODER_TOKENS)
        self.waiting: list[Sequence] = []  # what must be waiting, in order
        self.live: set[Sequence] = set()  # what must be running
        self.pool: list[Sequence | None] = [None] * self.MAX_RUNNING

    @rule(lengths=st.lists(st.integers(1, 20), max_size=6))
    def add(self, lengths: list[int]) -> None:
        added = [Sequence(Request(tuple(range(n)), 9), arrived=0.0) for n in lengths]
        self.waiting += added
        self.scheduler.add(added)

    @rule()
    def schedule(self) -> None:
        num_free = self.MAX_RUNNING - len(self.live)
        arrivals = self.scheduler.schedule()
        assert arrivals == self.waiting[: len(arrivals)]
        padded = len(arrivals) * max((s.num_source_tokens for s in arrivals), default=0)
        assert len(arrivals) <= 1 or padded <= self.MAX_ENCODER_TOKENS
        assert bool(arrivals) == bool(self.waiting and num_free)
        first_row = len(self.live)
        self.pool[first_row : first_row + len(arrivals)] = arrivals
        self.live.update(arrivals)
        del self.waiting[: len(arrivals)]

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        candidates = [*self.waiting, *self.scheduler.running]
        gone = {s for s in candidates if data.draw(st.booleans())}
        self.scheduler.remove_waiting(gone)
        moves = self.scheduler.remove_running(gone)
        assert len({move.target for move in moves}) == len(moves)
        assert not {move.target for move in moves} & {move.source for move in moves}
        self.copy(moves)
        self.waiting = [s for s in self.waiting if s not in gone]
        self.live -= gone

    def copy(self, moves: list[Move]) -> None:
        for source, target in moves:
            self.pool[target] = self.pool[source]

    @invariant()
    def everyone_is_where_the_scheduler_says(self) -> None:
        self.scheduler.check_integrity()
        assert list(self.scheduler.waiting) == self.waiting
        assert set(self.scheduler.running) == self.live
        assert self.pool[: len(self.live)] == list(self.scheduler.running)
        assert self.scheduler.has_work == bool(self.waiting or self.live)


Scheduling.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestScheduling = Scheduling.TestCase

REQUESTS = st.builds(
    Request,
    source_ids=st.lists(st.integers(10, 99), min_size=1, max_size=12).map(tuple),
    max_target_tokens=st.integers(1, 14),
    deadline=st.sampled_from([float("inf")] * 4 + [0.0]),  # one in five is past its deadline on arrival
)


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(st.lists(REQUESTS, min_size=1, max_size=8), min_size=1, max_size=8),
    max_running=st.integers(1, 6),
    max_encoder_tokens=st.integers(1, 40),
    seed=st.integers(),
)
def test_whatever_happens_every_request_is_answered_once_and_rightly(
    calls: list[list[Request]], max_running: int, max_encoder_tokens: int, seed: int
) -> None:
    rng = random.Random(seed)
    answers: list[object] = []
    options = EngineOptions(max_running=max_running, max_encoder_tokens=max_encoder_tokens)
    engine = Engine(FakeRunner(), START_ID, EOS_ID, options)
    engine.start()
    submitted: list[tuple[Request, Future[Completion]]] = []
    for requests in calls:
        futures = engine.submit(requests)
        for future in futures:
            future.add_done_callback(answers.append)
        submitted += zip(requests, futures, strict=True)
        for _, future in rng.sample(submitted, k=len(submitted) // 4):
            future.cancel()
    for request, future in submitted:
        try:
            assert future.result(timeout=30).hypotheses == (expected(request),)
        except CancelledError:
            pass
        except DeadlineError:
            assert request.deadline == 0.0
    engine.stop()
    assert len(answers) == len(submitted)
    assert engine.num_pending == 0
