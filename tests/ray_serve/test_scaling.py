"""A second replica comes when there are many calls, with the configuration of deploy/ray."""

import asyncio

import pytest

from benchmarks.ray_cluster import cluster
from benchmarks.settings import SENTENCES, read_sentences
from dragoman import AsyncClient

TEXTS = read_sentences(SENTENCES)
NUM_CALLERS = 200  # three times as many as a replica should have


@pytest.mark.timeout(900)
async def test_many_calls_bring_another_replica() -> None:
    with cluster(1, most=2) as found:
        assert len(found.replicas()) == 1
        async with AsyncClient(found.address, timeout=60) as client:
            is_over = False

            async def caller(number: int) -> None:
                while not is_over:
                    number += 1
                    await client.translate(TEXTS[number % len(TEXTS)], source="en", target="fr")

            callers = [asyncio.create_task(caller(number)) for number in range(NUM_CALLERS)]
            await asyncio.to_thread(found.wait, 2)
            is_over = True
            await asyncio.gather(*callers)
