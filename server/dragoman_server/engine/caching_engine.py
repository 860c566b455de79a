"""An engine that decodes nothing twice: what was answered is kept, and who asks for what is being decoded waits."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

from dragoman_server.engine.completion_cache import CachePart
from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.engine.sequence import Completion, Outline, Progress, Request
from dragoman_server.errors import DeadlineError

logger = logging.getLogger(__name__)

# While fewer than these are answered without the engine, a call is taken for one that needs it whole.
_RARE_HITS = 0.1
# Of what is looked up, the latest has this share in how many were.
_LATEST_SHARE = 0.01


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Waiter:
    """Somebody who waits for an answer. `arrived` is on the `time.monotonic` clock."""

    request: Request
    caller: object
    identity: object
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
    identity: object
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
        # Guards all below. Never held while the engine is called: it may answer others meanwhile, on this thread.
        self._lock = threading.Lock()
        self._flights: dict[bytes, _Flight] = {}  # those that others may join, the latest of each key
        self._hit_share = 0.0  # of the latest requests, those that the engine was not given

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

    def check(self, outline: Outline) -> None:
        """As the engine's, while hardly anything is in the cache.

        Else nobody is refused before it is known what is asked for: all of it may be there. `submit` refuses then.
        """
        if self._hit_share < _RARE_HITS:
            self._engine.check(outline)

    def seconds(self, outline: Outline) -> float:
        """As the engine's, while hardly anything is in the cache; else 0: nothing is known."""
        return self._engine.seconds(outline) if self._hit_share < _RARE_HITS else 0.0

    def expecting(self, outline: Outline) -> AbstractContextManager[None]:
        """As the engine's."""
        return self._engine.expecting(outline)

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list["Future[Completion]"]:
        """As `SegmentEngine.submit`; what is in the cache is answered at once, without progress.

        Raises:
            QueueFullError, NotInTimeError, EngineDeadError: what the engine raises for those that are to be decoded.
        """
        arrived = time.monotonic()
        caller = object() if caller is None else caller
        waiters = [
            _Waiter(request, caller, identity, arrived, None if on_progress is None else partial(on_progress, place))
            for place, request in enumerate(requests)
        ]
        num_hits = num_joined = num_kept = 0
        begun: list[_Flight] = []
        with self._lock:
            for waiter, key in zip(waiters, self._part.keys(requests), strict=True):
                flight = None
                if key is not None:
                    if (hypotheses := self._part.find(key)) is not None:
                        num_hits += 1
                        waiter.future.set_result(Completion(hypotheses, 0.0, 0.0, 0.0))
                        continue
                    flight = self._flights.get(key)
                if flight is not None and flight.suits(waiter):
                    num_joined += 1
                else:
                    num_kept += key is not None
                    flight = self._new_flight(key, waiter.request, waiter, tells=on_progress is not None)
                    begun.append(flight)
                flight.add(waiter)
            kept = (1.0 - _LATEST_SHARE) ** len(requests)
            self._hit_share *= kept
            if requests:
                self._hit_share += (1.0 - kept) * (num_hits + num_joined) / len(requests)
        for waiter in waiters:
            waiter.future.add_done_callback(partial(self._on_left, weakref.ref(waiter)))
        try:
            self._launch(begun, is_unlimited=is_unlimited)
        except BaseException:
            for waiter in waiters:
                waiter.future.cancel()
            for flight in begun:
                self._begin_anew(flight)  # others may have joined meanwhile
            raise
        self._on_lookups(num_hits, num_joined, num_kept)
        return [waiter.future for waiter in waiters]

    def _new_flight(self, key: bytes | None, request: Request, first: _Waiter, *, tells: bool) -> _Flight:
        """A flight that is to be launched for one of those who wait. The lock is held."""
        flight = _Flight(key, request, first.caller, first.identity, tells)
        if key is not None:
            self._flights[key] = flight
        return flight

    def _launch(self, flights: Sequence[_Flight], *, is_unlimited: bool) -> None:
        """Gives the requests of flights of one caller to the engine, all or none, and waits for the answers."""
        if not flights:
            return
        on_progress = partial(self._on_progress, flights) if flights[0].tells else None
        requests = [flight.request for flight in flights]
        answers = self._engine.submit(
            requests, flights[0].caller, on_progress, identity=flights[0].identity, is_unlimited=is_unlimited
        )
        with self._lock:
            for flight, answer in zip(flights, answers, strict=True):
                flight.answer = answer
            abandoned = [answer for flight, answer in zip(flights, answers, strict=True) if not flight.waiters]
        for flight, answer in zip(flights, answers, strict=True):
            answer.add_done_callback(partial(self._on_answer, flight))
        for answer in abandoned:
            answer.cancel()

    def _begin_anew(self, flight: _Flight) -> None:
        """Has the request of a flight that came to nothing decoded for those who still wait there."""
        with self._lock:
            self._end(flight)
            waiters, flight.waiters = flight.waiters, {}
            if not waiters:
                return
            last = max(waiters, key=lambda waiter: waiter.request.deadline)
            priority = min(waiter.request.priority for waiter in waiters)
            tells = any(waiter.tell is not None for waiter in waiters)
            again = self._new_flight(flight.key, replace(last.request, priority=priority), last, tells=tells)
            for waiter in waiters:
                again.add(waiter)
        try:
            self._launch([again], is_unlimited=True)  # they have been let in already
        except Exception as error:  # whatever it is, they are told
            with self._lock:
                self._end(again)
                waiters, again.waiters = again.waiters, {}
            for waiter in waiters:
                waiter.fail(error)

    # -- threads of the engine, and those that withdraw ------------------------------------------------------------

    def _on_progress(self, flights: Sequence[_Flight], index: int, certain_ids: tuple[int, ...]) -> None:
        flight = flights[index]
        with self._lock:
            flight.certain_ids = certain_ids
            for waiter in flight.waiters:
                if waiter.tell is not None:
                    waiter.tell(certain_ids)

    def _on_left(self, about: "weakref.ref[_Waiter]", future: "Future[Completion]") -> None:
        """Withdraws a request for which nobody waits any more."""
        if not future.cancelled() or (waiter := about()) is None:
            return
        with self._lock:
            flight = waiter.flight
            if flight is None or waiter not in flight.waiters:
                return  # the answer has come first
            del flight.waiters[waiter]
            if flight.waiters:
                return
            self._end(flight)
            answer = flight.answer
        if answer is not None:  # else it is withdrawn when it has been launched
            answer.cancel()

    def _on_answer(self, flight: _Flight, answer: "Future[Completion]") -> None:
        error = None if answer.cancelled() else answer.exception()
        if error is None and not answer.cancelled() and flight.key is not None:
            try:
                self._part.keep(flight.key, answer.result().hypotheses)  # before the flight ends: there is always one
            except Exception:
                logger.exception("an answer cannot be kept")  # but can be given
        is_late = isinstance(error, DeadlineError)
        with self._lock:
            self._end(flight)
            flight.answer = None  # which holds the flight: only the garbage collector would free both
            waiters, flight.waiters = flight.waiters, {}
            for waiter in list(waiters):
                if is_late and waiter.request.deadline > flight.request.deadline:
                    del waiters[waiter]
                    flight.waiters[waiter] = None
        now = time.monotonic()
        for waiter in waiters:
            if answer.cancelled():
                waiter.future.cancel()
            elif error is not None:
                waiter.fail(error)
            else:
                waiter.take(answer.result(), now)
        if is_late:
            self._begin_anew(flight)

    def _end(self, flight: _Flight) -> None:
        """Lets nobody join any more. The lock is held."""
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
