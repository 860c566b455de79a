"""Streams and calls in front of the queue of a real server that has room for few."""

import asyncio
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process

MAX_WAITING = 30
EN_FR: dict[str, Any] = {"source_language_code": "en", "target_language_code": "fr"}
LINE = "the old dog sees a small bird here\n"

Stub = translation_pb2_grpc.TranslationServiceStub


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[Precision, Bundle]) -> Iterator[ServerProcess]:
    options = ("--max-running", "2", "--max-waiting", str(MAX_WAITING))
    with server_process(tiny_bundles["int8"].folder, *options) as process:
        yield process


@pytest.fixture
async def stub(server: ServerProcess) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as channel:
        yield translation_pb2_grpc.TranslationServiceStub(channel)


async def exchange(stub: Stub, texts: list[str]) -> Counter[str | None]:
    """Outcomes of the texts."""

    async def requests() -> AsyncIterator[pb.ExchangeTranslationsRequest]:
        yield pb.ExchangeTranslationsRequest(config=pb.ExchangeConfig(**EN_FR))
        for text in texts:
            yield pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(input=pb.TranslationInput(text=text)))

    return Counter(
        [
            response.result.WhichOneof("outcome")
            async for response in stub.ExchangeTranslations(requests(), timeout=50)  # type: ignore[attr-defined, arg-type]
        ]
    )


async def translate(stub: Stub, text: str, beam_size: int = 1) -> str:
    request = pb.TranslateRequest(
        inputs=[pb.TranslationInput(text=text)], options=pb.DecodingOptions(beam_size=beam_size), **EN_FR
    )
    try:
        await stub.Translate(request, timeout=50)  # type: ignore[misc]
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def num_waiting(server: ServerProcess) -> float:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        (line,) = (
            line for line in page.read().decode().splitlines() if line.startswith("dragoman_num_requests_waiting{")
        )
    return float(line.split()[1])


@pytest.mark.parametrize(("num_texts", "num_lines"), [(200, 1), (40, 20), (5, MAX_WAITING)])
async def test_a_stream_is_not_refused_for_what_it_has_queued_itself(
    stub: Stub, num_texts: int, num_lines: int
) -> None:
    assert await exchange(stub, [LINE * num_lines] * num_texts) == {"translation": num_texts}


async def test_a_stream_waits_where_calls_have_filled_the_queue(stub: Stub) -> None:
    calls = [asyncio.create_task(translate(stub, LINE * MAX_WAITING, beam_size=2)) for _ in range(4)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)  # it was refused
    assert await exchange(stub, [LINE] * 40) == {"translation": 40}
    assert "RESOURCE_EXHAUSTED" in await asyncio.gather(*calls)


async def test_many_streams_leave_room_for_calls(server: ServerProcess, stub: Stub) -> None:
    streams = [asyncio.create_task(exchange(stub, [LINE * 10] * 10)) for _ in range(8)]
    while num_waiting(server) < MAX_WAITING:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert [await translate(stub, LINE) for _ in range(5)] == ["OK"] * 5
    assert sum(await asyncio.gather(*streams), Counter()) == {"translation": 80}
