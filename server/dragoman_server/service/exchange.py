"""Many inputs over one stream: answered as they finish, and no more of them at a time than the caller keeps up with."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

_Input = TypeVar("_Input")
_Answer = TypeVar("_Answer")

Begun = Callable[[int], None]
"""Told with how many segments the work on an input has begun, and again where it goes on with others."""


async def exchange(
    inputs: AsyncIterator[_Input],
    answer: Callable[[_Input, Begun], Coroutine[Any, Any, _Answer]],
    max_in_flight: int,
    may_go_on: Callable[[], bool] = lambda: True,
) -> AsyncGenerator[_Answer, None]:
    """Gives the answer to every input, in the order in which they are ready.

    An answer takes up room until the next one is asked for. Closing the generator, or cancelling the task that awaits
    it, cancels what is under way.

    Args:
        inputs: read one by one, the next when the work on one has begun and there is room for it.
        answer: its errors end the exchange.
        max_in_flight: segments of inputs that are read and whose answers still take up room, from which on there is
            none. An input without any counts as one.
        may_go_on: whether others leave room. Asked again when the work on an input has ended.

    Raises:
        Exception: whatever the two above raise.
    """
    in_flight: dict[asyncio.Task[_Answer], float] = {}  # segments; infinitely many until their number is known
    changed = asyncio.Event()
    finished: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()  # None: there are no more inputs

    def start(item: _Input) -> None:
        def begin(num_segments: int) -> None:
            in_flight[task] = max(1, num_segments)
            changed.set()

        def finish(_: object) -> None:
            if math.isinf(in_flight[task]):  # there was nothing to be done
                in_flight[task] = 1
            changed.set()
            finished.put_nowait(task)

        task = asyncio.create_task(answer(item, begin))
        in_flight[task] = math.inf
        task.add_done_callback(finish)

    async def read() -> None:
        async for item in inputs:
            start(item)
            while sum(in_flight.values()) >= max_in_flight or not may_go_on():
                changed.clear()
                await changed.wait()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: finished.put_nowait(None))
    try:
        while in_flight or not reading.done():
            task = await finished.get()
            if task is None:
                reading.result()  # what is wrong with the inputs is told at once
            else:
                yield task.result()
                del in_flight[task]
                changed.set()
        reading.result()
    finally:
        for left in (reading, *in_flight):
            left.cancel()
        await asyncio.gather(reading, *in_flight, return_exceptions=True)
