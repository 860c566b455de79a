"""The one interceptor: what grpc.aio does with bad bytes, errors and cancellation, done right.

grpc.aio alone answers undecodable requests and uncaught exceptions with UNKNOWN and the text
of the exception, and never answers a call whose handler was cancelled by anything but the
caller. Here every call ends with a status from the table in `wire/status.py`, and is counted
and logged. No call but those of health gets further without a token, where the server has a file of them.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from dragoman_server.access.tokens import Tokens
from dragoman_server.engine.deadlines import has_passed
from dragoman_server.errors import DragomanError, DrainingError, MalformedMessageError, SlowReaderError
from dragoman_server.metrics import Metrics
from dragoman_server.service.record import Ended
from dragoman_server.tracing import Tracing
from dragoman_server.wire.call_log import CallLog
from dragoman_server.wire.context import Arrival, Context, arrived, enter
from dragoman_server.wire.open_calls import OpenCall, OpenCalls
from dragoman_server.wire.status import CODES, add_request_id, internal_status, reason_of, status_of, trailers_of

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]  # generic in its stubs alone
_Behaviour = Callable[[Any, Context], Awaitable[Any]]
_StreamBehaviour = Callable[[Any, Context], AsyncGenerator[Any, None]]

# When a caller leaves, the stream of its requests ends as if it were complete, and only then is the handler cancelled.
_SECONDS_TO_LEAVE = 0.05

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

_HEALTH = "grpc.health.v1.Health/"
_ADMIN = "dragoman.v1.ModelAdminService/"
_REQUEST_ID = "x-request-id"
# One label for all methods that do not exist: callers must not be able to make up metrics.
_UNKNOWN_METHOD = "unknown"


@dataclass(frozen=True, slots=True)
class StreamRules:
    """How long a stream waits for its caller."""

    stall_seconds: float = 300.0
    """Most that writing a response may take, for which the caller's gRPC must have room. It may ask for more only when
    half of what it holds was read, which is megabytes, so a caller who reads slowly needs minutes."""

    num_answers: Callable[[Any], int] | None = None
    """How many responses a request is answered with. Where a stream has no request that is to be answered, it is idle,
    and a server that stops does not wait for it. None: streams of this method are never idle."""


_ANY_STREAM = StreamRules()


class Guard(grpc.aio.ServerInterceptor):
    """Wraps the handler of every method; those of streams of responses must be asynchronous generators.

    The next response is asked for when gRPC has room for it, which it has not while the caller does not read.

    Args:
        metrics: count calls.
        rules: of streams, by method, where they are not as of others.
        tokens: who may call; None is everybody.
        call_log: has a line of each call.
        tracing: has the spans of each call; None is none.

    Attributes:
        num_calls: calls that have come in so far, without those of health, which come whether there is work or not.
        num_in_flight: of these, calls whose status is not known yet.
        open_calls: all whose status is not known yet.
        is_draining: whether new calls are refused.
    """

    def __init__(
        self,
        metrics: Metrics,
        rules: Mapping[str, StreamRules],
        tokens: Tokens | None = None,
        call_log: CallLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.num_calls, self.num_in_flight, self.is_draining = 0, 0, False
        self.open_calls = OpenCalls()
        self._metrics, self._rules = metrics, rules
        self._tokens, self._log, self._tracing = tokens, call_log or CallLog(), tracing
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Replaces the handler by a guarded one."""
        method = handler_call_details.method.lstrip("/")
        self.num_calls += not method.startswith(_HEALTH)
        if method not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:  # grpc answers UNIMPLEMENTED
                self._metrics.observe_request(_UNKNOWN_METHOD, "UNIMPLEMENTED", 0.0)
                self._log.ended(_UNKNOWN_METHOD, "UNIMPLEMENTED", "", 0.0, None)
                return None
            self._guarded[method] = self._guard(method, handler)
        return self._guarded[method]

    def _guard(self, method: str, handler: "_Handler") -> "_Handler":
        rules = self._rules.get(method, _ANY_STREAM)

        async def request(messages: AsyncIterable[bytes], context: Context, call: OpenCall, arrival: Arrival) -> Any:
            parse = self._told(_parser(handler.request_deserializer), arrival)
            if handler.request_streaming:
                return _parsed_stream(parse, messages, call, rules.num_answers)
            return await _only(parse, context, call)

        async def guarded(messages: AsyncIterable[bytes], context: Context) -> Any:
            async def answer(call: OpenCall, arrival: Arrival) -> Any:
                behaviour = cast(_Behaviour, handler.unary_unary or handler.stream_unary)
                response = await behaviour(await request(messages, context, call, arrival), context)
                self._tell("response", response, arrival)
                return response

            return await self._answer(method, context, answer)

        async def guarded_stream(messages: AsyncIterable[bytes], context: Context) -> None:
            async def answer(call: OpenCall, arrival: Arrival) -> None:
                behaviour = cast(_StreamBehaviour, handler.unary_stream or handler.stream_stream)
                told = await request(messages, context, call, arrival)
                async with aclosing(behaviour(told, context)) as responses:
                    async for response in responses:
                        self._tell("response", response, arrival)
                        await _write(context, response, call, rules.stall_seconds)

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

    def _told(self, parse: Callable[[bytes], _T], arrival: Arrival) -> Callable[[bytes], _T]:
        """Parses, and has the log tell of what there is."""
        if not self._log.has_text:
            return parse

        def told(raw: bytes) -> _T:
            message = parse(raw)
            self._tell("request", message, arrival)
            return message

        return told

    def _tell(self, direction: str, message: object, arrival: Arrival) -> None:
        if self._log.has_text and isinstance(message, Message):
            self._log.message(direction, message, arrival)

    def _traced(
        self, method: str, code: grpc.StatusCode, reason: str, begun: float, ended: float, arrival: Arrival
    ) -> str:
        """Makes the spans of a call that has ended; the id of its trace, where it is sampled."""
        if self._tracing is None:
            return ""
        number: int = code.value[0]
        record, parent = arrival.context.record, arrival.trace_parent
        call = Ended(method, code.name, number, reason, begun, ended, arrival.request_id, parent, record)
        return self._tracing.ended(call)

    async def _answer(self, method: str, context: Context, answer: Callable[[OpenCall, Arrival], Awaitable[_T]]) -> _T:
        started, arrival = time.monotonic(), arrived(context)
        deadline, is_health = arrival.context.deadline, method.startswith(_HEALTH)

        def count(code: grpc.StatusCode, reason: str = "") -> None:
            now = time.monotonic()
            if now >= deadline:  # whatever the answer is, it does not arrive
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            trace_id = "" if is_health else self._traced(method, code, reason, started, now, arrival)
            self._metrics.observe_request(method, code.name, now - started, arrival.context.caller.name, trace_id)
            if not is_health:
                self._log.ended(method, code.name, reason, now - started, arrival)

        def count_departure() -> None:
            """The caller has left. The context does not tell why, so the clock must."""
            is_late = has_passed(deadline, started, time.monotonic())
            count(grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED)

        if self._tracing is not None and not is_health and self._tracing.wants(arrival.trace_parent):
            arrival.context.record.work = []
        call = OpenCall()
        self.num_in_flight += not is_health
        try:
            if self._tokens is not None and not is_health:
                arrival.authenticate(self._tokens)
            caller = arrival.context.caller
            if method.startswith(_ADMIN):
                caller.check_admin()
            if self.is_draining:
                raise DrainingError("the server is stopping")
            enter(arrival.context)
            with self.open_calls.opened(call):
                async with call.scope, nullcontext(0.0) if is_health else caller.call() as waited:
                    arrival.context.record.waited_seconds = waited
                    result = await answer(call, arrival)
            if not is_health:
                context.set_trailing_metadata(((_REQUEST_ID, arrival.request_id),))
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
        except TimeoutError as error:
            if call.scope.expired():
                status = status_of(DrainingError("the server is stopping; what has no answer yet may be sent again"))
            else:
                status = _failed(method, error, arrival)
        except DragomanError as error:
            status = status_of(error) if type(error) in CODES else _failed(method, error, arrival)
        except Exception as error:
            status = _failed(method, error, arrival)
        else:
            count(grpc.StatusCode.OK)
            return result
        finally:
            self.num_in_flight -= not is_health
        code, reason = _STATUS_CODES[status.code], reason_of(status)
        count(code, reason)
        self._metrics.observe_rejection(reason)
        add_request_id(status, arrival.request_id)
        trailers = (*trailers_of(status), (_REQUEST_ID, arrival.request_id))
        try:
            return await context.abort(code, status.message, trailers)
        except grpc.aio.InternalError as error:  # as above
            raise asyncio.CancelledError from error


