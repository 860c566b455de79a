"""Calls as Ray Serve hands them to a replica, answered through the guard as those of gRPC are."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from dragoman_server.ray_serve.methods import TIMEOUT
from dragoman_server.wire.guard import Guard

if TYPE_CHECKING:
    from dragoman_server.ray_serve.methods import Handler

_REQUEST_ID = "x-request-id"
_SERVES_REQUEST_ID = "request_id"


class Calls:
    """Answers the calls of a replica.

    Args:
        handlers: of the methods, by path.
        guard: stands before them.
    """

    def __init__(self, handlers: "Mapping[str, Handler]", guard: Guard) -> None:
        self._handlers, self._guard = handlers, guard

    async def answer(self, path: str, request: Message, serves: Any) -> Message:
        """The response of a method with one.

        Args:
            path: of the method.
            request: its message.
            serves: Serve's context, which gets the status, where that is not OK; the response is empty then.
        """
        handler = await self._guarded(path)
        with suppress(grpc.aio.AbortError):
            response: Message = await handler.stream_unary(_nothing(), _Context(serves, request))
            return response
        return Empty()

    async def stream(
        self, path: str, request: "Message | AsyncIterator[Message]", serves: Any
    ) -> AsyncGenerator[Message, None]:
        """The responses of a method with several; likewise, with an empty one in the end."""
        handler = await self._guarded(path)
        context = _Context(serves, request)
        requests = _nothing() if isinstance(request, Message) else request

        async def work() -> None:
            with suppress(grpc.aio.AbortError):
                await handler.stream_stream(requests, context)
                return
            context.responses.put_nowait(Empty())

        task = asyncio.create_task(work())
        task.add_done_callback(lambda _: context.responses.put_nowait(None))
        try:
            while (response := await context.responses.get()) is not None:
                yield response
                context.taken.release()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _guarded(self, path: str) -> Any:
        async def found(_: object) -> Any:
            # Serve has parsed the request.
            return cast(Any, self._handlers[path])._replace(request_deserializer=lambda message: message)

        return await self._guard.intercept_service(found, cast(grpc.HandlerCallDetails, SimpleNamespace(method=path)))


class _Context:
    """What the guard and the servicers need of gRPC's context, over Serve's.

    Attributes:
        responses: that were written; None is the end.
        taken: released when one of them was taken.
    """

    def __init__(self, serves: Any, request: "Message | AsyncIterator[Message]") -> None:
        self._serves, self._request = serves, request
        self._metadata: list[tuple[str, str | bytes]] = [*serves.invocation_metadata()]
        if not any(key == _REQUEST_ID for key, _ in self._metadata):
            ids = [value for key, value in serves.trailing_metadata() if key == _SERVES_REQUEST_ID]
            self._metadata += [(_REQUEST_ID, one) for one in ids]
        self.responses: asyncio.Queue[Message | None] = asyncio.Queue()
        self.taken = asyncio.Semaphore(0)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return next((float(value) for key, value in reversed(self._metadata) if key == TIMEOUT), None)

    def auth_context(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._serves.auth_context()
        return found

    def peer(self) -> str:
        return str(self._serves.peer())

    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._serves.code()
        return code

    async def read(self) -> "Message | AsyncIterator[Message]":
        return self._request

    async def write(self, response: Message) -> None:
        self.responses.put_nowait(response)
        await self.taken.acquire()

    def set_trailing_metadata(self, trailing: tuple[tuple[str, str | bytes], ...]) -> None:
        self._serves.set_trailing_metadata([*trailing])

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing: tuple[tuple[str, str | bytes], ...] = ()
    ) -> NoReturn:
        self._serves.set_code(code)
        self._serves.set_details(details)
        self.set_trailing_metadata(trailing)
        raise grpc.aio.AbortError(details)


async def _nothing() -> AsyncGenerator[Message, None]:
    """Where a call has one request, which the guard reads from the context."""
    messages: tuple[Message, ...] = ()
    for message in messages:
        yield message
