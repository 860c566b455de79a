"""A translation while it is decoded: what `Client.stream` and `AsyncClient.stream` return."""

from types import TracebackType
from typing import Self

from dragoman import _convert
from dragoman._responses import AsyncResponses, Responses
from dragoman.errors import DragomanError, InternalError, UnavailableError
from dragoman.types import Translation
from dragoman.v1.translation_pb2 import DecodingOptions, StreamTranslationRequest, StreamTranslationResponse

_NO_RESULT = "The translation is not there yet: read the stream to its end"
_NO_TRANSLATION = "The server ended the stream without a translation"
_IS_RANDOM = (
    "The server was lost during the stream, which cannot go on where it was: sampling gives another text every time. "
    "With a seed it does not"
)
_DIFFERS = (
    "The server was lost during the stream, which cannot go on where it was: the one that was asked next translates "
    "differently"
)


class TranslationReader:
    """From the messages of `StreamTranslation` to text, which comes once although the messages may begin again."""

    def __init__(self, request: StreamTranslationRequest) -> None:
        self.result: Translation | None = None
        self._request = request
        self._given: list[str] = []  # pieces that the caller has
        self._to_repeat = ""  # of these, what the present call has yet to say

    def add(self, response: StreamTranslationResponse) -> str:
        """Takes the next message; returns the text that is new, be it none.

        Raises:
            UnavailableError: a call that began again gives another text.
        """
        if response.WhichOneof("event") == "delta":
            piece = self._new(response.delta)
            self._given.append(piece)
            return piece
        if self._to_repeat:
            raise UnavailableError(_DIFFERS)
        self.result = _convert.streamed(self._request, response)
        return ""

    def restart(self) -> None:
        """The messages will come from the first one again.

        Raises:
            UnavailableError: they would not have the text again that the caller has.
        """
        self._given = ["".join(self._given)]
        self._to_repeat = self._given[0]
        if self._to_repeat and _is_random(self._request.options):
            raise UnavailableError(_IS_RANDOM)

    def _new(self, delta: str) -> str:
        repeated = delta[: len(self._to_repeat)]
        if not self._to_repeat.startswith(repeated):
            raise UnavailableError(_DIFFERS)
        self._to_repeat = self._to_repeat[len(repeated) :]
        return delta[len(repeated) :]


def _is_random(options: DecodingOptions) -> bool:
    """Whether the same call gives another text every time."""
    is_sampled = options.HasField("temperature") or options.HasField("top_k") or options.HasField("top_p")
    return is_sampled and not options.HasField("seed")


class TranslationStream:
    """The pieces of a translation as they are decoded, and in the end the whole.

        stream = client.stream("Good morning.", source="en", target="fr")
        for piece in stream:
            print(piece, end="", flush=True)
        print(stream.result.score)

    All pieces together are `result.text`. Iterating raises a DragomanError where the call fails.
    If its server is lost, the stream goes on with another where it was: the text is asked for
    again, and what was given is left out. That cannot be with sampling without a seed, nor where
    the other server translates differently: UnavailableError is raised then.
    Whoever stops before the end closes the stream, or uses it as a context manager.
    """

    def __init__(self, reader: TranslationReader, responses: Responses[StreamTranslationResponse]) -> None:
        self._reader = reader
        self._responses = responses

    @property
    def result(self) -> Translation:
        """The translation, once the stream has ended.

        Raises:
            RuntimeError: it has not.
        """
        if self._reader.result is None:
            raise RuntimeError(_NO_RESULT)
        return self._reader.result

    def close(self) -> None:
        """Ends the call. There is no result if it is not there yet."""
        self._responses.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while self._reader.result is None:
            response = next(self._responses, None)
            if response is None:
                raise InternalError(_NO_TRANSLATION)
            try:
                piece = self._reader.add(response)
            except DragomanError:
                self._responses.cancel()
                raise
            if piece:
                return piece
            if response.HasField("translation"):
                self._responses.finish()
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
        reader: TranslationReader,
        responses: AsyncResponses[StreamTranslationRequest, StreamTranslationResponse],
    ) -> None:
        self._reader = reader
        self._responses = responses

    @property
    def result(self) -> Translation:
        """The translation, once the stream has ended.

        Raises:
            RuntimeError: it has not.
        """
        if self._reader.result is None:
            raise RuntimeError(_NO_RESULT)
        return self._reader.result

    async def close(self) -> None:
        """Ends the call. There is no result if it is not there yet."""
        self._responses.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while self._reader.result is None:
            response = await anext(self._responses, None)
            if response is None:
                raise InternalError(_NO_TRANSLATION)
            try:
                piece = self._reader.add(response)
            except DragomanError:
                self._responses.cancel()
                raise
            if piece:
                return piece
            if response.HasField("translation"):
                await self._responses.finish()
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
