import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from dragoman import AsyncClient, Client, RequestCancelledError, UnavailableError, UnimplementedError
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer


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


def test_a_new_client_does_not_wait_for_what_an_older_one_waits_for() -> None:
    with FakeServer() as server:
        address = server.address
    with Client(address) as older:
        with pytest.raises(UnavailableError):  # it waits before it tries again
            older.translate("a", source="en", target="fr", timeout=0.3)
        again = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
        assert again.add_insecure_port(address)
        again.start()
        with Client(address) as newer, pytest.raises(UnimplementedError):  # of a server without a service
            newer.translate("a", source="en", target="fr", timeout=10)
        again.stop(None)


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
