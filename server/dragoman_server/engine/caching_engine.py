"""An engine that decodes nothing twice: what was answered is kept, and who asks for what is being decoded waits."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from dragoman_server.engine.completion_cache import CachePart
from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.engine.sequence import Completion, Progress, Request
from dragoman_server.errors import DeadlineError

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who waits for an answer. `arrived` is on the `time.monotonic` clock."""

    request: Request
    caller: object
    arrived: float
    tell: Progress | None
    future: "Future[Completion]" = field(default_factory=Future)
    flight: "_Flight | None" = None

    def take(self, completion: Completion, now: float) -> None:
        """Ends the waiting with an answer, and with the times of it that lay within the waiting."""
        left = now - self.arrived
        decode_seconds = min(completion.decode_seconds, left)
        encode_seconds = min(completion.encode_seconds, left - decode_seconds)
        queue_seconds = min(completion.queue_seconds, left - decode_seconds - encode_seconds)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(Completion(completion.hypotheses, queue_seconds, encode_seconds, decode_seconds))

    def fail(self, error: BaseException) -> None:
        """Ends the waiting without an answer."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class _Flight:
    """A request that the engine has, and all who wait for its answer. It ends when the last of them has left."""

    key: bytes | None  # None: nobody else may wait for it
    request: Request
    caller: object
    tells: bool  # whether the engine says how far it is
    waiters: dict[_Waiter, None] = field(default_factory=dict)  # in the order that they came
    certain_ids: tuple[int, ...] = ()  # as the engine has told
    answer: "Future[Completion] | None" = None  # the engine's

    def suits(self, waiter: _Waiter) -> bool:
        """Whether somebody may wait here: for whoever is more urgent there may be a queue before it.

        Who is told of progress must not have to begin anew: where this ends at its deadline, so does the other.
        """
        is_told = waiter.tell is None or (self.tells and self.request.deadline >= waiter.request.deadline)
        return is_told and self.request.priority <= waiter.request.priority

    def add(self, waiter: _Waiter) -> None:
        """Lets somebody wait here."""
        waiter.flight = self
        self.waiters[waiter] = None
        if waiter.tell is not None and self.certain_ids:
            waiter.tell(self.certain_ids)


class CachingEngine:
    """An engine with a cache before it. Thread-safe.

    Two requests are the same where all is that has to do with the answer; those of sampling without a seed never are.
    Answers are those of the engine: the times in them are what a caller has waited for.

    Args:
        engine: decodes what is not in the cache.
        part: of the cache; closed when the engine has stopped.
        on_lookups: told after each call of `submit`, of the requests that may be in a cache, how many were answered
            from it, how many share the decoding of another, and how many are decoded.
    """

    def __init__(
        self, engine: SegmentEngine, part: CachePart, on_lookups: Callable[[int, int, int], None] = lambda *_: None
    ) -> None:
        self._engine, self._part, self._on_lookups = engine, part, on_lookups
        # Guards all below. The engine takes locks of its own within it, and answers with none.
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight] = {}  # those that others may join, the latest of each key

    @property
    def stalled_seconds(self) -> float:
        """As the engine's."""
        return self._engine.stalled_seconds

    def start(self) -> None:
        """Takes requests from now on."""
        self._engine.start()

    def give_back_memory(self) -> None:
        """Has the engine give back what keys and values have grown to. The cache stays."""
        self._engine.give_back_memory()

    def stop(self) -> None:
        """Ends the engine, and forgets what it has answered."""
        self._engine.stop()
        self._part.close()

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        is_unlimited: bool = False,
    ) -> list["Future[Completion]"]:
        """As `SegmentEngine.submit`; what is in the cache is answered at once, without progress.

        Raises:
            QueueFullError, EngineDeadError: what the engine raises for those that are to be decoded.
        """
        arrived = time.monotonic()
        caller = object() if caller is None else caller
        waiters = [
            _Waiter(request, caller, arrived, None if on_progress is None else partial(on_progress, place))
            for place, request in enumerate(requests)
        ]
        num_hits = num_joined = 0
        begun: list[_Flight] = []
        with self._lock:
            joinable: dict[bytes, _Flight] = {}  # of this call: nothing is changed before the engine has taken them
            placed: list[tuple[_Flight, _Waiter]] = []
            for waiter, key in zip(waiters, self._part.keys(requests), strict=True):
                flight = None
                if key is not None:
                    if (hypotheses := self._part.find(key)) is not None:
                        num_hits += 1
                        waiter.future.set_result(Completion(hypotheses, 0.0, 0.0, 0.0))
                        continue
                    flight = joinable.get(key) or self._flights.get(key)
                if flight is not None and flight.suits(waiter):
                    num_joined += 1
                else:
                    flight = _Flight(key, waiter.request, caller, on_progress is not None)
                    begun.append(flight)
                    if key is not None:
                        joinable[key] = flight
                placed.append((flight, waiter))
            self._begin(begun, is_unlimited=is_unlimited)
            for flight, waiter in placed:
                flight.add(waiter)
        for _, waiter in placed:
            waiter.future.add_done_callback(partial(self._on_left, waiter))
        self._listen(begun)
        self._on_lookups(num_hits, num_joined, len(joinable))
        return [waiter.future for waiter in waiters]

    def _begin(self, flights: Sequence[_Flight], *, is_unlimited: bool) -> None:
        """Gives requests of one caller to the engine, all or none. The lock is held."""
        if not flights:
            return
        on_progress = partial(self._on_progress, flights) if flights[0].tells else None
        requests = [flight.request for flight in flights]
        answers = self._engine.submit(requests, flights[0].caller, on_progress, is_unlimited=is_unlimited)
        for flight, answer in zip(flights, answers, strict=True):
            flight.answer = answer
            if flight.key is not None:
                self._flights[flight.key] = flight

    def _listen(self, flights: Iterable[_Flight]) -> None:
        """Waits for the answers of the engine; without the lock, as they may be there."""
        for flight in flights:
            assert flight.answer is not None
            flight.answer.add_done_callback(partial(self._on_answer, flight))

    # -- threads of the engine, and those that withdraw ------------------------------------------------------------

    def _on_progress(self, flights: Sequence[_Flight], index: int, certain_ids: tuple[int, ...]) -> None:
        flight = flights[index]
        with self._lock:
            flight.certain_ids = certain_ids
            for waiter in flight.waiters:
                if waiter.tell is not None:
                    waiter.tell(certain_ids)

    def _on_left(self, waiter: _Waiter, future: "Future[Completion]") -> None:
        """Withdraws a request for which nobody waits any more."""
        if not future.cancelled():
            return
        with self._lock:
            flight = waiter.flight
            assert flight is not None
            if waiter not in flight.waiters:
                return  # the answer has come first
            del flight.waiters[waiter]
            if flight.waiters:
                return
            self._end(flight)
        assert flight.answer is not None
        flight.answer.cancel()

    def _on_answer(self, flight: _Flight, answer: "Future[Completion]") -> None:
        error = None if answer.cancelled() else answer.exception()
        if error is None and not answer.cancelled() and flight.key is not None:
            try:
                self._part.keep(flight.key, answer.result().hypotheses)  # before the flight ends: there is always one
            except Exception:
                logger.exception("an answer cannot be kept")  # but can be given
        begun: _Flight | None = None
        with self._lock:
            self._end(flight)
            waiters, flight.waiters = flight.waiters, {}
            if isinstance(error, DeadlineError):
                late = [waiter for waiter in waiters if waiter.request.deadline > flight.request.deadline]
                try:
                    begun = self._begin_anew(flight, late)
                except Exception as refusal:  # whatever it is, all of them are told
                    error = refusal
                else:
                    waiters = dict.fromkeys(waiter for waiter in waiters if waiter not in set(late))
        if begun is not None:
            self._listen([begun])
        now = time.monotonic()
        for waiter in waiters:
            if answer.cancelled():
                waiter.future.cancel()
            elif error is not None:
                waiter.fail(error)
            else:
                waiter.take(answer.result(), now)

    def _begin_anew(self, flight: _Flight, waiters: Iterable[_Waiter]) -> _Flight | None:
        """Has the request of a flight that has missed its deadline decoded for those who have more time."""
        present = [waiter for waiter in waiters if not waiter.future.cancelled()]
        if not present:
            return None
        last = max(present, key=lambda waiter: waiter.request.deadline)
        priority = min(waiter.request.priority for waiter in present)
        again = _Flight(flight.key, replace(last.request, priority=priority), last.caller, tells=False)
        self._begin([again], is_unlimited=True)  # they have been let in already
        for waiter in present:
            again.add(waiter)
        return again

    def _end(self, flight: _Flight) -> None:
        """Lets nobody join any more. The lock is held."""
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
