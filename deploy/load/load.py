"""Calls a server in all the ways that its dashboard shows, for ever: the service `load` of docker-compose.yml.

    python deploy/load/load.py [HOST:PORT]

Needs the Python client alone. `LOAD_CALLERS` is the number of callers, each with a call after the other.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys

from dragoman import AsyncClient, DragomanError

TEXTS = (
    "Good morning.",
    "The little dog saw a bird in the garden and ran after it.",
    "When the rain had stopped, the children went back to the river, where they had left their boat the day before.",
    "We shall meet at the station at eight; please bring the letter that I gave you, and do not tell anybody.",
)
# Its translation is likely to be suspect.
ODD_TEXT = "Xqzt 4711-B frobnicated zzyx, zzyx, zzyx, zzyx!"
SECONDS_PER_CALL = 0.05


async def call(client: AsyncClient, number: int, source: str, target: str) -> None:
    """One call, of a kind that goes by its number."""
    text = TEXTS[number % len(TEXTS)]
    match number % 12:
        case 0:
            await client.translate(list(TEXTS), source=source, target=target)
        case 1:
            async for _ in client.stream(text, source=source, target=target):
                pass
        case 2:
            await client.attention(text, source=source, target=target)
        case 3:
            await client.translate(ODD_TEXT, source=source, target=target, include_signals=True)
        case 4:  # is too late
            await client.translate(list(TEXTS), source=source, target=target, timeout=0.004)
        case 5:  # is wrong
            await client.translate(text, source=source, target="xx")
        case 6:  # the caller leaves
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await client.translate(list(TEXTS), source=source, target=target)
        case _:
            await client.translate(text, source=source, target=target)


async def call_for_ever(client: AsyncClient, first: int, source: str, target: str) -> None:
    """Calls one after the other; what goes wrong is what the dashboard shows."""
    for number in itertools.count(first):
        with contextlib.suppress(DragomanError):
            await call(client, number, source, target)
        await asyncio.sleep(SECONDS_PER_CALL)


async def a_pair(client: AsyncClient) -> tuple[str, str]:
    """Languages that the server translates between; waits for a server that has any."""
    while True:
        with contextlib.suppress(DragomanError):
            for source, targets in (await client.languages()).items():
                return source, targets[0]
        await asyncio.sleep(1)


async def main(address: str, num_callers: int) -> None:
    """Waits for the server, then calls until SIGTERM."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sys.exit, 0)
    async with AsyncClient(address) as client:
        source, target = await a_pair(client)
        async with asyncio.TaskGroup() as callers:
            for number in range(num_callers):
                callers.create_task(call_for_ever(client, number * 5, source, target))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "localhost:50051", int(os.environ.get("LOAD_CALLERS", "8"))))
