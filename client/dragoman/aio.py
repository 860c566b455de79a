"""The asyncio client. `client.py` has the same methods in the same order."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, cast, overload

import grpc
import grpc.aio

from dragoman import _calls, _convert
from dragoman._channel import channel_options, resolve_address
from dragoman.errors import DragomanError, RequestCancelledError, error_from_call
from dragoman.types import Segmentation, Translation
from dragoman.v1 import translation_pb2_grpc
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse


class AsyncClient:
    """Translates through a Dragoman server, from asyncio.

    Safe to share between the tasks of one event loop, that of its first call. Otherwise like
    `dragoman.Client`, which describes the arguments.

        async with AsyncClient("localhost:50051") as client:
            print((await client.translate("Good morning.", source="en", target="fr")).text)
    """

    def __init__(self, address: str | None = None, *, timeout: float = _calls.DEFAULT_TIMEOUT_SECONDS) -> None:
        self._address = resolve_address(address)
        self._timeout = timeout
        self._closed = False
        self._channel: grpc.aio.Channel | None = None

    # A str is a Sequence[str] too: type checkers take the first overload that fits.
    @overload
    async def translate(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        source: str,
        target: str,
        model: str = "",
        max_target_tokens: int | None = None,
        segmentation: Segmentation | None = None,
        timeout: float | None = None,
    ) -> Translation: ...

    @overload
    async def translate(
        self,
        text: Sequence[str],
        *,
        source: str,
        target: str,
        model: str = "",
        max_target_tokens: int | None = None,
        segmentation: Segmentation | None = None,
        timeout: float | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[Translation]: ...

    @overload
    async def translate(
        self,
        text: Sequence[str],
        *,
        source: str,
        target: str,
        model: str = "",
        max_target_tokens: int | None = None,
        segmentation: Segmentation | None = None,
        timeout: float | None = None,
        errors: Literal["return"],
    ) -> list[Translation | DragomanError]: ...

    async def translate(
        self,
        text: str | Sequence[str],
        *,
        source: str,
        target: str,
        model: str = "",
        max_target_tokens: int | None = None,
        segmentation: Segmentation | None = None,
        timeout: float | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Translation | Sequence[Translation | DragomanError]:
        """Translates one text, or each text of a list: see `dragoman.Client.translate`.

        Raises:
            DragomanError: the call failed, or a text with `errors="raise"`.
        """
        requests = _convert.translate_requests(
            [text] if isinstance(text, str) else text,
            source=source,
            target=target,
            model=model,
            max_target_tokens=max_target_tokens,
            segmentation=segmentation,
        )
        with self._while_open() as channel:
            results = await self._translate(channel, requests, self._timeout if timeout is None else timeout)
        if isinstance(text, str):
            return _calls.only_translation(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

    async def health(self, *, timeout: float | None = None) -> bool:
        """Whether the server is ready to translate: see `dragoman.Client.health`.

        Raises:
            DragomanError: something answered, but no Dragoman server.
        """
        try:
            with self._while_open() as channel:
                check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_calls.HEALTH_CHECK_METHOD)
                answer = await check(
                    _calls.HEALTH_CHECK_REQUEST,
                    timeout=self._timeout if timeout is None else timeout,
                )
        except grpc.aio.AioRpcError as error:
            return _calls.not_serving(error_from_call(error))
        return answer == _calls.HEALTH_CHECK_SERVING

    async def close(self) -> None:
        """Closes the connections; calls under way raise RequestCancelledError."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _translate(
        self, channel: grpc.aio.Channel, requests: list[TranslateRequest], timeout: float
    ) -> list[Translation | DragomanError]:
        stub = cast(
            "translation_pb2_grpc.TranslationServiceAsyncStub",
            translation_pb2_grpc.TranslationServiceStub(channel),
        )
        deadline = time.monotonic() + timeout
        results: list[Translation | DragomanError] = []
        under_way: deque[tuple[TranslateRequest, grpc.aio.UnaryUnaryCall[TranslateRequest, TranslateResponse]]] = (
            deque()
        )

        async def collect() -> None:
            request, call = under_way.popleft()
            try:
                response = await call
            except grpc.aio.AioRpcError as error:
                raise error_from_call(error, len(results)) from error
            results.extend(_convert.outcomes(request, response, len(results)))

        try:
            for request in requests:
                if len(under_way) == _calls.MAX_CALLS_IN_FLIGHT:
                    await collect()
                remaining = max(0.0, deadline - time.monotonic())
                under_way.append((request, stub.Translate(request, timeout=remaining)))
            while under_way:
                await collect()
        finally:
            for _, call in under_way:
                call.cancel()
        return results

    @contextmanager
    def _while_open(self) -> Iterator[grpc.aio.Channel]:
        if self._closed:
            raise RuntimeError("The client is closed")
        # Made at the first call, for a channel belongs to the event loop that runs then.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, channel_options())
        try:
            yield self._channel
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # What grpc raises where another task closes the channel around this time; but
            # the task of the call may have been cancelled itself.
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            if is_cancelled or not self._closed:
                raise
            raise RequestCancelledError("The client was closed during the call") from None
