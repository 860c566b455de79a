"""A translation while it is decoded: what `Client.stream` and `AsyncClient.stream` return."""

from types import TracebackType
from typing import Self

from dragoman import _convert
from dragoman._responses import AsyncResponses, Responses
from dragoman.errors import InternalError
from dragoman.types import Translation
from dragoman.v1.translation_pb2 import StreamTranslationRequest, StreamTranslationResponse

_NO_RESULT = "The translation is not there yet: read the stream to its end"
_NO_TRANSLATION = "The server ended the stream without a translation"


class TranslationStream:
    """The pieces of a translation as they are decoded, and in the end the whole.

        stream = client.stream("Good morning.", source="en", target="fr")
        for piece in stream:
            print(piece, end="", flush=True)
        print(stream.result.score)

    All pieces together are `result.text`. Iterating raises a DragomanError where the call fails.
    Whoever stops before the end closes the stream, or uses it as a context manager.
    """

    def __init__(self, request: StreamTranslationRequest, responses: Responses[StreamTranslationResponse]) -> None:
        self._request = request
        self._responses = responses
        self._result: Translation | None = None

    @property
    def result(self) -> Translation:
        """The translation, once the stream has ended.

        Raises:
            RuntimeError: it has not.
        """
        if self._result is None:
            raise RuntimeError(_NO_RESULT)
        return self._result

    def close(self) -> None:
        """Ends the call. There is no result if it is not there yet."""
        self._responses.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._result is not None:
            raise StopIteration
        response = next(self._responses, None)
        if response is None:
            raise InternalError(_NO_TRANSLATION)
        if response.WhichOneof("event") == "delta":
            return response.delta
        self._result = _convert.streamed(self._request, response)
        next(self._responses, None)  # the status: a call that is left before it counts as cancelled
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncTranslationStream:
    """The same for asyncio: see `dragoman.TranslationStream`.

    stream = client.stream("Good morning.", source="en", target="fr")
    async for piece in stream:
        print(piece, end="", flush=True)
    print(stream.result.score)
    """

    def __init__(
        self,
        request: StreamTranslationRequest,
        responses: AsyncResponses[StreamTranslationRequest, StreamTranslationResponse],
    ) -> None:
        self._request = request
        self._responses = responses
        self._result: Translation | None = None

    @property
    def result(self) -> Translation:
        """The translation, once the stream has ended.

        Raises:
            RuntimeError: it has not.
        """
        if self._result is None:
            raise RuntimeError(_NO_RESULT)
        return self._result

    async def close(self) -> None:
        """Ends the call. There is no result if it is not there yet."""
        self._responses.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._result is not None:
            raise StopAsyncIteration
        response = await anext(self._responses, None)
        if response is None:
            raise InternalError(_NO_TRANSLATION)
        if response.WhichOneof("event") == "delta":
            return response.delta
        self._result = _convert.streamed(self._request, response)
        await anext(self._responses, None)  # the status: a call that is left before it counts as cancelled
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
