"""Who calls, as far as it matters to what they get: limits, and what of them is in use."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from dragoman_server.access.places import Places
from dragoman_server.access.rate import Rate
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import PermissionDeniedError, RateLimitedError, TooManyCallsError

# Of the duration of calls, for an estimate of when one of them ends: the weight of the latest in the mean.
_WEIGHT_OF_LATEST = 0.1
_FIRST_CALL_SECONDS = 0.5
# What a call counts at most: a stream that was open for hours says nothing of when the others end.
_MAX_CALL_SECONDS = 10.0
_MIN_RETRY_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do. The defaults set no limit, but make no administrator."""

    rate: float = math.inf  # texts a second
    concurrency: int | None = None  # calls in flight
    priority: Priority = Priority.INTERACTIVE  # the highest that its calls get
    models: frozenset[str] | None = None  # names without versions; None: all
    is_admin: bool = False  # whether it may load and unload models


class Caller:
    """One who calls, with any number of calls at a time. Belongs to one event loop.

    Args:
        name: of its token; "" where there are no tokens.
        grant: what it may do.
        clock: in seconds.
    """

    def __init__(self, name: str, grant: Grant, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self._grant, self._clock = name, grant, clock
        self._rate = Rate(grant.rate, clock)
        self._places, self._call_seconds = Places(grant.concurrency), _FIRST_CALL_SECONDS
        self._streams_turn = asyncio.Lock()  # hands out turns in the order in which they are asked for
        self._woken: asyncio.Event | None = None  # of the stream whose turn it is, to look again
        self._is_given = False  # whether its text was paid for already

    @property
    def grant(self) -> Grant:
        """What it may do. May be replaced: what is in flight stays, and counts; streams that wait look again."""
        return self._grant

    @grant.setter
    def grant(self, grant: Grant) -> None:
        self._grant, self._rate.per_second, self._places.number = grant, grant.rate, grant.concurrency
        if self._woken is not None:
            self._woken.set()

    def may_use(self, model: str) -> bool:
        """Whether it may use a model; `model` is its name without a version."""
        return self._grant.models is None or model in self._grant.models

    def check_model(self, model: str) -> None:
        """Raises PermissionDeniedError where it may not use a model; `model` is its name without a version."""
        if not self.may_use(model):
            raise PermissionDeniedError(f"the token {self.name} may not use the model {model!r} that this call needs")

    def check_admin(self) -> None:
        """Raises PermissionDeniedError where it may not load and unload models."""
        if not self._grant.is_admin:
            raise PermissionDeniedError(f"the token {self.name} is no administrator's: its line lacks admin=yes")

    def lowered(self, priority: Priority) -> Priority:
        """The priority that its calls get which ask for this one."""
        return max(priority, self._grant.priority)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[float]:
        """A call is in flight until the end of the context. Before, it may wait for a second; gives how long it did.

        Raises:
            TooManyCallsError: as many as may be are in flight, and none of them ends, or others wait.
        """
        asked = self._clock()
        has_place, most = await self._places.take(), self._places.number
        if not has_place and most is not None:
            retry_after = max(_MIN_RETRY_SECONDS, self._call_seconds / most)
            description = f"the token {self.name} has {self._places.num_taken} calls in flight, may have at most {most}"
            raise TooManyCallsError(description, retry_after)
        started = self._clock()
        try:
            yield started - asked
        finally:
            self._places.leave()
            latest = min(self._clock() - started, _MAX_CALL_SECONDS)
            self._call_seconds += _WEIGHT_OF_LATEST * (latest - self._call_seconds)

    def take(self, num_texts: int) -> None:
        """Lets the texts of a call in, which cannot wait.

        Raises:
            RateLimitedError: it has sent too many; says when a call gets in, if no other comes before it.
        """
        if seconds := self._rate.seconds_until_free():
            description = f"the token {self.name} may send {self._grant.rate:g} texts a second, and has sent more"
            raise RateLimitedError(description, seconds)
        self._rate.take(num_texts)
        if self._woken is not None and not self._is_given:
            # Else calls that come again and again would leave streams nothing.
            self._rate.take(1)
            self._is_given = True
            self._woken.set()

    async def turn(self) -> None:
        """Returns when a text of a stream may go on. Streams have turns in the order in which they ask."""
        if math.isinf(self._grant.rate):
            return
        async with self._streams_turn:
            woken = self._woken = asyncio.Event()
            self._is_given = False
            try:
                while not self._is_given:
                    woken.clear()
                    if not (seconds := self._rate.seconds_until_free(for_stream=True)):
                        self._rate.take(1)
                        return
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await woken.wait()
            finally:
                self._woken = None


ANYBODY: Final = Caller("", Grant(is_admin=True))
"""All callers of a server without tokens."""
