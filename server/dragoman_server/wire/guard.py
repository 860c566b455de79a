"""The one interceptor: what grpc.aio does with bad bytes, errors and cancellation, done right.

grpc.aio alone answers undecodable requests and uncaught exceptions with UNKNOWN and the text
of the exception, and never answers a call whose handler was cancelled by anything but the
caller. Here every call ends with a status from the table in `wire/status.py`, and is counted.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from dragoman_server.engine.deadlines import has_passed
from dragoman_server.errors import DeadlineError, DragomanError, DrainingError, MalformedMessageError
from dragoman_server.metrics import Metrics
from dragoman_server.wire.status import CODES, internal_status, reason_of, status_of, trailers_of

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]  # generic in its stubs alone
_Context = grpc.aio.ServicerContext[Any, Any]
_Behaviour = Callable[[Any, _Context], Awaitable[Any]]
_StreamBehaviour = Callable[[Any, _Context], AsyncGenerator[Any, None]]

# When a caller leaves, the stream of its requests ends as if it were complete, and only then is the handler cancelled.
_SECONDS_TO_LEAVE = 0.05

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

# One label for all methods that do not exist: callers must not be able to make up metrics.
_UNKNOWN_METHOD = "unknown"


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the handler of every method; those of streams of responses must be asynchronous generators.

    The next response is asked for when gRPC has room for it, which it has not while the caller does not read.

    Args:
        metrics: count calls.
        stall_seconds: by method, how long its callers may take nothing of the responses; without a limit where absent.

    Attributes:
        num_calls: calls that have come in so far, of whatever method.
    """

    def __init__(self, metrics: Metrics, stall_seconds: Mapping[str, float]) -> None:
        self.num_calls = 0
        self._metrics = metrics
        self._stall_seconds = stall_seconds
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Replaces the handler by a guarded one."""
        self.num_calls += 1
        method = handler_call_details.method.lstrip("/")
        if method not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:  # grpc answers UNIMPLEMENTED
                self._metrics.observe_request(_UNKNOWN_METHOD, "UNIMPLEMENTED", 0.0)
                return None
            self._guarded[method] = self._guard(method, handler)
        return self._guarded[method]

    def _guard(self, method: str, handler: "_Handler") -> "_Handler":
        parse, stall_seconds = handler.request_deserializer, self._stall_seconds.get(method)

        async def request(messages: AsyncIterable[bytes], context: _Context) -> Any:
            return _parsed_stream(parse, messages) if handler.request_streaming else await _only(parse, context)

        async def guarded(messages: AsyncIterable[bytes], context: _Context) -> Any:
            async def answer() -> Any:
                behaviour = cast(_Behaviour, handler.unary_unary or handler.stream_unary)
                return await behaviour(await request(messages, context), context)

            return await self._answer(method, context, answer)

        async def guarded_stream(messages: AsyncIterable[bytes], context: _Context) -> None:
            async def answer() -> None:
                behaviour = cast(_StreamBehaviour, handler.unary_stream or handler.stream_stream)
                async with aclosing(behaviour(await request(messages, context), context)) as responses:
                    async for response in responses:
                        await _write(context, response, stall_seconds)

            await self._answer(method, context, answer)

        # To grpc every request is a stream, which looks the same on the wire: it would not call the handler of a single
        # request that does not come, nor answer it. Without a deserializer it hands over bytes.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                guarded_stream, request_deserializer=None, response_serializer=handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            guarded, request_deserializer=None, response_serializer=handler.response_serializer
        )

    async def _answer(self, method: str, context: _Context, answer: Callable[[], Awaitable[_T]]) -> _T:
        started = time.monotonic()
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else started + remaining

        def count(code: grpc.StatusCode) -> None:
            now = time.monotonic()
            if now >= deadline:  # whatever the answer is, it does not arrive
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            self._metrics.observe_request(method, code.name, now - started)

        def count_departure() -> None:
            """The caller has left. The context does not tell why, so the clock must."""
            is_late = has_passed(deadline, started, time.monotonic())
            count(grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED)

        try:
            result = await answer()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                count_departure()
                raise  # a cancellation that is swallowed leaks
            # Something of ours was cancelled under the call. Passed on, it would leave the
            # caller without an answer.
            status = status_of(DrainingError("the server gave up this call; it may be repeated"))
        except grpc.aio.InternalError as error:
            # So a write fails whose caller leaves meanwhile; that cancels the handler too, but later.
            count_departure()
            raise asyncio.CancelledError from error
        except grpc.aio.AbortError:
            count(context.code())
            raise
        except DragomanError as error:
            status = status_of(error) if type(error) in CODES else _failed(method, error)
        except Exception as error:
            status = _failed(method, error)
        else:
            count(grpc.StatusCode.OK)
            return result
        code = _STATUS_CODES[status.code]
        count(code)
        self._metrics.observe_rejection(reason_of(status))
        return await context.abort(code, status.message, trailers_of(status))


def _parsed(parse: Callable[[bytes], _T] | None, message: bytes) -> _T:
    if parse is None:
        raise NotImplementedError("a method without a message type cannot be guarded")
    try:
        return parse(message)
    except DecodeError as error:
        # The text of the error names classes and fields, nothing that the caller can use.
        raise MalformedMessageError(
            "the request is not valid: its bytes are no message of this method, or a string in it is no UTF-8"
        ) from error


async def _only(parse: Callable[[bytes], _T] | None, context: _Context) -> _T:
    message = await context.read()
    if message is grpc.aio.EOF:
        await asyncio.sleep(_SECONDS_TO_LEAVE)
        raise MalformedMessageError("the request is not valid: it has no message")
    return _parsed(parse, message)


async def _parsed_stream(parse: Callable[[bytes], _T] | None, messages: AsyncIterable[bytes]) -> AsyncIterator[_T]:
    async for message in messages:
        yield _parsed(parse, message)
    await asyncio.sleep(_SECONDS_TO_LEAVE)


async def _write(context: _Context, response: Any, stall_seconds: float | None) -> None:
    if stall_seconds is None:
        await context.write(response)
        return
    try:
        async with asyncio.timeout(stall_seconds):
            await context.write(response)
    except TimeoutError as error:
        raise DeadlineError(f"nothing was read for {stall_seconds:g} seconds") from error


def _failed(method: str, error: Exception) -> Status:
    """The status of a fault of ours, whose details are for the log alone."""
    error_id = secrets.token_hex(8)
    logger.error("error id %s in %s", error_id, method, exc_info=error)
    return internal_status(error_id)
