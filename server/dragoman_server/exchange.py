"""Many inputs over one stream: answered as they finish, and no more of them at a time than the caller keeps up with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

_Input = TypeVar("_Input")
_Answer = TypeVar("_Answer")


async def exchange(
    inputs: AsyncIterator[_Input],
    answer: Callable[[_Input], Coroutine[Any, Any, _Answer]],
    send: Callable[[_Answer], Awaitable[None]],
    max_in_flight: int,
) -> None:
    """Answers every input, and returns when `inputs` has ended and all answers are sent.

    Cancelling the task that awaits this cancels what is under way.

    Args:
        inputs: read one by one, and not beyond `max_in_flight`.
        answer: its errors end the exchange.
        send: one at a time; returns when there is room for more.
        max_in_flight: inputs that are read and whose answers are not sent yet.

    Raises:
        Exception: whatever the three above raise.
    """
    permits = asyncio.Semaphore(max_in_flight)
    finished: asyncio.Queue[asyncio.Task[_Answer] | None] = asyncio.Queue()  # None: there are no more inputs
    under_way: set[asyncio.Task[_Answer]] = set()

    async def read() -> None:
        await permits.acquire()
        async for item in inputs:
            task = asyncio.create_task(answer(item))
            under_way.add(task)
            task.add_done_callback(finished.put_nowait)
            await permits.acquire()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: finished.put_nowait(None))
    try:
        while under_way or not reading.done():
            task = await finished.get()
            if task is None:
                reading.result()  # what is wrong with the inputs is told at once
            else:
                under_way.discard(task)
                await send(task.result())
                permits.release()
        reading.result()
    finally:
        for left in (reading, *under_way):
            left.cancel()
        await asyncio.gather(reading, *under_way, return_exceptions=True)
