"""A stream of texts over loopback, with an engine that echoes when it is told to."""

import asyncio
import contextlib
import os
import signal
from dataclasses import replace

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from benchmarks.faults.http2 import Http2Caller
from dragoman.v1 import translation_pb2 as pb
from dragoman_server.config import Config, InputLimits
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import EngineDeadError, InferenceError
from dragoman_server.wire import server as server_module
from dragoman_server.wire import servicers
from support import server_parts
from support.caller import SERVICE, Caller, Refusal, count, counted, refusal
from support.server_parts import RunningServer

STREAM, EXCHANGE, SCORE = (f"{SERVICE}/{method}" for method in ("StreamTranslation", "ExchangeTranslations", "Score"))
MAX_IN_FLIGHT = 8
CONFIG = replace(
    server_parts.CONFIG,
    limits=InputLimits(
        max_inputs=16, max_text_characters=1_000, max_message_bytes=100_000, max_exchange_in_flight=MAX_IN_FLIGHT
    ),
)

# Else HTTP/2 makes room for some megabytes, which is many answers.
LITTLE_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]

StreamCall = grpc.aio.UnaryStreamCall[bytes, bytes]
ExchangeCall = grpc.aio.StreamStreamCall[bytes, bytes]


@pytest.fixture
def config() -> Config:
    return CONFIG


class Exchange:
    """A stream of texts, in bytes."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float | None = 30.0) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(EXCHANGE)
        self.call: ExchangeCall = method(timeout=timeout)
        self.writing: asyncio.Task[None] | None = None  # of what nobody waits for

    async def configure(self, target: str = "fr", **fields: object) -> None:
        config = pb.ExchangeConfig(source_language_code="en", target_language_code=target, **fields)  # type: ignore[arg-type]
        await self.call.write(pb.ExchangeTranslationsRequest(config=config).SerializeToString())

    async def send(self, name: str, text: str, target_prefix: str = "") -> None:
        message = pb.ExchangeTranslationsRequest()
        message.input.id = name
        message.input.input.text = text
        message.input.input.target_prefix = target_prefix
        await self.call.write(message.SerializeToString())

    async def read(self) -> pb.ExchangeTranslationsResponse:
        raw = await self.call.read()
        assert isinstance(raw, bytes)
        return pb.ExchangeTranslationsResponse.FromString(raw)

    async def end_of_answers(self) -> grpc.StatusCode:
        """Reads what has arrived, behind which there is an error."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await self.call.read() is not grpc.aio.EOF:
                pass
        return await self.call.code()

    async def end(self) -> None:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK

    async def refusal(self, code: grpc.StatusCode) -> Refusal:
        assert await self.call.code() is code
        return await refusal(self.call)


@pytest.fixture
async def exchange(caller: Caller) -> Exchange:
    return Exchange(caller.channel)


async def test_results_come_as_they_are_ready_under_the_ids_of_their_texts(
    server: RunningServer, exchange: Exchange
) -> None:
    server.engine.is_holding = True
    await exchange.configure(priority=pb.PRIORITY_BULK)
    for name in ("a", "b", "a"):
        await exchange.send(name, f"Number {name}.")
    await server.engine.submitted(3)
    server.engine.release(1)
    second = await exchange.read()
    assert (second.id, second.result.translation.text) == ("b", "Number b.")
    assert second.model == "tiny@0123456789ab"
    server.engine.release()
    assert [(await exchange.read()).id for _ in range(2)] == ["a", "a"]
    await exchange.end()
    assert count(server, "OK", EXCHANGE) == 1
    assert {request.priority for request in server.engine.requests} == {Priority.BULK}


async def test_all_texts_of_an_exchange_are_of_one_caller(server: RunningServer, caller: Caller) -> None:
    for exchange in (Exchange(caller.channel), Exchange(caller.channel)):
        await exchange.configure()
        for name in ("a", "b"):
            await exchange.send(name, "Hello.")
            await exchange.read()
        await exchange.end()
    one, same, other, same_as_other = server.engine.callers
    assert one is same is not None
    assert other is same_as_other is not one


