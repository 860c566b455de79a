"""The messages of a call that answers with a stream.

It begins again while it finds the server's queue full, and when its server is lost.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Generic, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from dragoman._calls import Attempt, MessageIterator, is_lost
from dragoman.errors import FailedCall, RequestCancelledError

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_CLOSED = "The stream was closed"


class Responses(Generic[_Response]):
    """The messages of a call that begins at once. Iterating raises a DragomanError where it fails.

    Args:
        start: begins the call, which may take so many seconds.
        attempt: the time it may take.
        pause: waits for some seconds.
        restart: is told that messages will come from the first one again, as the server was lost after some; raises
            UnavailableError where that must not be.
    """

    def __init__(
        self,
        start: Callable[[float | None], MessageIterator[_Response]],
        attempt: Attempt,
        pause: Callable[[float], None],
        restart: Callable[[], None],
    ) -> None:
        self._start, self._attempt, self._pause, self._restart = start, attempt, pause, restart
        self._has_begun = self._is_cancelled = False
        self._call = start(attempt.remaining)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Response:
        while True:
            try:
                response = next(self._call)
            except grpc.RpcError as failure:
                if self._is_cancelled:
                    raise RequestCancelledError(_CLOSED) from failure
                error = self._attempt.error(cast(FailedCall, failure))
                seconds = self._attempt.pause(error) if is_lost(error) or not self._has_begun else None
                if seconds is None:
                    raise error from failure
                if self._has_begun:
                    self._restart()
            else:
                self._attempt.answered()
                self._has_begun = True
                return response
            self._pause(seconds)
            if self._is_cancelled:
                raise RequestCancelledError(_CLOSED)
            self._has_begun = False
            self._call = self._start(self._attempt.remaining)

    def finish(self) -> None:
        """Waits for the status, when all messages are there: a call that is left before it counts as cancelled."""
        with suppress(grpc.RpcError):
            next(self._call, None)

    def cancel(self) -> None:
        """Ends the call."""
        self._is_cancelled = True
        self._call.cancel()


AsyncCall: TypeAlias = grpc.aio.UnaryStreamCall[_Request, _Response]


class AsyncResponses(Generic[_Request, _Response]):
    """The same for asyncio; the call begins when it is first read from.

    Args:
        start: as for `Responses`.
        attempt: as for `Responses`.
        pause: as for `Responses`.
        restart: as for `Responses`.
        while_open: a context for reading, which ends when the client is closed.
    """

    def __init__(
        self,
        start: Callable[[float | None], AsyncCall[_Request, _Response]],
        attempt: Attempt,
        pause: Callable[[float], Awaitable[None]],
        restart: Callable[[], None],
        while_open: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._start, self._attempt, self._pause, self._restart = start, attempt, pause, restart
        self._while_open = while_open
        self._has_begun = self._is_cancelled = False
        self._call: AsyncCall[_Request, _Response] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Response:
        while True:
            try:
                with self._while_open():
                    if self._call is None:
                        self._call = self._start(self._attempt.remaining)
                    # Not `read`, which skips what is left of a call that has its status.
                    response = await anext(aiter(self._call))
            except grpc.aio.AioRpcError as failure:
                if self._is_cancelled:
                    raise RequestCancelledError(_CLOSED) from failure
                error = self._attempt.error(failure)
                seconds = self._attempt.pause(error) if is_lost(error) or not self._has_begun else None
                if seconds is None:
                    raise error from failure
                if self._has_begun:
                    self._restart()
            else:
                self._attempt.answered()
                self._has_begun = True
                return response
            await self._pause(seconds)
            if self._is_cancelled:
                raise RequestCancelledError(_CLOSED)
            self._has_begun = False
            self._call = None

    async def finish(self) -> None:
        """Waits for the status: see `Responses.finish`."""
        with suppress(grpc.aio.AioRpcError), self._while_open():
            if self._call is not None:
                await anext(aiter(self._call), None)

    def cancel(self) -> None:
        """Ends the call."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()
