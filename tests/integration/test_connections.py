"""Connections over loopback: many calls at once, and callers that are gone without a word."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.errors import QueueFullError
from dragoman_server.wire import server as server_module
from support.caller import TRANSLATE, Caller, count, counted, refusal, unary
from support.server_parts import CONFIG, RunningServer, running_server

REQUEST = pb.TranslateRequest(
    source_language_code="en", target_language_code="fr", inputs=[pb.TranslationInput(text="Hello.")]
)
# gRPC by itself cancels some of more than 1,000 that come at once, and all beyond 3,000.
NUM_CALLS = 3_500


async def test_all_of_many_calls_at_once_are_answered_and_counted(server: RunningServer, caller: Caller) -> None:
    calls = [caller.start(REQUEST, timeout=50) for _ in range(NUM_CALLS)]
    assert Counter([await call.code() for call in calls]) == {grpc.StatusCode.OK: NUM_CALLS}
    assert count(server, "OK") == NUM_CALLS


async def test_each_of_many_calls_at_once_that_are_refused_learns_when_to_come_back(
    server: RunningServer, caller: Caller
) -> None:
    server.engine.refusal = QueueFullError("the queue is full", 1.5)
    calls = [caller.start(REQUEST, timeout=50) for _ in range(NUM_CALLS)]
    assert Counter([await call.code() for call in calls]) == {grpc.StatusCode.RESOURCE_EXHAUSTED: NUM_CALLS}
    assert Counter([(await refusal(call)).reason for call in calls]) == {"QUEUE_FULL": NUM_CALLS}
    assert count(server, "RESOURCE_EXHAUSTED") == NUM_CALLS


async def test_a_call_whose_message_does_not_come_in_time_is_counted(server: RunningServer, caller: Caller) -> None:
    async def messages() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = caller.channel.stream_unary(TRANSLATE)
    call = method(messages(), timeout=1.0)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await counted(server, "DEADLINE_EXCEEDED")


class Network:
    """Passes connections on to a server, until it is cut: then nobody hears of anybody, nor of that."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._is_connected = asyncio.Event()
        self._is_connected.set()

    def cut(self) -> None:
        self._is_connected.clear()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Gives the address to connect to."""
        async with await asyncio.start_server(self._connected, self._host, 0) as listener:
            host, port = listener.sockets[0].getsockname()
            yield f"{host}:{port}"
            self._is_connected.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._pass_on(reader, server_writer), self._pass_on(server_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                await self._is_connected.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_calls_of_a_caller_whose_network_is_gone_are_withdrawn(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIME_MS", 200)
    monkeypatch.setattr(server_module, "_KEEPALIVE_TIMEOUT_MS", 200)
    async with running_server(bundle, monkeypatch, capsys, CONFIG) as server:
        network = Network(server.address)
        async with network.open() as address, grpc.aio.insecure_channel(address) as channel:
            server.engine.is_holding = True
            call = unary(channel)(REQUEST.SerializeToString())  # without a deadline
            await server.engine.submitted()
            await asyncio.sleep(1)
            assert not server.engine.futures[0].cancelled()  # a caller who answers pings may wait
            network.cut()
            await counted(server, "CANCELLED", TRANSLATE)
            assert server.engine.futures[0].cancelled()
            call.cancel()