async def test_a_config_holds_until_the_next(server: RunningServer, exchange: Exchange) -> None:
    await exchange.configure("fr")
    await exchange.send("a", "Hello.")
    await exchange.read()
    await exchange.configure("de", options=pb.DecodingOptions(beam_size=2))
    await exchange.send("b", "Hello.")
    await exchange.send("c", "Hello.")
    for _ in range(2):
        await exchange.read()
    await exchange.end()
    assert [request.source_ids[0] for request in server.engine.requests] == [5, 6, 6]
    assert [request.options.beam_size for request in server.engine.requests] == [1, 2, 2]


async def test_an_empty_exchange_is_ok(exchange: Exchange) -> None:
    await exchange.end()


async def test_a_text_at_fault_has_its_error_as_result(exchange: Exchange) -> None:
    await exchange.configure()
    await exchange.send("long", "x" * 1_001)
    await exchange.send("good", "Hello.")
    responses = {response.id: response for response in [await exchange.read(), await exchange.read()]}
    assert responses["good"].result.translation.text == "Hello."
    error = responses["long"].result.error
    found = Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.message, error)
    assert found.reason == "TEXT_TOO_LONG"
    assert found.detail(BadRequest()).field_violations[0].field == "input.text"
    await exchange.end()


async def test_a_failed_batch_concerns_one_text(server: RunningServer, exchange: Exchange) -> None:
    await exchange.configure()
    server.engine.refusal = InferenceError("no memory")
    await exchange.send("a", "Hello.")
    assert (await exchange.read()).result.error.message == "no memory"
    server.engine.refusal = None
    await exchange.send("a", "Hello.")
    assert (await exchange.read()).result.translation.text == "Hello."
    await exchange.end()


async def test_a_dead_engine_ends_an_exchange(server: RunningServer, exchange: Exchange) -> None:
    await exchange.configure()
    server.engine.refusal = EngineDeadError("the engine has died")
    await exchange.send("a", "Hello.")
    assert (await exchange.refusal(grpc.StatusCode.UNAVAILABLE)).reason == "ENGINE_DEAD"


async def test_a_text_before_any_config_ends_an_exchange(exchange: Exchange) -> None:
    await exchange.send("a", "Hello.")
    assert (await exchange.refusal(grpc.StatusCode.INVALID_ARGUMENT)).reason == "NO_CONFIG"


async def test_a_config_at_fault_ends_an_exchange_with_all_violations(exchange: Exchange) -> None:
    await exchange.configure("", options=pb.DecodingOptions(top_p=2.0))
    refused = await exchange.refusal(grpc.StatusCode.INVALID_ARGUMENT)
    fields = {violation.field for violation in refused.detail(BadRequest()).field_violations}
    assert fields == {"config.target_language_code", "config.options.top_p"}


async def test_a_message_without_content_is_a_config_without_languages(exchange: Exchange) -> None:
    await exchange.call.write(b"")
    assert (await exchange.refusal(grpc.StatusCode.INVALID_ARGUMENT)).reason == "REQUIRED_FIELD"


async def test_a_long_id_ends_an_exchange(exchange: Exchange) -> None:
    await exchange.configure()
    await exchange.send("x" * 257, "Hello.")
    refused = await exchange.refusal(grpc.StatusCode.INVALID_ARGUMENT)
    assert (refused.reason, refused.message) == ("ID_TOO_LONG", "input.id: has 257 characters, may have at most 256")


async def test_a_malformed_message_ends_an_exchange_and_withdraws_all_of_it(
    server: RunningServer, exchange: Exchange
) -> None:
    server.engine.is_holding = True
    await exchange.configure()
    await exchange.send("a", "Hello.")
    await server.engine.submitted()
    await exchange.call.write(b"\xff\xff\xff")
    assert (await exchange.refusal(grpc.StatusCode.INVALID_ARGUMENT)).reason == "MALFORMED_MESSAGE"
    assert server.engine.futures[0].cancelled()
    assert count(server, "INVALID_ARGUMENT", EXCHANGE) == 1


