"""Calls during which nothing is sent for longer than the client's pings are apart, over loopback."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from dragoman import AsyncClient, Client, _channel
from support.server_parts import RunningServer

# gRPC pings no more often.
SECONDS_PER_PING = 1.0
# A server that minds pings without data between them ends the connection at the fourth.
PAUSE_SECONDS = 6 * SECONDS_PER_PING
TEXTS = ("One cat.", "Two cats.")


@pytest.fixture(autouse=True)
def frequent_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_channel, "KEEPALIVE_TIME_MS", round(SECONDS_PER_PING * 1000))


def exchanged(server: RunningServer) -> list[str]:
    def texts() -> Iterator[str]:
        yield TEXTS[0]
        time.sleep(PAUSE_SECONDS)
        yield TEXTS[1]

    with Client(server.address) as client:
        return [getattr(result, "text", "") for _, result in client.exchange(texts(), source="en", target="fr")]


async def exchanged_async(server: RunningServer) -> list[str]:
    async def texts() -> AsyncIterator[str]:
        yield TEXTS[0]
        await asyncio.sleep(PAUSE_SECONDS)
        yield TEXTS[1]

    async with AsyncClient(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        return [getattr(result, "text", "") async for _, result in results]


def translated(server: RunningServer) -> str:
    with Client(server.address) as client:
        return client.translate(TEXTS[0], source="en", target="fr").text


async def translated_async(server: RunningServer) -> str:
    async with AsyncClient(server.address) as client:
        return (await client.translate(TEXTS[0], source="en", target="fr")).text


def streamed(server: RunningServer) -> str:
    with Client(server.address) as client:
        return "".join(client.stream(TEXTS[0], source="en", target="fr"))


async def streamed_async(server: RunningServer) -> str:
    async with AsyncClient(server.address) as client:
        return "".join([piece async for piece in client.stream(TEXTS[0], source="en", target="fr")])


async def test_an_exchange_outlasts_a_pause_and_calls_that_wait_are_answered_and_were_sent_once(
    server: RunningServer,
) -> None:
    """Each on a connection of its own, all at the same time."""
    exchanges = asyncio.gather(asyncio.to_thread(exchanged, server), exchanged_async(server))
    await server.engine.submitted(2)  # the first texts, which are answered at once
    server.engine.is_holding = True
    calls = asyncio.gather(
        asyncio.to_thread(translated, server),
        asyncio.to_thread(streamed, server),
        translated_async(server),
        streamed_async(server),
    )
    await server.engine.submitted(2 + 4)
    await asyncio.sleep(PAUSE_SECONDS)
    server.engine.is_holding = False
    server.engine.release()
    assert list(await calls) == [TEXTS[0]] * 4
    assert list(await exchanges) == [list(TEXTS)] * 2
    assert len(server.engine.requests) == 4 + 2 * len(TEXTS)
