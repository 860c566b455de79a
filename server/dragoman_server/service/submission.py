"""What all handlers of calls do between the event loop and the threads behind it."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.engine.sequence import Completion, Request

_T = TypeVar("_T")

# Tokenizing takes about a microsecond for ten characters, a thread switch under load some
# hundred: only what would hold up other calls for longer leaves the event loop.
_MAX_CHARACTERS_ON_LOOP = 2_000
# What is done without a pause, unless one text has more: about a millisecond.
_PIECE_CHARACTERS = 10_000


@contextmanager
def submitted(
    engine: SegmentEngine,
    requests: Sequence[Request],
    caller: object = None,
    on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
    *,
    identity: object = None,
    is_unlimited: bool = False,
) -> Iterator[list[asyncio.Future[Completion]]]:
    """Queues requests; what is not answered at the end of the context is withdrawn."""
    futures = (
        engine.submit(requests, caller, on_progress, identity=identity, is_unlimited=is_unlimited) if requests else []
    )
    try:
        yield [asyncio.wrap_future(future) for future in futures]
    finally:
        # Those that are done do not mind. The others are in vain: one has failed, or the
        # caller has left.
        for future in futures:
            future.cancel()


async def completed(
    engine: SegmentEngine, requests: Sequence[Request], *, identity: object = None, is_unlimited: bool = False
) -> list[Completion]:
    """Queues requests and waits for all answers, or for the first failure, which withdraws the others.

    The event loop wakes up once, not for every answer, each of which would take the interpreter from the lanes.

    Raises:
        QueueFullError, NotInTimeError, EngineDeadError: as `SegmentEngine.submit`.
        DragomanError: a request has failed.
        asyncio.CancelledError: a request was withdrawn.
    """
    futures = engine.submit(requests, identity=identity, is_unlimited=is_unlimited) if requests else []
    loop, ended, count = asyncio.get_running_loop(), asyncio.Event(), itertools.count(1)
    num_futures = len(futures)  # futures keep what they call: it must not hold them

    def on_answer(future: Future[Completion]) -> None:  # on a lane's thread, or where it is cancelled
        has_failed = future.cancelled() or future.exception()
        if (next(count) == num_futures or has_failed) and not (ended.is_set() or loop.is_closed()):
            loop.call_soon_threadsafe(ended.set)

    for future in futures:
        future.add_done_callback(on_answer)
    try:
        if futures:
            await ended.wait()
        for future in futures:
            if future.cancelled():  # by somebody else
                raise asyncio.CancelledError
            if future.done():
                future.result()
        return [future.result() for future in futures]
    finally:
        ended.set()
        while futures:  # an error that is raised holds this frame, which should not hold them
            futures.pop().cancel()  # those that are done do not mind


class StreamBacklog:
    """The segments of all streams that are queued or decoded, and who may add to them. Belongs to one event loop.

    They take no room from calls, which cannot wait: streams can, as they are not read from meanwhile.

    Args:
        max_segments: while there are so many, only those streams may go on that have less than an equal share of them.
    """

    def __init__(self, max_segments: int) -> None:
        self._max_segments = max_segments
        self._nums_segments: Counter[object] = Counter()  # by stream, those that have some

    def may_grow(self, stream: object) -> bool:
        """Whether a stream may queue one more input, however many segments that has."""
        share = self._max_segments / max(1, len(self._nums_segments))
        return self._nums_segments.total() < self._max_segments or self._nums_segments[stream] < share

    @contextmanager
    def submitted(
        self, engine: SegmentEngine, requests: Sequence[Request], stream: object, identity: object = None
    ) -> Iterator[list[asyncio.Future[Completion]]]:
        """Queues the requests of an input; what is not answered at the end of the context is withdrawn."""
        self._nums_segments[stream] += len(requests)
        try:
            with submitted(engine, requests, stream, identity=identity, is_unlimited=True) as answers:
                yield answers
        finally:
            self._nums_segments[stream] -= len(requests)
            self._nums_segments = +self._nums_segments


class TextThreads:
    """Does what takes time with the size of texts.

    What is short has a thread of its own. What is long is done in pieces: after each it is another caller's turn, and
    none is begun for a caller who has left.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, thread_name_prefix="dragoman-text")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="dragoman-long-text")

    async def run(self, num_characters: int, work: Callable[[], _T]) -> _T:
        """Does the work, in a thread where it takes time."""
        if num_characters <= _MAX_CHARACTERS_ON_LOOP:
            return work()
        thread = self._short if num_characters <= _PIECE_CHARACTERS else self._long
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    async def run_all(self, nums_characters: Sequence[int], results: Iterator[_T]) -> list[_T]:
        """Takes all results, each of which is work on so many characters."""
        num_characters = sum(nums_characters)
        sized = zip(nums_characters, results, strict=True)
        found: list[_T] = []

        def piece() -> bool:
            """Goes on where the last piece ended; whether there is more."""
            num_left = _PIECE_CHARACTERS
            for number, result in sized:
                found.append(result)
                num_left -= number
                if num_left < 0:
                    return True
            return False

        while await self.run(num_characters, piece):
            pass
        return found

    def close(self) -> None:
        """Ends the threads. Work still to be done fails."""
        for thread in (self._short, self._long):
            thread.shutdown(cancel_futures=True)
