"""The channels of the clients, and how they do what `deliver` and the others want done.

`AsyncConnection` has the same methods as `Connection`, in the same order.
"""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from dragoman import _calls
from dragoman._calls import Attempt, MessageIterator, Throttle, UnaryCall
from dragoman._channel import channel_options, resolve_address
from dragoman._exchange import Exchanged, exchange, exchange_async
from dragoman._lists import Batch, Errors, Inputs, Pause, Receive, Send, deliver
from dragoman._responses import AsyncResponses, Responses
from dragoman._security import TlsChoice, secure
from dragoman.errors import DragomanError, FailedCall, RequestCancelledError
from dragoman.v1 import attention_pb2_grpc, models_pb2_grpc, translation_pb2_grpc
from dragoman.v1.translation_pb2 import ExchangeTranslationsRequest, ExchangeTranslationsResponse

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")

_IS_CLOSED = "The client is closed"
_WAS_CLOSED = "The client was closed during the call"
_WAS_FORKED = "This client was made before the process forked, which gRPC does not survive: make one in the child"


class Connection:
    """What a Client has of its own.

    Raises, also its methods:
        TypeError: the address or the token is not a text, a timeout not a number, or `tls` none of its types.
        ValueError: the address is not one, a timeout is not above 0, or a file of TLS or the token is of no use.
        RuntimeError: the client is closed, or of another process, from which this one was forked.

    Attributes:
        translation: calls the methods of the service.
        attention: likewise.
        models: likewise.
        model_admin: likewise.
    """

    def __init__(self, address: str | None, timeout: float, tls: TlsChoice, token: str | None) -> None:
        self._address, self._timeout = resolve_address(address), _calls.check_timeout(timeout)
        self._security = secure(self._address, tls, token)
        self._throttle = Throttle()
        self._closed = threading.Event()
        self._process_id = os.getpid()
        self._channels = tuple(  # neither connects before its first call
            self._security.channel(self._address, channel_options(self._address, is_health_checked=is_checked))
            for is_checked in (True, False)
        )
        serving, any_server = map(self._security.identified, self._channels)
        self.translation = translation_pb2_grpc.TranslationServiceStub(serving)
        self.attention = attention_pb2_grpc.AttentionServiceStub(serving)
        self.models = models_pb2_grpc.ModelServiceStub(any_server)
        self.model_admin = models_pb2_grpc.ModelAdminServiceStub(any_server)
        self._check_health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = any_server.unary_unary(
            _calls.HEALTH_CHECK_METHOD
        )

    def deliver(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        inputs: Inputs[_Request],
        read: Callable[[Batch[_Request], _Response], Sequence[_Result | DragomanError]],
        timeout: float | None,
        errors: Errors,
    ) -> _Result | list[_Result | DragomanError]:
        """What `deliver` returns, and raises."""
        steps = deliver(inputs, read, self._attempts(timeout), errors)
        under_way: set[grpc.Future[_Response] | _Waiting[_Request, _Response]] = set()

        def do(step: Send | Receive | Pause) -> Any:
            match step:
                case Send(request, seconds, is_only):
                    call = _Waiting(method, request, seconds) if is_only else method.future(request, timeout=seconds)
                    under_way.add(call)
                    return call
                case Receive(call):
                    under_way.discard(call)
                    return call.result()
                case Pause(seconds):
                    return self._pause(seconds)

        with self._while_open():
            try:
                step = next(steps)
                while True:
                    try:
                        answer = do(step)
                    except grpc.RpcError as failure:
                        if self._closed.is_set():
                            raise
                        step = steps.throw(failure)
                    else:
                        step = steps.send(answer)
            except StopIteration as end:
                return cast("_Result | list[_Result | DragomanError]", end.value)
            finally:
                for call in under_way:
                    call.cancel()

    def responses(
        self,
        method: "grpc.UnaryStreamMultiCallable[_Request, _Response]",
        request: _Request,
        timeout: float | None,
        restart: Callable[[], None],
    ) -> Responses[_Response]:
        """The messages that answer a request; the call begins at once. For `restart` see `Responses`."""

        def start(seconds: float | None) -> MessageIterator[_Response]:
            with self._while_open():
                return method(request, timeout=seconds)

        return Responses(start, self._attempts(timeout)(), self._pause, restart)

    def exchange(
        self, config: ExchangeTranslationsRequest, texts: Iterable[str], timeout: float | None
    ) -> Iterator[Exchanged]:
        """The results of an exchange; the call begins when they are first asked for. Without a timeout it has none."""
        attempt = self._attempts(math.inf if timeout is None else timeout)()

        def start(
            requests: Iterator[ExchangeTranslationsRequest],
        ) -> MessageIterator[ExchangeTranslationsResponse]:
            with self._while_open():
                return self.translation.ExchangeTranslations(requests, timeout=attempt.remaining)

        return exchange(start, config, texts, attempt, self._pause)

    def unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        call: UnaryCall[_Request, _Response, _Result],
        timeout: float | None,
    ) -> _Result:
        """The result of a call.

        Raises:
            DragomanError: the call failed, or its response makes no sense.
        """
        attempt = self._attempts(timeout, call.least_seconds)()
        while True:
            try:
                with self._while_open():
                    response = method(call.request, timeout=attempt.remaining)
            except grpc.RpcError as failure:
                error = call.error(attempt, cast(FailedCall, failure))
                seconds = attempt.pause(error) if call.is_repeatable else None
                if seconds is None:
                    raise error from failure
            else:
                attempt.answered()
                return call.read(response)
            self._pause(seconds)

    def is_serving(self, request: bytes, timeout: float | None) -> bool:
        """What a health check says.

        Raises:
            DragomanError: there is no answer.
        """
        attempt = self._attempts(timeout)()
        try:
            with self._while_open():
                answer = self._check_health(request, timeout=attempt.remaining)
        except grpc.RpcError as failure:
            raise attempt.health_error(cast(FailedCall, failure)) from failure
        return answer == _calls.HEALTH_CHECK_SERVING

    def close(self) -> None:
        """Closes the channels; calls under way raise RequestCancelledError. In a forked child nothing is closed."""
        if self._process_id != os.getpid():
            return
        self._closed.set()
        for channel in self._channels:
            channel.close()

    def _attempts(self, timeout: float | None, least_seconds: float = 0.0) -> Callable[[], Attempt]:
        seconds = max(self._timeout, least_seconds) if timeout is None else _calls.check_timeout(timeout)
        return lambda: Attempt(self._address, seconds, self._throttle, self._security)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise RequestCancelledError(_WAS_CLOSED)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        if self._process_id != os.getpid():
            raise RuntimeError(_WAS_FORKED)
        if self._closed.is_set():
            raise RuntimeError(_IS_CLOSED)
        try:
            yield
        except (ValueError, grpc.FutureCancelledError, grpc.RpcError):
            # What grpc raises where another thread closes the channel around this time.
            if not self._closed.is_set():
                raise
            raise RequestCancelledError(_WAS_CLOSED) from None


