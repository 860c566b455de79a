"""The asyncio client. `client.py` has the same methods in the same order."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar, Unpack, cast, overload

import grpc
import grpc.aio

from dragoman import _calls, _convert, _requests
from dragoman._channel import channel_options, resolve_address
from dragoman._exchange import Exchanged, exchange_async
from dragoman._extras import name_extra
from dragoman._requests import Target
from dragoman.attention.types import Alignment
from dragoman.errors import DragomanError, RequestCancelledError, error_from_call
from dragoman.streams import AsyncTranslationStream
from dragoman.types import AlignOptions, AttentionOptions, Score, ScoreOptions, TranslateOptions, Translation
from dragoman.v1 import attention_pb2_grpc, translation_pb2_grpc

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")


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
        target_prefix: str | None = None,
        include_signals: bool = False,
        timeout: float | None = None,
        **options: Unpack[TranslateOptions],
    ) -> Translation: ...

    @overload
    async def translate(
        self,
        text: Sequence[str],
        *,
        source: str,
        target: str,
        target_prefix: Sequence[str] | None = None,
        include_signals: bool = False,
        timeout: float | None = None,
        errors: Literal["raise"] = "raise",
        **options: Unpack[TranslateOptions],
    ) -> list[Translation]: ...

    @overload
    async def translate(
        self,
        text: Sequence[str],
        *,
        source: str,
        target: str,
        target_prefix: Sequence[str] | None = None,
        include_signals: bool = False,
        timeout: float | None = None,
        errors: Literal["return"],
        **options: Unpack[TranslateOptions],
    ) -> list[Translation | DragomanError]: ...

    async def translate(
        self,
        text: str | Sequence[str],
        *,
        source: str,
        target: str,
        target_prefix: str | Sequence[str] | None = None,
        include_signals: bool = False,
        timeout: float | None = None,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[TranslateOptions],
    ) -> Translation | Sequence[Translation | DragomanError]:
        """Translates one text, or each text of a list: see `dragoman.Client.translate`.

        Raises:
            DragomanError: the call failed, or a text with `errors="raise"`.
        """
        requests = _requests.translate_requests(
            text, target_prefix, source=source, target=target, include_signals=include_signals, options=options
        )
        results = await self._run(lambda: self._stub().Translate, requests, _convert.translations, timeout)
        if isinstance(text, str):
            return _calls.only_result(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

    def stream(
        self,
        text: str,
        *,
        source: str,
        target: str,
        target_prefix: str | None = None,
        timeout: float | None = None,
        **options: Unpack[TranslateOptions],
    ) -> AsyncTranslationStream:
        """Translates a text, piece by piece as it is decoded: see `dragoman.Client.stream`.

        Returns:
            An asynchronous iterator over pieces of the translation. At its end `.result` is the
            Translation.

        Raises:
            DragomanError: an argument cannot be sent. What else goes wrong is raised by iterating.
        """
        request = _requests.stream_request(text, target_prefix, source=source, target=target, options=options)
        seconds = self._seconds(timeout)
        return AsyncTranslationStream(
            request, lambda: self._stub().StreamTranslation(request, timeout=seconds), self._while_open
        )

    def exchange(
        self,
        texts: AsyncIterable[str] | Iterable[str],
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        **options: Unpack[TranslateOptions],
    ) -> AsyncIterator[Exchanged]:
        """Translates a stream of texts, each as soon as it is there: see `dragoman.Client.exchange`.

        Args:
            texts: the texts. An iterable that is not asynchronous must not block.
            source: as for `translate`.
            target: as for `translate`.
            timeout: seconds until the end of the exchange; default: any time.
            **options: as for `translate`.

        Raises:
            DragomanError: an argument cannot be sent. Iterating raises what ends the exchange.
        """
        config = _requests.exchange_config(source=source, target=target, options=options)

        return exchange_async(
            lambda: self._stub().ExchangeTranslations(timeout=timeout), config, texts, self._while_open
        )

    @overload
    async def score(  # type: ignore[overload-overlap]
        self,
        text: str,
        target_text: Target,
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score: ...

    @overload
    async def score(
        self,
        text: Sequence[str],
        target_text: Sequence[Target],
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["raise"] = "raise",
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...

    @overload
    async def score(
        self,
        text: Sequence[str],
        target_text: Sequence[Target],
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["return"],
        **options: Unpack[ScoreOptions],
    ) -> list[Score | DragomanError]: ...

    async def score(
        self,
        text: str | Sequence[str],
        target_text: Target | Sequence[Target],
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[ScoreOptions],
    ) -> Score | Sequence[Score | DragomanError]:
        """Gives the log-probability of a translation, or of each of a list: see `dragoman.Client.score`.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        requests = _requests.score_requests(text, target_text, source=source, target=target, options=options)
        results = await self._run(lambda: self._stub().Score, requests, _convert.scores, timeout)
        if isinstance(text, str):
            return _calls.only_result(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

    async def attention(
        self,
        text: str,
        target_text: Target | None = None,
        *,
        source: str,
        target: str,
        source_only: bool = False,
        timeout: float | None = None,
        **options: Unpack[AttentionOptions],
    ) -> "Attention":
        """Shows what the model attends to in a text and its translation: see `dragoman.Client.attention`.

        Raises:
            DragomanError: the call failed.
            ModuleNotFoundError: NumPy is missing; it comes with the extra `viz`.
        """
        with name_extra("viz"):
            from dragoman.attention.reader import AttentionReader
        request = _requests.attention_request(
            text, target_text, source=source, target=target, source_only=source_only, options=options
        )
        reader = AttentionReader(request)
        with self._while_open():
            call = self._attention_stub().GetAttention(request, timeout=self._seconds(timeout))
            try:
                async for response in call:
                    reader.add(response)
            except grpc.aio.AioRpcError as error:
                raise error_from_call(error) from error
            finally:
                call.cancel()
        return reader.attention()

    @overload
    async def align(  # type: ignore[overload-overlap]
        self,
        text: str,
        target_text: Target | None = None,
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        **options: Unpack[AlignOptions],
    ) -> Alignment: ...

    @overload
    async def align(
        self,
        text: Sequence[str],
        target_text: Sequence[Target | None] | None = None,
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["raise"] = "raise",
        **options: Unpack[AlignOptions],
    ) -> list[Alignment]: ...

    @overload
    async def align(
        self,
        text: Sequence[str],
        target_text: Sequence[Target | None] | None = None,
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["return"],
        **options: Unpack[AlignOptions],
    ) -> list[Alignment | DragomanError]: ...

    async def align(
        self,
        text: str | Sequence[str],
        target_text: Target | Sequence[Target | None] | None = None,
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        errors: Literal["raise", "return"] = "raise",
        **options: Unpack[AlignOptions],
    ) -> Alignment | Sequence[Alignment | DragomanError]:
        """Aligns the words of a text, or of each of a list, with those of its translation: see `dragoman.Client.align`.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        requests = _requests.align_requests(text, target_text, source=source, target=target, options=options)
        results = await self._run(lambda: self._attention_stub().Align, requests, _convert.alignments, timeout)
        if isinstance(text, str):
            return _calls.only_result(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

    async def health(self, *, timeout: float | None = None) -> bool:
        """Whether the server is ready to translate: see `dragoman.Client.health`.

        Raises:
            DragomanError: something answered, but no Dragoman server.
        """
        try:
            with self._while_open():
                check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._open_channel().unary_unary(
                    _calls.HEALTH_CHECK_METHOD
                )
                answer = await check(
                    _calls.HEALTH_CHECK_REQUEST,
                    timeout=self._seconds(timeout),
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

    async def _run(
        self,
        method: Callable[[], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        requests: Sequence[_Request],
        read: Callable[[_Request, _Response, int], list[_Result]],
        timeout: float | None,
    ) -> list[_Result]:
        """The results of all requests, in order: `read` gives those of one, whose first has the given index."""
        deadline = time.monotonic() + self._seconds(timeout)
        results: list[_Result] = []
        under_way: deque[tuple[_Request, grpc.aio.UnaryUnaryCall[_Request, _Response]]] = deque()

        async def collect() -> None:
            request, call = under_way.popleft()
            try:
                response = await call
            except grpc.aio.AioRpcError as error:
                raise error_from_call(error, len(results)) from error
            results.extend(read(request, response, len(results)))

        with self._while_open():
            call = method()
            try:
                for request in requests:
                    if len(under_way) == _calls.MAX_CALLS_IN_FLIGHT:
                        await collect()
                    remaining = max(0.0, deadline - time.monotonic())
                    under_way.append((request, call(request, timeout=remaining)))
                while under_way:
                    await collect()
            finally:
                for _, left in under_way:
                    left.cancel()
        return results

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def _open_channel(self) -> grpc.aio.Channel:
        # Made at the first call, for a channel belongs to the event loop that runs then.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, channel_options())
        return self._channel

    def _stub(self) -> "translation_pb2_grpc.TranslationServiceAsyncStub":
        stub = translation_pb2_grpc.TranslationServiceStub(self._open_channel())
        return cast("translation_pb2_grpc.TranslationServiceAsyncStub", stub)

    def _attention_stub(self) -> "attention_pb2_grpc.AttentionServiceAsyncStub":
        stub = attention_pb2_grpc.AttentionServiceStub(self._open_channel())
        return cast("attention_pb2_grpc.AttentionServiceAsyncStub", stub)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        if self._closed:
            raise RuntimeError("The client is closed")
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # What grpc raises where another task closes the channel around this time; but
            # the task of the call may have been cancelled itself.
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling() > 0
            if is_cancelled or not self._closed:
                raise
            raise RequestCancelledError("The client was closed during the call") from None
