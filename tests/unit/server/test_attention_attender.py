"""Callers who read slowly, or not at all."""

import asyncio
from collections.abc import Iterator

import pytest

from dragoman_server.attention.chunks import Chunk
from dragoman_server.attention.results import AttentionHeader
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.errors import DeadlineError
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service import attention as attention_service
from dragoman_server.service.attention import Attender
from dragoman_server.service.calls import AttentionCall, Pair, SelectionFields
from dragoman_server.text.tokenizer import Tokenizer
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS, NOW, config
from support.server_parts import FakeEngine

CALL = AttentionCall(Pair("the old dog", [7, 8, 9]), config(), SelectionFields(kinds=(1, 2, 3)))


@pytest.fixture
def worker(tiny_bundles: dict[Precision, Bundle]) -> Iterator[AttentionWorker]:
    worker = AttentionWorker(AttentionPass(tiny_bundles["fp32"], num_threads=1), max_waiting=100)
    yield worker
    worker.close()


@pytest.fixture
def attender(worker: AttentionWorker, tiny_bundles: dict[Precision, Bundle]) -> Iterator[Attender]:
    bundle = tiny_bundles["fp32"]
    tokenizer = Tokenizer(bundle.tokenizer_path)
    attender = Attender(bundle.manifest, "tiny", tokenizer, FakeEngine(), worker, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)
    yield attender
    attender.close()


async def test_nothing_is_computed_ahead_of_the_reader(attender: Attender, monkeypatch: pytest.MonkeyPatch) -> None:
    computed, may_go_on, parts = [], asyncio.Event(), list[AttentionHeader | Chunk]()
    weights = AttentionPass.weights

    def counted(self: AttentionPass, *arguments: object) -> object:
        computed.append(arguments[0])
        return weights(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AttentionPass, "weights", counted)

    async def send(part: AttentionHeader | Chunk) -> None:
        parts.append(part)
        if isinstance(part, Chunk):
            await may_go_on.wait()

    call = asyncio.create_task(attender.attention(CALL, NOW, send))
    while len(parts) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert computed == ["encoder"]
    may_go_on.set()
    await call
    assert computed == ["encoder", "decoder", "cross"]


async def test_who_reads_nothing_is_let_go(attender: Attender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_service, "_MAX_STALL_SECONDS", 0.01)

    async def send(part: AttentionHeader | Chunk) -> None:
        if isinstance(part, Chunk):
            await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match=r"nothing was read for 0\.01 seconds"):
        await attender.attention(CALL, NOW, send)


async def test_those_who_have_weights_in_memory_are_few(attender: Attender) -> None:
    may_go_on, sending = asyncio.Event(), list[int]()

    async def caller(index: int) -> None:
        async def send(part: AttentionHeader | Chunk) -> None:
            if isinstance(part, Chunk):
                sending.append(index)
                await may_go_on.wait()

        await attender.attention(CALL, NOW, send)

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
