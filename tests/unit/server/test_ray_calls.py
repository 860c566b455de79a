"""Both ends of a call through Ray Serve, with what Serve does between them in its place."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.errors import QueueFullError
from dragoman_server.metrics import Metrics
from dragoman_server.ray_serve import proxy
from dragoman_server.ray_serve.calls import Calls
from dragoman_server.ray_serve.methods import Methods, hosted
from dragoman_server.wire.context import call_context
from dragoman_server.wire.guard import Guard

FULL = QueueFullError("there is no room", 2.5)


class Servicer(translation_pb2_grpc.TranslationServiceServicer):
    """Says how much time there is, or fails."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.has_left = asyncio.Event()

    async def Translate(self, request: pb.TranslateRequest, context: Any) -> pb.TranslateResponse:
        self.deadlines.append(call_context().deadline)
        if request.model == "full":
            raise FULL
        if request.model == "slow":
            try:
                await asyncio.sleep(600)
            finally:
                self.has_left.set()
        return pb.TranslateResponse(source_language_code="en")

    async def StreamTranslation(
        self, request: pb.StreamTranslationRequest, context: Any
    ) -> AsyncIterator[pb.StreamTranslationResponse]:
        for _ in range(3):
            yield pb.StreamTranslationResponse(delta="a")
        if request.model == "full":
            raise FULL

    async def ExchangeTranslations(
        self, requests: AsyncIterator[pb.ExchangeTranslationsRequest], context: Any
    ) -> AsyncIterator[pb.ExchangeTranslationsResponse]:
        async for request in requests:
            yield pb.ExchangeTranslationsResponse(id=request.input.id)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        raise NotImplementedError


class ServesContext:
    """Of Serve's context, what matters here."""

    def __init__(self, context: Any) -> None:
        self._metadata, self._peer = [(key, value) for key, value in context.invocation_metadata()], context.peer()
        self._code, self._details, self._trailing = context.code(), context.details(), [("request_id", "serves")]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def trailing_metadata(self) -> list[tuple[str, str]]:
        return self._trailing

    def auth_context(self) -> dict[str, Any]:
        return {}

    def peer(self) -> str:
        return str(self._peer)

    def code(self) -> grpc.StatusCode:
        return self._code  # type: ignore[no-any-return]

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, trailing: list[tuple[str, str]]) -> None:
        self._trailing = [self._trailing[0], *trailing]

    def send(self, context: Any) -> None:
        if self._code:
            context.set_code(self._code)
            context.set_details(self._details)
        context.set_trailing_metadata(tuple(self._trailing))


class Serve:
    """Puts handlers into a server that hand calls to a replica, as Serve's proxy does."""

    def __init__(self, server: grpc.aio.Server, calls: Calls) -> None:
        self.lose: Callable[[], None] = lambda: None  # called with each call; what it raises is the loss of a replica
        self._server, self._calls = server, calls

    def add_generic_rpc_handlers(self, added: tuple[Any]) -> None:
        (methods,) = added
        methods._method_handlers = {
            path: handler._replace(
                response_serializer=None,
                unary_unary=self._unary(path),
                unary_stream=self._stream(path),
                stream_stream=self._stream(path),
            )
            for path, handler in methods._method_handlers.items()
        }
        self._server.add_generic_rpc_handlers((methods,))

    def _unary(self, path: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def handle(request: Any, context: Any) -> bytes:
            sent = ServesContext(context)
            try:
                self.lose()
                request = pickle.loads(pickle.dumps(request))
                response = await self._calls.answer(path, request, sent)
            except RuntimeError as error:
                context.set_code(grpc.StatusCode.INTERNAL)
                context.set_details(str(error))
                return b""
            pickle.loads(pickle.dumps(sent)).send(context)
            return response.SerializeToString()

        return handle

    def _stream(self, path: str) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def handle(request: Any, context: Any) -> AsyncIterator[bytes]:
            sent = ServesContext(context)
            async for response in self._calls.stream(path, request, sent):
                pickle.loads(pickle.dumps(sent)).send(context)
                yield response.SerializeToString()

        return handle


@asynccontextmanager
async def hosted_servicer() -> AsyncIterator[tuple[Servicer, Serve, grpc.aio.Channel]]:
    servicer, methods, server = Servicer(), Methods(), grpc.aio.server()
    translation_pb2_grpc.add_TranslationServiceServicer_to_server(servicer, methods)  # type: ignore[arg-type]
    serve = Serve(server, Calls(methods.handlers, Guard(Metrics(), {})))
    proxy.add_services(Mock(), serve)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, serve, channel
    await server.stop(0)


def reason(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    assert isinstance(details, bytes)
    Status.FromString(details).details[0].Unpack(info)
    return str(info.reason)


async def test_a_replica_knows_the_time_that_a_call_has() -> None:
    async with hosted_servicer() as (servicer, _, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        loop = asyncio.get_running_loop()
        assert (await stub.Translate(pb.TranslateRequest(), timeout=50)).source_language_code == "en"
        await stub.Translate(pb.TranslateRequest())
        assert 40 < servicer.deadlines[0] - loop.time() <= 50
        assert servicer.deadlines[1] == float("inf")


async def test_the_status_of_a_failed_call_has_its_details() -> None:
    async with hosted_servicer() as (_, _, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Translate(pb.TranslateRequest(model="full"), metadata=[("x-request-id", "mine")])
        error = caught.value
        assert (error.code(), error.details(), reason(error)) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "there is no room",
            "QUEUE_FULL",
        )
        trailers = dict(error.trailing_metadata())
        assert (trailers["x-request-id"], trailers["grpc-retry-pushback-ms"]) == ("mine", "2500")


async def test_so_has_that_of_a_stream_and_no_response_more() -> None:
    async with hosted_servicer() as (_, _, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        call = stub.StreamTranslation(pb.StreamTranslationRequest(model="full"))
        assert [(await call.read()).delta for _ in range(3)] == ["a"] * 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert reason(caught.value) == "QUEUE_FULL"
        assert [r.delta async for r in stub.StreamTranslation(pb.StreamTranslationRequest())] == ["a"] * 3


async def test_an_exchange_goes_both_ways() -> None:
    async with hosted_servicer() as (_, _, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        call = stub.ExchangeTranslations()
        for number in range(3):
            await call.write(pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(id=str(number))))
            assert (await call.read()).id == str(number)
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_a_caller_that_leaves_ends_the_work_on_its_call() -> None:
    async with hosted_servicer() as (servicer, _, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
            await stub.Translate(pb.TranslateRequest(model="slow"), timeout=0.2)
        await asyncio.wait_for(servicer.has_left.wait(), 20)


async def test_a_lost_replica_is_unavailable_and_the_calls_own_id_is_serves() -> None:
    async with hosted_servicer() as (_, serve, channel):
        stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)
        call = stub.Translate(pb.TranslateRequest())
        assert dict(await call.trailing_metadata())["x-request-id"] == "serves"

        def lose() -> None:
            raise RuntimeError("the actor died")

        serve.lose = lose
        with pytest.raises(grpc.aio.AioRpcError, match="the actor died") as caught:
            await stub.Translate(pb.TranslateRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_watchers_of_health_learn_of_the_proxy() -> None:
    async with hosted_servicer() as (_, _, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        for service, status in (("", "SERVING"), ("other", "SERVICE_UNKNOWN")):
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
            answer = await watch.read()
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
            watch.cancel()


def test_no_two_services_have_a_method_of_the_same_name() -> None:
    names = [path.rpartition("/")[2] for path in hosted(Mock())]
    assert len(names) == len(set(names)) > 10