class _Waiting(Generic[_Request, _Response]):
    """A call that is made by the thread that waits for it: half a millisecond faster than a future."""

    def __init__(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, seconds: float | None
    ) -> None:
        self._method, self._request, self._seconds = method, request, seconds

    def result(self) -> _Response:
        return self._method(self._request, timeout=self._seconds)

    def cancel(self) -> None:
        """Has nothing to end: who waits is the call."""


class AsyncConnection:
    """What an AsyncClient has of its own. Raises as `Connection`."""

    def __init__(self, address: str | None, timeout: float, tls: TlsChoice, token: str | None) -> None:
        self._address, self._timeout = resolve_address(address), _calls.check_timeout(timeout)
        self._security = secure(self._address, tls, token)
        self._throttle = Throttle()
        self._closed = asyncio.Event()
        self._process_id = os.getpid()
        self._channels: tuple[grpc.aio.Channel, ...] = ()
        self._identified: tuple[grpc.aio.Channel, ...] = ()

    def translation(self) -> "translation_pb2_grpc.TranslationServiceAsyncStub":
        """Calls the methods of the service."""
        stub = translation_pb2_grpc.TranslationServiceStub(self._open_channels()[0])
        return cast("translation_pb2_grpc.TranslationServiceAsyncStub", stub)

    def attention(self) -> "attention_pb2_grpc.AttentionServiceAsyncStub":
        """Likewise."""
        stub = attention_pb2_grpc.AttentionServiceStub(self._open_channels()[0])
        return cast("attention_pb2_grpc.AttentionServiceAsyncStub", stub)

    def models(self) -> "models_pb2_grpc.ModelServiceAsyncStub":
        """Likewise."""
        stub = models_pb2_grpc.ModelServiceStub(self._open_channels()[1])
        return cast("models_pb2_grpc.ModelServiceAsyncStub", stub)

    def model_admin(self) -> "models_pb2_grpc.ModelAdminServiceAsyncStub":
        """Likewise."""
        stub = models_pb2_grpc.ModelAdminServiceStub(self._open_channels()[1])
        return cast("models_pb2_grpc.ModelAdminServiceAsyncStub", stub)

    async def deliver(
        self,
        method: Callable[[], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        inputs: Inputs[_Request],
        read: Callable[[Batch[_Request], _Response], Sequence[_Result | DragomanError]],
        timeout: float | None,
        errors: Errors,
    ) -> _Result | list[_Result | DragomanError]:
        """What `deliver` returns, and raises."""
        steps = deliver(inputs, read, self._attempts(timeout), errors)
        under_way: set[grpc.aio.UnaryUnaryCall[_Request, _Response]] = set()

        async def do(step: Send | Receive | Pause) -> Any:
            match step:
                case Send(request, seconds):
                    call = method()(request, timeout=seconds)
                    under_way.add(call)
                    return call
                case Receive(call):
                    under_way.discard(call)
                    return await call
                case Pause(seconds):
                    return await self._pause(seconds)

        with self._while_open():
            try:
                step = next(steps)
                while True:
                    try:
                        answer = await do(step)
                    except grpc.aio.AioRpcError as failure:
                        step = steps.throw(failure)
                    else:
                        step = steps.send(answer)
            except StopIteration as end:
                return cast("_Result | list[_Result | DragomanError]", end.value)
            finally:
                for call in under_way:
                    call.cancel()

    def responses(
        self,
        method: Callable[[], grpc.aio.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        timeout: float | None,
        restart: Callable[[], None],
    ) -> AsyncResponses[_Request, _Response]:
        """The messages that answer a request; the call begins when the first is asked for. See `Responses`."""

        def start(seconds: float | None) -> grpc.aio.UnaryStreamCall[_Request, _Response]:
            return method()(request, timeout=seconds)

        return AsyncResponses(start, self._attempts(timeout)(), self._pause, restart, self._while_open)

    def exchange(
        self, config: ExchangeTranslationsRequest, texts: AsyncIterable[str] | Iterable[str], timeout: float | None
    ) -> AsyncIterator[Exchanged]:
        """The results of an exchange; the call begins when they are first asked for. Without a timeout it has none."""
        attempt = self._attempts(math.inf if timeout is None else timeout)()

        def start() -> grpc.aio.StreamStreamCall[ExchangeTranslationsRequest, ExchangeTranslationsResponse]:
            return self.translation().ExchangeTranslations(timeout=attempt.remaining)

        return exchange_async(start, config, texts, attempt, self._pause, self._while_open)

    async def unary(
        self,
        method: Callable[[], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        call: UnaryCall[_Request, _Response, _Result],
        timeout: float | None,
    ) -> _Result:
        """The result of a call.

        Raises:
            DragomanError: the call failed, or its response makes no sense.
        """
        attempt = self._attempts(timeout, call.least_seconds)()
        while True:
            try:
                with self._while_open():
                    response = await method()(call.request, timeout=attempt.remaining)
            except grpc.aio.AioRpcError as failure:
                error = call.error(attempt, failure)
                seconds = attempt.pause(error) if call.is_repeatable else None
                if seconds is None:
                    raise error from failure
            else:
                attempt.answered()
                return call.read(response)
            await self._pause(seconds)

    async def is_serving(self, request: bytes, timeout: float | None) -> bool:
        """What a health check says.

        Raises:
            DragomanError: there is no answer.
        """
        attempt = self._attempts(timeout)()
        try:
            with self._while_open():
                check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._open_channels()[1].unary_unary(
                    _calls.HEALTH_CHECK_METHOD
                )
                answer = await check(request, timeout=attempt.remaining)
        except grpc.aio.AioRpcError as failure:
            raise attempt.health_error(failure) from failure
        return answer == _calls.HEALTH_CHECK_SERVING

    async def close(self) -> None:
        """As for `Connection`."""
        if self._process_id != os.getpid():
            return
        self._closed.set()
        for channel in self._channels:
            await channel.close()

    def _open_channels(self) -> tuple[grpc.aio.Channel, ...]:
        """To servers that are SERVING, and to any server; their calls have the token."""
        # Made at the first call, for a channel belongs to the event loop that runs then.
        if not self._channels:
            self._channels = tuple(
                self._security.async_channel(
                    self._address, channel_options(self._address, is_health_checked=is_checked)
                )
                for is_checked in (True, False)
            )
            self._identified = tuple(map(self._security.identified, self._channels))
        return self._identified

    def _attempts(self, timeout: float | None, least_seconds: float = 0.0) -> Callable[[], Attempt]:
        seconds = max(self._timeout, least_seconds) if timeout is None else _calls.check_timeout(timeout)
        return lambda: Attempt(self._address, seconds, self._throttle, self._security)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise RequestCancelledError(_WAS_CLOSED)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        if self._process_id != os.getpid():
            raise RuntimeError(_WAS_FORKED)
        if self._closed.is_set():
            raise RuntimeError(_IS_CLOSED)
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # What grpc raises where another task closes the channel around this time; but
            # the task of the call may have been cancelled itself.
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            if is_cancelled or not self._closed.is_set():
                raise
            raise RequestCancelledError(_WAS_CLOSED) from None
