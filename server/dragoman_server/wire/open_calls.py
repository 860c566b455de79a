"""The calls that have no status yet, and how a server that stops ends them: those that wait for their callers first."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class OpenCall:
    """A call from its arrival until its status is known. Belongs to the task that answers it.

    Attributes:
        scope: around the work on the call; has expired where the server has ended it.
    """

    def __init__(self) -> None:
        self.scope = asyncio.timeout(None)
        self._num_owed = 0
        self._idle_since = math.inf  # seconds on the monotonic clock; infinity while it is not the caller's turn
        self._blocked_since = math.inf

    @property
    def waiting_since(self) -> float:
        """Since when only the caller can bring the call forward, on the monotonic clock; infinity: it does not wait."""
        return min(self._idle_since, self._blocked_since)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """While a message is read that must come, or one is written that the caller must take."""
        self._blocked_since = time.monotonic()
        try:
            yield
        finally:
            self._blocked_since = math.inf

    def owe(self, num_answers: int) -> None:
        """A message has come in that is to be answered so many times; 0 where it only says how to answer others."""
        self._num_owed += num_answers
        self._idle_since = math.inf if self._num_owed else time.monotonic()

    def answered(self) -> None:
        """The caller has taken an answer."""
        if self._num_owed:
            self.owe(-1)

    def end(self) -> None:
        """Has the task leave `scope` with TimeoutError."""
        if not self.scope.expired():
            self.scope.reschedule(asyncio.get_running_loop().time())


class OpenCalls:
    """All open calls of a server. Belongs to one event loop."""

    def __init__(self) -> None:
        self._calls: set[OpenCall] = set()

    def __len__(self) -> int:
        return len(self._calls)

    @contextmanager
    def opened(self, call: OpenCall) -> Iterator[None]:
        """The call is open until the end of the context."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.remove(call)

    def end_waiting(self, seconds: float) -> None:
        """Ends the calls that have waited for their callers for so long."""
        latest = time.monotonic() - seconds
        for call in self._calls:
            if call.waiting_since <= latest:
                call.end()

    def end_all(self) -> None:
        """Ends all that are open now."""
        for call in self._calls:
            call.end()
