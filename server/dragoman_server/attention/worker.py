"""The thread that computes attention, and who may wait for it."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dragoman_server.errors import DeadlineError, InferenceError, NotInTimeError, QueueFullError
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.memory import give_back_memory
from dragoman_server.runtime.session import flush_denormals

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Each piece of work has this share in what is taken for the usual time of one.
_NEW_SHARE = 0.1
# An estimate halves in so many seconds without any piece of work: whom an old one refuses cannot renew it.
_HALVING_SECONDS = 2.0
# Where nothing is known, callers who find too much waiting are told to come back after this.
_UNKNOWN_RETRY_SECONDS = 1.0
_LEAST_RETRY_SECONDS = 0.05


class AttentionWorker:
    """Runs passes one after the other, on a thread of its own.

    Callers take turns after every piece of work, so that one with many pieces does not hold up
    one with few. Belongs to one event loop.

    Args:
        attention_pass: of the model; only this thread calls it.
        max_waiting: pieces of work that may be announced and not yet be done.
        on_piece: told by the thread of each piece of work how long it has waited, and how long it has taken; None:
            its deadline had passed.
    """

    def __init__(
        self,
        attention_pass: AttentionPass,
        max_waiting: int,
        on_piece: Callable[[float, float | None], None] = lambda *_: None,
    ) -> None:
        self._pass = attention_pass
        self._max_waiting, self._on_piece = max_waiting, on_piece
        self._num_waiting = self._num_callers = 0
        self._piece_seconds, self._last = 0.0, -math.inf  # as is usual; when that was known
        self._thread = ThreadPoolExecutor(1, "dragoman-attention", initializer=flush_denormals)

    @property
    def num_waiting(self) -> int:
        """Pieces of work that were announced and are not done yet."""
        return self._num_waiting

    def seconds(self, num_pieces: int) -> float:
        """How long so many pieces of work of one more caller would take, as far as is known; else 0.

        Callers take turns, so others hold up each of the pieces by one of theirs at most.
        """
        turns = min(self._num_waiting + num_pieces, (self._num_callers + 1) * num_pieces)
        return turns * self._usual_seconds

    @property
    def _usual_seconds(self) -> float:
        """How long a piece of work takes; 0 where that is not known, or no more."""
        age = max(0.0, time.monotonic() - self._last)
        return self._piece_seconds * math.exp2(-age / _HALVING_SECONDS)

    @contextlib.contextmanager
    def admitted(self, num_pieces: int, deadline: float = math.inf) -> Iterator["Admission"]:
        """Announces pieces of work; `run` is for those who have.

        Args:
            num_pieces: how many.
            deadline: of all of them, on the `time.monotonic` clock.

        Raises:
            QueueFullError: more would wait than may.
            NotInTimeError: they can hardly be done by the deadline.
        """
        if self._num_waiting and (num_over := self._num_waiting + num_pieces - self._max_waiting) > 0:
            seconds = num_over * self._usual_seconds or _UNKNOWN_RETRY_SECONDS
            raise QueueFullError(
                f"{self._num_waiting} passes of attention are waiting and {num_pieces} more would exceed the limit of "
                f"{self._max_waiting}",
                max(_LEAST_RETRY_SECONDS, seconds),
            )
        seconds, left = self.seconds(num_pieces), deadline - time.monotonic()
        if 0.0 < left < seconds:
            raise NotInTimeError(
                f"the attention would take {seconds:.2g} s, and the deadline is in {left:.2g} s",
                max(_LEAST_RETRY_SECONDS, seconds - left),
            )
        admission = Admission(num_pieces, self._announce)
        admission.resume()
        try:
            yield admission
        finally:
            admission.pause()

    def _announce(self, num_pieces: int, num_callers: int) -> None:
        self._num_waiting += num_pieces
        self._num_callers += num_callers

    def _note(self, seconds: float) -> None:
        """Tells how long a piece of work has taken. Only the thread calls it."""
        share = _NEW_SHARE if self._piece_seconds else 1.0
        self._piece_seconds, self._last = (1 - share) * self._piece_seconds + share * seconds, time.monotonic()

    async def run(self, work: Callable[[AttentionPass], _T], deadline: float) -> _T:
        """Does a piece of work on the thread. One that has not begun is dropped when the caller leaves.

        Args:
            work: what to do with the pass.
            deadline: on the `time.monotonic` clock, in seconds.

        Raises:
            DeadlineError: the deadline passed before it was this work's turn.
            InferenceError: the work failed.
        """
        asked = time.monotonic()

        def piece() -> _T:
            began = time.monotonic()
            if began >= deadline:
                self._on_piece(began - asked, None)
                raise DeadlineError("the deadline passed before the attention was computed")
            try:
                found = work(self._pass)
                seconds = time.monotonic() - began
                self._note(seconds)
                self._on_piece(began - asked, seconds)
                return found
            except Exception as error:
                logger.error("a pass of attention failed", exc_info=error)
                raise InferenceError("the attention of this text could not be computed") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, piece)

    def give_back_memory(self) -> None:
        """Has the thread do that, when what it works on is done."""
        with contextlib.suppress(RuntimeError):  # it has been closed
            self._thread.submit(give_back_memory)

    def close(self) -> None:
        """Ends the thread after its present work, and closes the pass; what waits fails."""
        self._thread.shutdown(cancel_futures=True)
        self._pass.close()


class Admission:
    """Pieces of work that were announced.

    Args:
        num_pieces: how many.
        announce: is told how many more pieces and callers wait, or with a minus, how many fewer.
    """

    def __init__(self, num_pieces: int, announce: Callable[[int, int], None]) -> None:
        self._num_pieces, self._announce = num_pieces, announce
        self._counts = False

    def pause(self) -> None:
        """They do not count while nobody wants them done."""
        if self._counts:
            self._announce(-self._num_pieces, -1)
        self._counts = False

    def resume(self) -> None:
        """They count again."""
        if not self._counts:
            self._announce(self._num_pieces, 1)
        self._counts = True
