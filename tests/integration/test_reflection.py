"""Reflection over loopback: what is told, to whom, and that it is told only where the server was asked to."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import AccessOptions, Config
from support import server_parts
from support.caller import Caller, count, refusal
from support.server_parts import RunningServer, running_server

V1, V1ALPHA = (f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha"))
LIST = ServerReflectionRequest(list_services="")


@pytest.fixture
def config() -> Config:
    return replace(server_parts.CONFIG, admin_listen="127.0.0.1:0", access=AccessOptions(reflection=True))


def opened(channel: grpc.aio.Channel, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    multi_callable: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
    return multi_callable(timeout=30)


async def asked(
    channel: grpc.aio.Channel, *requests: ServerReflectionRequest, method: str = V1ALPHA
) -> list[ServerReflectionResponse]:
    call = opened(channel, method)
    for request in requests:
        await call.write(request.SerializeToString())
    await call.done_writing()
    return [ServerReflectionResponse.FromString(answer) async for answer in call]


def services(response: ServerReflectionResponse) -> Sequence[str]:
    return [service.name for service in response.list_services_response.service]


@pytest.mark.parametrize("method", [V1, V1ALPHA])
async def test_services_and_messages_are_told(server: RunningServer, caller: Caller, method: str) -> None:
    symbol = ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest")
    listed, described = await asked(caller.channel, LIST, symbol, method=method)
    assert services(listed) == [
        "dragoman.v1.AttentionService",
        "dragoman.v1.ModelService",
        "dragoman.v1.TranslationService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    (raw,) = described.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(raw).package == "inference"
    assert count(server, "OK", method) == 1


async def test_every_listed_service_is_described(caller: Caller) -> None:
    (listed,) = await asked(caller.channel, LIST)
    symbols = [ServerReflectionRequest(file_containing_symbol=name) for name in services(listed)]
    for described in await asked(caller.channel, *symbols):
        assert described.file_descriptor_response.file_descriptor_proto, described


async def test_the_admin_address_tells_of_its_own_services(server: RunningServer) -> None:
    assert server.admin_address is not None
    async with grpc.aio.insecure_channel(server.admin_address) as channel:
        (listed,) = await asked(channel, LIST)
    assert services(listed) == [
        "dragoman.v1.ModelAdminService",
        "dragoman.v1.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


async def test_what_there_is_not_is_an_error_within_the_stream(caller: Caller) -> None:
    requests = [
        ServerReflectionRequest(),
        ServerReflectionRequest(file_by_filename="../../etc/passwd"),
        ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
        ServerReflectionRequest(file_containing_symbol="\x00"),
        ServerReflectionRequest(file_containing_extension=ExtensionRequest(containing_type="a", extension_number=-1)),
        ServerReflectionRequest(all_extension_numbers_of_type="no.such.Type"),
    ]
    answers = await asked(caller.channel, *requests)
    assert [answer.error_response.error_code for answer in answers] == [
        grpc.StatusCode.INVALID_ARGUMENT.value[0],
        *[grpc.StatusCode.NOT_FOUND.value[0]] * 5,
    ]


async def test_bytes_that_are_no_message_end_the_stream(caller: Caller) -> None:
    call = opened(caller.channel, V1)
    await call.write(b"\xff\xff")
    assert (await refusal(call)).reason == "MALFORMED_MESSAGE"
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_idle_stream_does_not_hold_up_a_server_that_stops(
    bundle: Bundle, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_server(bundle, monkeypatch, capsys, config) as server:
        caller = Caller(server.address)
        call = opened(caller.channel, V1ALPHA)
        await call.write(LIST.SerializeToString())
        await call.read()
    assert await asyncio.wait_for(server.exit_code, 60) == 0  # the grace is longer
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    await caller.channel.close()


async def test_nothing_is_told_unless_the_server_was_asked_to(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_server(bundle, monkeypatch, capsys, server_parts.CONFIG) as server:
        caller = Caller(server.address)
        for method in (V1, V1ALPHA):
            call = opened(caller.channel, method)
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        await caller.channel.close()