async def test_no_more_than_the_limit_is_in_flight(server: RunningServer, exchange: Exchange) -> None:
    server.engine.is_holding = True
    await exchange.configure()
    for number in range(3 * MAX_IN_FLIGHT):
        await exchange.send(str(number), "Hello.")
    await server.engine.submitted(MAX_IN_FLIGHT)
    await asyncio.sleep(0.2)
    assert len(server.engine.requests) == MAX_IN_FLIGHT
    server.engine.is_holding = False
    server.engine.release()
    names = {(await exchange.read()).id for _ in range(3 * MAX_IN_FLIGHT)}
    assert names == {str(number) for number in range(3 * MAX_IN_FLIGHT)}
    await exchange.end()


async def test_the_segments_of_texts_are_counted_and_not_the_texts(server: RunningServer, exchange: Exchange) -> None:
    """So that one stream does not fill the queue; but a text may have more by itself."""
    server.engine.is_holding = True
    await exchange.configure()
    for name, num_lines in (("a", 3), ("b", 4), ("c", 20), ("d", 1)):
        await exchange.send(name, "Hello.\n" * num_lines)
    await server.engine.submitted(27)
    await asyncio.sleep(0.2)
    assert len(server.engine.requests) == 27
    server.engine.is_holding = False
    server.engine.release()
    assert {(await exchange.read()).id for _ in range(4)} == {"a", "b", "c", "d"}
    await exchange.end()


async def stall(server: RunningServer, channel: grpc.aio.Channel) -> Exchange:
    """An exchange whose caller sends texts and reads nothing, when the server has stopped to translate them."""
    exchange = Exchange(channel, timeout=None)
    await exchange.configure()

    async def write() -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # the exchange ends meanwhile
            for number in range(100):
                await exchange.send(str(number), "The old cat.\n" * 60)

    exchange.writing = asyncio.create_task(write())
    num_seen = 0
    while num_seen != len(server.engine.requests) or not num_seen:
        num_seen = len(server.engine.requests)
        await asyncio.sleep(0.3)
    return exchange


@pytest.fixture
def short_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    method = EXCHANGE.lstrip("/")
    rules = replace(servicers.STREAM_RULES[method], stall_seconds=0.5)
    monkeypatch.setitem(servicers.STREAM_RULES, method, rules)


async def test_an_exchange_that_is_not_read_is_ended(short_stalls: None, server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address, options=LITTLE_AHEAD) as channel:
        exchange = await stall(server, channel)
        await counted(server, "RESOURCE_EXHAUSTED", EXCHANGE)
        await exchange.end_of_answers()
        assert (await exchange.refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)).reason == "SLOW_READER"


async def test_sigterm_does_not_wait_for_callers_who_do_not_read(server: RunningServer) -> None:
    async with grpc.aio.insecure_channel(server.address, options=LITTLE_AHEAD) as channel:
        exchanges = [await stall(server, channel) for _ in range(3)]
        os.kill(os.getpid(), signal.SIGTERM)
        assert await server.exit_code == 0
        for exchange in exchanges:
            assert await exchange.end_of_answers() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_who_does_not_read_is_not_read_from(server: RunningServer) -> None:
    num_texts = 150
    async with grpc.aio.insecure_channel(server.address, options=LITTLE_AHEAD) as channel:
        exchange = Exchange(channel)
        await exchange.configure()

        async def write() -> None:
            for number in range(num_texts):
                await exchange.send(str(number), "The old cat.\n" * 60)  # answered with some 20 kB

        writing = asyncio.create_task(write())
        num_seen = -1
        while num_seen != len(server.engine.requests) or not num_seen:
            num_seen = len(server.engine.requests)
            await asyncio.sleep(0.5)
        assert 60 <= num_seen < 60 * 8 * MAX_IN_FLIGHT
        names = {(await exchange.read()).id for _ in range(num_texts)}
        assert len(names) == num_texts
        await writing
        await exchange.end()


