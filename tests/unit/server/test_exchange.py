import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import pytest

from dragoman_server.service.exchange import Begun, exchange

_Input = TypeVar("_Input")
_Answer = TypeVar("_Answer")


async def send_all(
    inputs: AsyncIterator[_Input],
    answer: Callable[[_Input, Begun], Coroutine[Any, Any, _Answer]],
    send: Callable[[_Answer], Awaitable[None]],
    max_in_flight: int,
) -> None:
    """Takes the next answer when the last one is sent, as front ends do."""
    async with aclosing(exchange(inputs, answer, max_in_flight)) as answers:
        async for found in answers:
            await send(found)


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_every_input_is_answered_once() -> None:
    answers: list[int] = []

    async def answer(number: int, begin: Begun) -> int:
        begin(1)
        await asyncio.sleep(0.001 * (number % 3))
        return -number

    async def send(number: int) -> None:
        answers.append(number)

    await send_all(numbers(50), answer, send, 7)
    assert sorted(answers) == [-number for number in reversed(range(50))]
    assert answers != sorted(answers, reverse=True)  # as they are ready


async def test_inputs_are_read_no_further_than_answers_are_sent() -> None:
    read: list[int] = []
    room = asyncio.Semaphore(0)

    async def inputs() -> AsyncIterator[int]:
        async for number in numbers(30):
            read.append(number)
            yield number

    async def answer(number: int, _: Begun) -> int:
        return number

    async def send(_: int) -> None:
        await room.acquire()

    task = asyncio.create_task(send_all(inputs(), answer, send, 5))
    for num_sent in range(4):
        await asyncio.sleep(0.01)
        assert len(read) == 5 + num_sent
        room.release()
    for _ in range(30):
        room.release()
    await task


async def test_inputs_are_counted_by_their_segments() -> None:
    """Five may be in flight, and as many more as the last of them has."""
    read: list[int] = []
    sent = asyncio.Semaphore(0)

    async def inputs() -> AsyncIterator[int]:
        for num_segments in (2, 2, 30, 1, 1, 0, 0, 0, 4, 1):
            read.append(num_segments)
            yield num_segments

    async def answer(num_segments: int, begin: Begun) -> int:
        begin(num_segments)
        return num_segments

    async def send(_: int) -> None:
        await sent.acquire()

    task = asyncio.create_task(send_all(inputs(), answer, send, 5))
    for num_read in (3, 3, 3, 8, 9, 9, 9, 9, 10):
        await asyncio.sleep(0.01)
        assert len(read) == num_read
        sent.release()
    sent.release()
    await task


async def test_the_next_input_is_not_read_before_the_work_on_one_has_begun() -> None:
    read: list[int] = []
    waiting: list[asyncio.Event] = []

    async def inputs() -> AsyncIterator[int]:
        async for number in numbers(3):
            read.append(number)
            yield number

    async def answer(number: int, begin: Begun) -> int:
        waiting.append(asyncio.Event())
        await waiting[-1].wait()
        begin(1)
        return number

    async def send(_: int) -> None:
        pass

    task = asyncio.create_task(send_all(inputs(), answer, send, 100))
    for number in range(3):
        await asyncio.sleep(0.01)
        assert read == [*range(number + 1)]
        waiting[-1].set()
    await task


@pytest.mark.parametrize("where", ["inputs", "answer", "send"])
async def test_an_error_ends_it_and_what_is_under_way(where: str) -> None:
    cancelled: list[int] = []

    async def inputs() -> AsyncIterator[int]:
        async for number in numbers(4):
            yield number
        if where == "inputs":
            raise ValueError(where)
        await asyncio.Event().wait()

    async def answer(number: int, begin: Begun) -> int:
        begin(1)
        if number == 3:
            await asyncio.sleep(0)  # the others wait by now
            if where == "answer":
                raise ValueError(where)
            return number
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def send(_: int) -> None:
        if where == "send":
            raise ValueError(where)

    with pytest.raises(ValueError, match=where):
        await send_all(inputs(), answer, send, 10)
    assert sorted(cancelled) == [0, 1, 2]


async def test_an_error_of_the_inputs_is_told_after_the_last_answer_too() -> None:
    """It may come while that is being sent."""
    is_sending = asyncio.Event()

    async def inputs() -> AsyncIterator[int]:
        yield 0
        await is_sending.wait()
        raise ValueError("inputs")

    async def answer(number: int, _: Begun) -> int:
        return number

    async def send(_: int) -> None:
        is_sending.set()
        await asyncio.sleep(0.01)

    with pytest.raises(ValueError, match="inputs"):
        await send_all(inputs(), answer, send, 10)
