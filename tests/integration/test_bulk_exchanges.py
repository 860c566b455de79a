"""Many bulk exchanges at once in front of a real server: single calls find room beside them, whoever they are of."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import server_process

NUM_EXCHANGES = 24
EN_FR: dict[str, Any] = {"source_language_code": "en", "target_language_code": "fr"}
LINE = "the old dog sees a small bird here\n"

Stub = translation_pb2_grpc.TranslationServiceStub


async def exchange(stub: Stub, begun: "Counter[int]", number: int, may_end: asyncio.Event) -> int:
    """Sends texts of 20 lines until it may end; returns how many were translated."""
    num_sent = 0

    async def requests() -> AsyncIterator[pb.ExchangeTranslationsRequest]:
        nonlocal num_sent
        config = pb.ExchangeConfig(priority=pb.PRIORITY_BULK, **EN_FR)
        yield pb.ExchangeTranslationsRequest(config=config)
        while not may_end.is_set():
            num_sent += 1
            text = pb.TranslationInput(text=LINE * 20)
            yield pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(input=text))

    num_translated = 0
    async for response in stub.ExchangeTranslations(requests(), timeout=100):  # type: ignore[attr-defined, arg-type]
        assert response.result.WhichOneof("outcome") == "translation"
        begun[number] += 1
        num_translated += 1
    assert num_translated == num_sent
    return num_translated


async def translate(stub: Stub, priority: "pb.Priority.ValueType") -> str:
    request = pb.TranslateRequest(inputs=[pb.TranslationInput(text=LINE)], priority=priority, **EN_FR)
    try:
        await stub.Translate(request, timeout=60)  # type: ignore[misc]
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


@pytest.mark.parametrize("is_one_caller", [True, False])
async def test_24_bulk_exchanges_leave_room_for_single_calls(
    tiny_bundles: dict[Precision, Bundle], is_one_caller: bool
) -> None:
    options = ("--max-running", "4", "--max-waiting", "60", "--lanes", "1", "--max-exchange-in-flight", "100")
    channel_options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with server_process(tiny_bundles["int8"].folder, *options) as server:
        async with (
            grpc.aio.insecure_channel(server.address, channel_options) as of_exchanges,
            grpc.aio.insecure_channel(server.address, channel_options) as of_calls,
        ):
            bulk, others = Stub(of_exchanges), Stub(of_exchanges if is_one_caller else of_calls)
            begun, may_end = Counter[int](), asyncio.Event()
            exchanges = [asyncio.create_task(exchange(bulk, begun, number, may_end)) for number in range(NUM_EXCHANGES)]
            while len(begun) < NUM_EXCHANGES // 2 and not any(task.done() for task in exchanges):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            priorities = (pb.PRIORITY_INTERACTIVE, pb.PRIORITY_UNSPECIFIED)
            outcomes = [await translate(others, priorities[number % 2]) for number in range(60)]
            assert Counter(outcomes) == {"OK": 60}
            may_end.set()
            assert all(await asyncio.gather(*exchanges))
