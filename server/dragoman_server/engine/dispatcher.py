"""Several engines as one, each on a device of its own: a request goes to the one that has the least to do."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.engine.sequence import Completion, Outline, Request
from dragoman_server.errors import NotInTimeError, QueueFullError


class DeviceEngine(SegmentEngine, Protocol):
    """An engine on a device of its own."""

    @property
    def num_pending_rows(self) -> int:
        """The rows of the requests that it has not answered yet."""


# Engines with the places in a call of the requests that they get.
_Dealt = list[tuple[DeviceEngine, Sequence[int]]]


class Dispatcher:
    """Engines of the same model. Thread-safe.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[DeviceEngine]) -> None:
        self._engines = engines
        self._submitting = threading.Lock()  # else calls that come together would all go to the same engine

    @property
    def stalled_seconds(self) -> float:
        """The longest time that an engine has had work and finished no step."""
        return max(engine.stalled_seconds for engine in self._engines)

    def start(self) -> None:
        """Takes requests from now on."""
        for engine in self._engines:
            engine.start()

    def give_back_memory(self) -> None:
        """Has all engines give back what keys and values have grown to."""
        for engine in self._engines:
            engine.give_back_memory()

    def stop(self) -> None:
        """Ends all engines."""
        for engine in self._engines:
            engine.stop()

    def check(self, outline: Outline) -> None:
        """Refuses a call that all engines refuse.

        Raises:
            QueueFullError, NotInTimeError: as the engine that has room first.
        """
        refusals, share = list[QueueFullError | NotInTimeError](), self._share(outline)
        for engine in self._engines:
            try:
                engine.check(share)
            except (QueueFullError, NotInTimeError) as error:
                refusals.append(error)
            else:
                return
        raise min(refusals, key=lambda error: error.retry_after_seconds)

    def seconds(self, outline: Outline) -> float:
        """How long the requests of a call would take, dealt to all engines; 0 where nothing is known."""
        share = self._share(outline)
        return min(engine.seconds(share) for engine in self._engines)

    @contextmanager
    def expecting(self, outline: Outline) -> Iterator[None]:
        """A call that `check` has let pass is made ready, for all engines together."""
        share = self._share(outline)
        with ExitStack() as stack:
            for engine in self._engines:
                stack.enter_context(engine.expecting(share))
            yield

    def _share(self, outline: Outline) -> Outline:
        """The part of a call that each engine gets."""
        return replace(outline, num_requests=math.ceil(outline.num_requests / len(self._engines)))

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]:
        """Queues all requests or none, each in the engine that has the fewest rows pending; arguments as `Engine`'s.

        Raises:
            QueueFullError, NotInTimeError, EngineDeadError: what an engine raises; the others forget what they were
                given.
        """
        everything, refusals = range(len(requests)), list[QueueFullError | NotInTimeError]()
        with self._submitting:
            # Where an engine has no room for its part, another may have room for all.
            choices: list[_Dealt] = [self._dealt(requests)]
            choices += [[(engine, everything)] for engine in self._engines]
            for dealt in choices:
                try:
                    return self._submit(dealt, requests, caller, on_progress, identity, is_unlimited)
                except (QueueFullError, NotInTimeError) as error:
                    refusals.append(error)
        raise refusals[0]

    def _submit(
        self,
        dealt: _Dealt,
        requests: Sequence[Request],
        caller: object,
        on_progress: Callable[[int, tuple[int, ...]], None] | None,
        identity: object,
        is_unlimited: bool,
    ) -> list[Future[Completion]]:
        futures: dict[int, Future[Completion]] = {}  # by place in the call
        try:
            for engine, places in dealt:
                given = [requests[place] for place in places]
                tell = None if on_progress is None else _telling(on_progress, places)
                found = engine.submit(given, caller, tell, identity=identity, is_unlimited=is_unlimited)
                futures |= dict(zip(places, found, strict=True))
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
        return [futures[place] for place in range(len(requests))]

    def _dealt(self, requests: Sequence[Request]) -> _Dealt:
        """The engines that get any of the requests, with the places of these."""
        rows = [engine.num_pending_rows for engine in self._engines]
        places: list[list[int]] = [[] for _ in rows]
        for place, request in enumerate(requests):
            least = rows.index(min(rows))
            rows[least] += request.options.num_rows
            places[least].append(place)
        return [(engine, its) for engine, its in zip(self._engines, places, strict=True) if its]


def _telling(
    on_progress: Callable[[int, tuple[int, ...]], None], places: Sequence[int]
) -> Callable[[int, tuple[int, ...]], None]:
    """Tells of a request by its place in the whole call."""
    return lambda index, token_ids: on_progress(places[index], token_ids)