async def test_a_caller_who_promises_room_and_does_not_read_is_bounded_too(server: RunningServer) -> None:
    """What the system and gRPC take for it is less than all of these answers."""
    num_texts, num_lines = 800, 30
    options = pb.DecodingOptions(beam_size=8, num_hypotheses=8)
    config = pb.ExchangeConfig(source_language_code="en", target_language_code="fr", options=options)
    text = pb.ExchangeInput(input=pb.TranslationInput(text="A\n" * num_lines))

    def send() -> Http2Caller:
        caller = Http2Caller(server.address, receive_bytes=4_096)
        stream = caller.call(EXCHANGE)
        caller.send(stream, pb.ExchangeTranslationsRequest(config=config).SerializeToString())
        for _ in range(num_texts):
            caller.send(stream, pb.ExchangeTranslationsRequest(input=text).SerializeToString())
        return caller

    with await asyncio.to_thread(send):
        num_seen = 0
        while num_seen != len(server.engine.requests) or not num_seen:
            num_seen = len(server.engine.requests)
            await asyncio.sleep(0.5)
        assert num_seen < 0.8 * num_texts * num_lines
    await counted(server, "CANCELLED", EXCHANGE)


async def test_a_caller_who_leaves_withdraws_all_of_an_exchange(server: RunningServer, exchange: Exchange) -> None:
    server.engine.is_holding = True
    await exchange.configure()
    for number in range(MAX_IN_FLIGHT):
        await exchange.send(str(number), "One.\nTwo.")
    await server.engine.submitted(MAX_IN_FLIGHT)
    exchange.call.cancel()
    await counted(server, "CANCELLED", EXCHANGE)
    assert all(future.cancelled() for future in server.engine.futures)


async def test_a_deadline_withdraws_all_of_an_exchange(server: RunningServer, caller: Caller) -> None:
    server.engine.is_holding = True
    exchange = Exchange(caller.channel, timeout=1.0)
    await exchange.configure()
    await exchange.send("a", "Hello.")
    assert await exchange.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await counted(server, "DEADLINE_EXCEEDED", EXCHANGE)
    assert server.engine.futures[0].cancelled()


async def test_every_exchange_whose_deadline_passes_is_counted_as_such(server: RunningServer, caller: Caller) -> None:
    """Whether it is idle, has texts that wait or has had all its answers."""
    exchanges: list[Exchange] = []
    for number in range(40):
        exchange = Exchange(caller.channel, timeout=1.0)
        exchanges.append(exchange)
        server.engine.is_holding = number % 3 == 0
        await exchange.configure()
        if number % 3 < 2:
            await exchange.send("a", "Hello.")
        if number % 3 == 1:
            await exchange.read()
    for exchange in exchanges:
        assert await exchange.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while sum(count(server, code, EXCHANGE) for code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")) < 40:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert count(server, "DEADLINE_EXCEEDED", EXCHANGE) == 40


async def test_sigterm_ends_an_idle_exchange(server: RunningServer, exchange: Exchange) -> None:
    await exchange.configure()
    await exchange.send("a", "Hello.")
    await exchange.read()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await exchange.refusal(grpc.StatusCode.UNAVAILABLE)).reason == "DRAINING"
    assert await server.exit_code == 0


async def test_sigterm_ends_an_exchange_when_it_has_had_its_answers(server: RunningServer, exchange: Exchange) -> None:
    server.engine.is_holding = True
    await exchange.configure()
    for name in ("a", "b"):
        await exchange.send(name, "Hello.")
    await server.engine.submitted(2)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(2 * server_module._PATIENCE_SECONDS)
    server.engine.release()
    assert {(await exchange.read()).id for _ in range(2)} == {"a", "b"}
    assert (await exchange.refusal(grpc.StatusCode.UNAVAILABLE)).reason == "DRAINING"
    assert await server.exit_code == 0


async def test_sigterm_lets_an_exchange_finish(server: RunningServer, exchange: Exchange) -> None:
    server.engine.is_holding = True
    await exchange.configure()
    await exchange.send("a", "Hello.")
    await server.engine.submitted()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    server.engine.release()
    assert (await exchange.read()).result.translation.text == "Hello."
    await exchange.end()
    assert await server.exit_code == 0
