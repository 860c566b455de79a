"""Places for calls: order, limits, and what becomes of those who leave the line."""

import asyncio
from contextlib import suppress

import pytest

from dragoman_server.access import places
from dragoman_server.access.places import Places


async def waiting(line: Places, number: int) -> list[asyncio.Task[bool]]:
    """So many calls, which ask for a place one after the other."""
    tasks = []
    for _ in range(number):
        tasks.append(asyncio.create_task(line.take()))
        await asyncio.sleep(0)
    return tasks


async def test_calls_come_in_in_their_order_and_never_more_than_there_are_places() -> None:
    line = Places(2)
    assert await line.take()
    assert await line.take()
    first, second = await waiting(line, 2)
    line.leave()
    assert await first
    assert not second.done()
    assert line.num_taken == 2
    (third,) = await waiting(line, 1)
    line.leave()
    assert await second
    assert not third.done()  # who waits is before who comes
    line.leave()
    assert await third
    assert line.num_taken == 2


async def test_for_each_place_four_calls_wait() -> None:
    line = Places(2)
    assert await line.take()
    assert await line.take()
    first, *_ = await waiting(line, 8)
    assert not await line.take()
    line.leave()
    assert await first


async def test_a_call_waits_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MAX_WAITING_SECONDS", 0.01)
    line = Places(1)
    assert await line.take()
    assert not await line.take()
    line.leave()
    assert line.num_taken == 0
    assert await line.take()


@pytest.mark.parametrize("is_let_in", [False, True])
async def test_a_caller_who_leaves_the_line_keeps_no_place(is_let_in: bool) -> None:
    line = Places(1)
    assert await line.take()
    (leaving,) = await waiting(line, 1)
    if is_let_in:  # in the same moment
        line.leave()
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    if not is_let_in:
        line.leave()
    assert line.num_taken == 0
    assert await line.take()


async def test_more_places_let_more_in_and_fewer_put_nobody_out() -> None:
    line = Places(1)
    assert await line.take()
    calls = await waiting(line, 1)
    line.number = None
    assert await calls[0]
    assert all(await asyncio.gather(*(line.take() for _ in range(9))))
    line.number = 3
    assert line.num_taken == 11
    (last,) = await waiting(line, 1)
    for _ in range(8):
        line.leave()
    await asyncio.sleep(0)
    assert not last.done()
    line.leave()
    assert await last
