"""Many bulk exchanges at once in front of a real server: single calls find room beside them, whoever they are of."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import server_process

NUM_EXCHANGES = 24
EN_FR: dict[str, Any] = {"source_language_code": "en", "target_language_code": "fr"}
LINE = "the old dog sees a small bird here\n"

Stub = translation_pb2_grpc.TranslationServiceStub


async def exchange(stub: Stub, begun: "Counter[int]", number: int) -> None:
    """Sends texts of 20 lines until it is cancelled, and counts what was translated."""

    async def requests() -> AsyncIterator[pb.ExchangeTranslationsRequest]:
        yield pb.ExchangeTranslationsRequest(config=pb.ExchangeConfig(priority=pb.PRIORITY_BULK, **EN_FR))
        text = pb.TranslationInput(text=LINE * 20)
        while True:
            yield pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(input=text))

    async for response in stub.ExchangeTranslations(requests()):  # type: ignore[attr-defined, arg-type]
        assert response.result.WhichOneof("outcome") == "translation"
        begun[number] += 1


async def translate(stub: Stub, priority: "pb.Priority.ValueType") -> str:
    request = pb.TranslateRequest(inputs=[pb.TranslationInput(text=LINE)], priority=priority, **EN_FR)
    try:
        await stub.Translate(request, timeout=60)  # type: ignore[misc]
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


async def test_24_bulk_exchanges_leave_room_for_single_calls(tiny_bundles: dict[Precision, Bundle]) -> None:
    options = ("--max-running", "4", "--max-waiting", "60", "--lanes", "1", "--max-exchange-in-flight", "40")
    with server_process(tiny_bundles["int8"].folder, *options) as server:
        async with grpc.aio.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel:
            stub, begun = Stub(channel), Counter[int]()
            exchanges = [asyncio.create_task(exchange(stub, begun, number)) for number in range(NUM_EXCHANGES)]
            while len(begun) < NUM_EXCHANGES // 2 and not any(task.done() for task in exchanges):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            priorities = (pb.PRIORITY_INTERACTIVE, pb.PRIORITY_UNSPECIFIED)
            outcomes = [await translate(stub, priorities[number % 2]) for number in range(60)]
            assert Counter(outcomes) == {"OK": 60}
            assert not any(task.done() for task in exchanges)  # none was refused, and all go on
            for task in exchanges:
                task.cancel()
            await asyncio.gather(*exchanges, return_exceptions=True)
