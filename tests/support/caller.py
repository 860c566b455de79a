"""Calls a server in bytes, so that they can be wrong, and reads its refusals and its metrics."""

import asyncio
import urllib.request
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from dragoman.v1 import translation_pb2 as pb
from support.server_parts import RunningServer

SERVICE = "/dragoman.v1.TranslationService"
TRANSLATE = f"{SERVICE}/Translate"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"

T = TypeVar("T", bound=Message)


def unary(channel: grpc.aio.Channel, method: str = TRANSLATE) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """Without serializers, so that the bytes can be any."""
    return channel.unary_unary(method)


class Caller:
    """Calls in bytes, so that they can be wrong, and without retries."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)])

    def start(
        self, message: bytes | Message, method: str = TRANSLATE, timeout: float = 10.0
    ) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        return unary(self.channel, method)(raw, timeout=timeout)

    async def translate(self, request: pb.TranslateRequest, timeout: float = 10.0) -> pb.TranslateResponse:
        return pb.TranslateResponse.FromString(await self.start(request, timeout=timeout))

    async def check(self, service: str = "") -> "HealthCheckResponse.ServingStatus":
        answer = await self.start(HealthCheckRequest(service=service), CHECK)
        return HealthCheckResponse.FromString(answer).status

    async def refusal(self, message: bytes | Message, method: str = TRANSLATE, timeout: float = 10.0) -> "Refusal":
        call = self.start(message, method, timeout)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        return await refusal(call)


class Refusal:
    """How a call failed."""

    def __init__(self, code: grpc.StatusCode, message: str, status: Status) -> None:
        self.code, self.message, self.status = code, message, status

    def detail(self, message: T) -> T:
        assert any(packed.Unpack(message) for packed in self.status.details)
        return message

    @property
    def reason(self) -> str:
        info = self.detail(ErrorInfo())
        assert info.domain == "dragoman"
        return str(info.reason)


async def refusal(call: grpc.aio.Call) -> Refusal:
    status = Status()
    for key, value in await call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status.ParseFromString(value)
            assert status.code == (await call.code()).value[0]
    return Refusal(await call.code(), await call.details() or "", status)


def samples(server: RunningServer) -> dict[str, float]:
    """The metrics on the server's page."""
    with urllib.request.urlopen(server.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def count(server: RunningServer, code: str, method: str = TRANSLATE) -> float:
    name = f'dragoman_requests_total{{code="{code}",method="{method.lstrip("/")}"}}'
    return samples(server).get(name, 0.0)


async def counted(server: RunningServer, code: str, method: str = TRANSLATE) -> None:
    """Returns once a call with this code is counted, which callers may learn earlier."""
    while not count(server, code, method):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
