import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from dragoman import AsyncClient, Client, RequestCancelledError
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, upper


def test_a_closed_client_refuses_calls(server: FakeServer) -> None:
    client = Client(server.address)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.translate("a", source="en", target="fr")
    with pytest.raises(RuntimeError, match="closed"):
        client.health()


async def test_a_closed_async_client_refuses_calls(server: FakeServer) -> None:
    client = AsyncClient(server.address)
    await client.health()
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.translate("a", source="en", target="fr")
    with pytest.raises(RuntimeError, match="closed"):
        await client.health()


def test_clients_of_one_process_share_no_connection(server: FakeServer) -> None:
    """Nor the pause that gRPC makes before it tries a broken one again."""
    peers: list[str] = []

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        peers.append(context.peer())
        return upper(request, context)

    server.handler = answer
    with Client(server.address) as older, Client(server.address) as newer:
        for client in (older, newer, older, newer):
            client.translate("a", source="en", target="fr")
    assert peers[:2] == peers[2:]
    assert peers[0] != peers[1]


@pytest.mark.parametrize("num_under_way", [1, 2])
def test_closing_ends_calls_under_way(server: FakeServer, num_under_way: int) -> None:
    arrived = threading.Event()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if len(server.requests) == num_under_way:
            arrived.set()
        return server.hang(request, context)

    server.handler = answer
    client = Client(server.address)
    with ThreadPoolExecutor(1) as pool:
        texts = ["a"] * 128 * num_under_way
        waiting = pool.submit(client.translate, texts, source="en", target="fr")
        assert arrived.wait(10)
        client.close()
        with pytest.raises(RequestCancelledError):
            waiting.result(timeout=10)


async def test_closing_ends_async_calls_under_way(server: FakeServer) -> None:
    arrived = threading.Event()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        arrived.set()
        return server.hang(request, context)

    server.handler = answer
    client = AsyncClient(server.address)
    task = asyncio.create_task(client.translate(["a"] * 300, source="en", target="fr"))
    assert await asyncio.to_thread(arrived.wait, 10)
    await client.close()
    with pytest.raises(RequestCancelledError):
        await task


async def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    arrived = threading.Event()
    ended = threading.Event()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        context.add_callback(ended.set)
        arrived.set()
        return server.hang(request, context)

    server.handler = answer
    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.translate("a", source="en", target="fr"))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)


def test_threads_share_a_client(server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(32)]
    with Client(server.address) as client, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda text: client.translate(text, source="en", target="fr").text, texts)
        assert list(answers) == [text.upper() for text in texts]


async def test_tasks_share_a_client(server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(32)]
    async with AsyncClient(server.address) as client:
        answers = await asyncio.gather(*(client.translate(text, source="en", target="fr") for text in texts))
    assert [answer.text for answer in answers] == [text.upper() for text in texts]


def test_the_address_comes_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_ADDRESS", server.address)
    with Client() as client:
        assert client.translate("a", source="en", target="fr").text == "A"
