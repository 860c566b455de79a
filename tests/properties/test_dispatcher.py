"""Random calls on engines whose loads and refusals are random: every request is answered once, or its call refused."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.dispatcher import Dispatcher
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Completion, Outline, Request
from dragoman_server.errors import QueueFullError
from support.server_parts import echo


class CountingEngine:
    """Takes a number of requests in all, and answers those that are not cancelled when it is told to."""

    stalled_seconds = 0.0

    def __init__(self, num_pending_rows: int, room: int) -> None:
        self.num_pending_rows, self.room = num_pending_rows, room
        self.taken: list[tuple[Request, Future[Completion]]] = []

    def start(self) -> None:
        pass

    give_back_memory = stop = start

    def check(self, outline: Outline) -> None:
        pass

    def seconds(self, outline: Outline) -> float:
        return 0.0

    def expecting(self, outline: Outline) -> AbstractContextManager[None]:
        return nullcontext()

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]:
        if len(requests) > self.room:
            raise QueueFullError("full", 1.0)
        self.room -= len(requests)
        self.num_pending_rows += sum(request.options.num_rows for request in requests)
        futures: list[Future[Completion]] = [Future() for _ in requests]
        self.taken += zip(requests, futures, strict=True)
        return futures

    def answer(self) -> list[Request]:
        """Answers all; returns those that were to be answered."""
        answered = [request for request, future in self.taken if future.set_running_or_notify_cancel()]
        for request, future in self.taken:
            if not future.cancelled():
                future.set_result(echo(request))
        return answered


@given(
    engines=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=1, max_size=4),
    calls=st.lists(st.lists(st.integers(1, 5), max_size=10), max_size=5),
)
def test_every_request_is_answered_exactly_once(engines: list[tuple[int, int]], calls: list[list[int]]) -> None:
    several = [CountingEngine(num_rows, room) for num_rows, room in engines]
    dispatcher = Dispatcher(several)
    ids, accepted = iter(range(4, 10_000)), list[tuple[Request, Future[Completion]]]()
    for nums_rows in calls:
        requests = [Request((next(ids), 9), 20, options=SearchOptions(beam_size=n)) for n in nums_rows]
        loads = [engine.num_pending_rows for engine in several]
        have_room = all(engine.room >= len(requests) for engine in several)
        try:
            futures = dispatcher.submit(requests)
        except QueueFullError:
            continue
        assert len(futures) == len(requests)
        accepted += zip(requests, futures, strict=True)
        # None was given so much that another would still have less without its last.
        for engine, before in zip(several, loads, strict=True):
            if have_room and engine.num_pending_rows > before:
                assert engine.num_pending_rows - 5 <= min(other.num_pending_rows for other in several)
    answered = Counter(chain.from_iterable(engine.answer() for engine in several))
    assert answered == Counter(request for request, _ in accepted)
    for request, future in accepted:
        assert future.result(timeout=0) == echo(request)
