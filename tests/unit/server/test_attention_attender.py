"""Callers who read slowly, or not at all."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from dragoman_server.attention.chunks import Chunk
from dragoman_server.attention.selection import SelectionFields
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.attention import Attender
from dragoman_server.service.calls import AttentionCall, Pair
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS, NOW, config
from support.server_parts import FakeEngine

SELECTION = SelectionFields(kinds=("encoder", "decoder", "cross"))
CALL = AttentionCall(Pair("the old dog", [7, 8, 9]), config(), SELECTION)


@pytest.fixture
def registry(tiny_bundles: dict[Precision, Bundle]) -> Iterator[Registry]:
    bundle = tiny_bundles["fp32"]
    worker = AttentionWorker(AttentionPass(bundle, num_threads=1), max_waiting=100)
    with Model(bundle, FakeEngine(), worker) as model:
        yield Registry.of(model)


@pytest.fixture
def attender(registry: Registry) -> Iterator[Attender]:
    attender = Attender(registry, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)
    yield attender
    attender.close()


async def test_nothing_is_computed_ahead_of_the_reader(attender: Attender, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, weights = list[object](), AttentionPass.weights

    def counted(self: AttentionPass, *arguments: object) -> object:
        computed.append(arguments[0])
        return weights(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AttentionPass, "weights", counted)
    parts = attender.attention(CALL, NOW)
    await anext(parts)
    assert computed == []
    assert isinstance(await anext(parts), Chunk)
    assert computed == ["encoder"]
    assert [part async for part in parts]
    assert computed == ["encoder", "decoder", "cross"]


async def test_a_call_has_its_model_until_its_last_weights_are_taken(attender: Attender, registry: Registry) -> None:
    parts = attender.attention(CALL, NOW)
    assert registry.num_leases == 0
    await anext(parts)
    assert registry.num_leases == 1
    assert [part async for part in parts]
    assert registry.num_leases == 0


async def test_those_who_have_weights_in_memory_are_few(attender: Attender) -> None:
    may_go_on, sending = asyncio.Event(), list[int]()

    async def caller(index: int) -> None:
        async with aclosing(attender.attention(CALL, NOW)) as parts:
            async for part in parts:
                if isinstance(part, Chunk):
                    sending.append(index)
                    await may_go_on.wait()

    calls = [asyncio.create_task(caller(index)) for index in range(7)]
    while len(set(sending)) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert len(set(sending)) == 4
    for call in calls[:2]:
        call.cancel()
    while len(set(sending)) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    may_go_on.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert len(set(sending)) == 7
