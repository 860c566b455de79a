"""The thread that computes attention, and who may wait for it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dragoman_server.errors import DeadlineError, InferenceError, QueueFullError
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.memory import give_back_memory
from dragoman_server.runtime.session import flush_denormals

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class AttentionWorker:
    """Runs passes one after the other, on a thread of its own.

    Callers take turns after every piece of work, so that one with many pieces does not hold up
    one with few. Belongs to one event loop.

    Args:
        attention_pass: of the model; only this thread calls it.
        max_waiting: pieces of work that may be announced and not yet be done.
    """

    def __init__(self, attention_pass: AttentionPass, max_waiting: int) -> None:
        self._pass = attention_pass
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1, "dragoman-attention", initializer=flush_denormals)

    @contextlib.contextmanager
    def admitted(self, num_pieces: int) -> Iterator["Admission"]:
        """Announces pieces of work; `run` is for those who have.

        Raises:
            QueueFullError: more would wait than may.
        """
        if self._num_waiting and self._num_waiting + num_pieces > self._max_waiting:
            raise QueueFullError(
                f"{self._num_waiting} passes of attention are waiting and {num_pieces} more would exceed the limit of "
                f"{self._max_waiting}",
                retry_after_seconds=1.0,
            )
        admission = Admission(num_pieces, self._announce)
        admission.resume()
        try:
            yield admission
        finally:
            admission.pause()

    def _announce(self, num_pieces: int) -> None:
        self._num_waiting += num_pieces

    async def run(self, work: Callable[[AttentionPass], _T], deadline: float) -> _T:
        """Does a piece of work on the thread. One that has not begun is dropped when the caller leaves.

        Args:
            work: what to do with the pass.
            deadline: on the `time.monotonic` clock, in seconds.

        Raises:
            DeadlineError: the deadline passed before it was this work's turn.
            InferenceError: the work failed.
        """

        def piece() -> _T:
            if time.monotonic() >= deadline:
                raise DeadlineError("the deadline passed before the attention was computed")
            try:
                return work(self._pass)
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
        announce: is told how many more wait, or with a minus, how many fewer.
    """

    def __init__(self, num_pieces: int, announce: Callable[[int], None]) -> None:
        self._num_pieces, self._announce = num_pieces, announce
        self._counts = False

    def pause(self) -> None:
        """They do not count while nobody wants them done."""
        if self._counts:
            self._announce(-self._num_pieces)
        self._counts = False

    def resume(self) -> None:
        """They count again."""
        if not self._counts:
            self._announce(self._num_pieces)
        self._counts = True