def _parser(parse: Callable[[bytes], _T] | None) -> Callable[[bytes], _T]:
    if parse is None:
        raise NotImplementedError("a method without a message type cannot be guarded")

    def parsed(message: bytes) -> _T:
        try:
            return parse(message)
        except DecodeError as error:
            # The text of the error names classes and fields, nothing that the caller can use.
            raise MalformedMessageError(
                "the request is not valid: its bytes are no message of this method, or a string in it is no UTF-8"
            ) from error

    return parsed


async def _only(parse: Callable[[bytes], _T], context: Context, call: OpenCall) -> _T:
    with call.blocked():
        message = await context.read()
    if message is grpc.aio.EOF:
        await asyncio.sleep(_SECONDS_TO_LEAVE)
        raise MalformedMessageError("the request is not valid: it has no message")
    return parse(message)


async def _parsed_stream(
    parse: Callable[[bytes], _T],
    messages: AsyncIterable[bytes],
    call: OpenCall,
    num_answers: Callable[[_T], int] | None,
) -> AsyncIterator[_T]:
    if num_answers is not None:
        call.owe(0)
    async for raw in messages:
        message = parse(raw)
        if num_answers is not None:
            call.owe(num_answers(message))
        yield message
    await asyncio.sleep(_SECONDS_TO_LEAVE)


async def _write(context: Context, response: Any, call: OpenCall, stall_seconds: float) -> None:
    try:
        with call.blocked():
            async with asyncio.timeout(stall_seconds):
                await context.write(response)
    except TimeoutError as error:
        raise SlowReaderError(f"nothing was read for {stall_seconds:g} seconds") from error
    call.answered()


def _failed(method: str, error: Exception, arrival: Arrival) -> Status:
    """The status of a fault of ours, whose details are for the log alone."""
    error_id = secrets.token_hex(8)
    extra = {"request_id": arrival.request_id, "error_id": error_id}
    logger.error("error id %s in %s", error_id, method, exc_info=error, extra=extra)
    return internal_status(error_id)
