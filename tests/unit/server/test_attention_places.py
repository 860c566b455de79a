"""Places for calls that have weights in memory, of which those that are not read give way."""

import asyncio
import weakref

import pytest

from dragoman_server.attention import places as places_module
from dragoman_server.attention.places import Places


class Weights:
    """What a stream keeps."""


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places[Weights]:
    monkeypatch.setattr(places_module, "_PATIENCE_SECONDS", 0.02)
    return Places(1)


def nothing() -> None:
    pass


async def test_what_is_kept_is_there_while_nobody_else_wants_the_place(places: Places[Weights]) -> None:
    weights = Weights()
    with places.reserved(nothing) as place:
        assert await place.hold() is None
        for _ in range(2):
            place.keep(weights)
            await asyncio.sleep(0.05)
            assert await place.hold() is weights


@pytest.mark.parametrize("comes_first", ["stall", "other"])
async def test_a_stream_that_is_not_read_gives_way_with_what_it_keeps(
    places: Places[Weights], comes_first: str
) -> None:
    lost = asyncio.Event()
    with places.reserved(lost.set) as stalled, places.reserved(nothing) as other:
        await stalled.hold()
        weights = Weights()
        is_kept = weakref.ref(weights)
        stalled.keep(weights)
        del weights
        if comes_first == "stall":
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(other.hold(), 5) is None
        assert lost.is_set()
        assert is_kept() is None
        back = asyncio.create_task(stalled.hold())
        await asyncio.sleep(0.05)
        assert not back.done()  # the other is at work
        other.close()
        assert await asyncio.wait_for(back, 5) is None


async def test_a_stream_that_is_read_keeps_its_place(places: Places[Weights]) -> None:
    weights = Weights()
    with places.reserved(nothing) as place, places.reserved(nothing) as other:
        await place.hold()
        waiting = asyncio.create_task(other.hold())
        for _ in range(10):
            place.keep(weights)
            await asyncio.sleep(0.005)
            assert await place.hold() is weights
        assert not waiting.done()
        waiting.cancel()


async def test_places_go_round_in_order_and_none_is_lost_by_those_who_leave(places: Places[Weights]) -> None:
    order: list[int] = []

    async def stream(number: int) -> None:
        with places.reserved(nothing) as place:
            await place.hold()
            order.append(number)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(stream(number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # holds the place
    tasks[1].cancel()  # would be the next
    tasks[4].cancel()  # waits
    await asyncio.sleep(0)
    tasks[2].cancel()  # was just given the place
    await asyncio.wait(tasks)
    assert order == [0, 3, 5, 6, 7, 8, 9]
    with places.reserved(nothing) as place:
        assert await asyncio.wait_for(place.hold(), 5) is None
