"""The asyncio client. `client.py` has the same methods in the same order."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from dragoman import _convert, _requests
from dragoman._calls import DEFAULT_TIMEOUT_SECONDS
from dragoman._connection import AsyncConnection
from dragoman._exchange import Exchanged
from dragoman._extras import name_extra
from dragoman._model_methods import AsyncModelMethods
from dragoman._requests import Target
from dragoman._security import TlsChoice
from dragoman.attention.types import Alignment
from dragoman.errors import DragomanError
from dragoman.streams import AsyncTranslationStream, TranslationReader
from dragoman.types import AlignOptions, AttentionOptions, Score, ScoreOptions, TranslateOptions, Translation

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention


class AsyncClient(AsyncModelMethods):
    """Translates through a Dragoman server, from asyncio.

    Safe to share between the tasks of one event loop, that of its first call. Otherwise like
    `dragoman.Client`, which describes the arguments.

        async with AsyncClient("localhost:50051") as client:
            print((await client.translate("Good morning.", source="en", target="fr")).text)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: TlsChoice = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._connection = AsyncConnection(address, timeout, tls, token)

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
        inputs = _requests.translate_inputs(
            text, target_prefix, source=source, target=target, include_signals=include_signals, options=options
        )
        connection = self._connection
        return await connection.deliver(
            lambda: connection.translation().Translate, inputs, _convert.translations, timeout, errors
        )

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
        connection = self._connection
        reader = TranslationReader(request)
        responses = connection.responses(
            lambda: connection.translation().StreamTranslation, request, timeout, reader.restart
        )
        return AsyncTranslationStream(reader, responses)

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
        return self._connection.exchange(config, texts, timeout)

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
        inputs = _requests.score_inputs(text, target_text, source=source, target=target, options=options)
        connection = self._connection
        return await connection.deliver(
            lambda: connection.translation().Score, inputs, _convert.scores, timeout, errors
        )

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
        connection = self._connection
        responses = connection.responses(lambda: connection.attention().GetAttention, request, timeout, reader.restart)
        try:
            async for response in responses:
                reader.add(response)
        finally:
            responses.cancel()
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
        inputs = _requests.align_inputs(text, target_text, source=source, target=target, options=options)
        connection = self._connection
        return await connection.deliver(
            lambda: connection.attention().Align, inputs, _convert.alignments, timeout, errors
        )

    async def health(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server, or one of its models, is ready to translate: see `dragoman.Client.health`.

        Raises:
            UnavailableError: no server answered.
            NotFoundError: the server has no such model.
            DragomanError: something answered, but no Dragoman server.
        """
        return await self._connection.is_serving(_requests.health_check(model), timeout)

    async def close(self) -> None:
        """Closes the connections; calls under way raise RequestCancelledError."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
