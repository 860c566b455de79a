"""Several engines as one, each on a device of its own: a request goes to the one that has the least to do."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from dragoman_server.engine.sequence import Completion, Request


class DeviceEngine(Protocol):
    """An engine that work is given to; `Engine` says what its methods do."""

    @property
    def num_pending_rows(self) -> int: ...

    @property
    def stalled_seconds(self) -> float: ...

    def start(self) -> None: ...

    def give_back_memory(self) -> None: ...

    def stop(self) -> None: ...

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]: ...


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

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]:
        """Queues all requests or none, each in the engine that has the fewest rows pending; arguments as `Engine`'s.

        Raises:
            QueueFullError, EngineDeadError: what an engine raises; the others forget what they were given.
        """
        futures: dict[int, Future[Completion]] = {}  # by place in the call
        with self._submitting:
            try:
                for engine, places in self._dealt(requests):
                    given = [requests[place] for place in places]
                    tell = None if on_progress is None else _telling(on_progress, places)
                    found = engine.submit(given, caller, tell, is_unlimited=is_unlimited)
                    futures |= dict(zip(places, found, strict=True))
            except BaseException:
                for future in futures.values():
                    future.cancel()
                raise
        return [futures[place] for place in range(len(requests))]

    def _dealt(self, requests: Sequence[Request]) -> list[tuple[DeviceEngine, list[int]]]:
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
