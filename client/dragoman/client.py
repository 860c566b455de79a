"""The blocking client. `aio.py` has the same methods in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from dragoman import _convert, _requests
from dragoman._calls import DEFAULT_TIMEOUT_SECONDS
from dragoman._connection import Connection
from dragoman._exchange import Exchanged
from dragoman._extras import name_extra
from dragoman._model_methods import ModelMethods
from dragoman._requests import Target
from dragoman._security import TlsChoice
from dragoman.attention.types import Alignment
from dragoman.errors import DragomanError
from dragoman.streams import TranslationReader, TranslationStream
from dragoman.types import AlignOptions, AttentionOptions, Score, ScoreOptions, TranslateOptions, Translation

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention


class Client(ModelMethods):
    """Translates through a Dragoman server.

    Safe to share between threads; keep one for the life of the program, as it holds the
    connections. Create it after forking: in a forked child, its methods raise RuntimeError. Calls
    that could not reach a server, or lose it, are sent again, up to three times in a row; those
    that find its queue full are sent again after the time that it says, if that is within their
    timeout. Of several servers behind the address, those that are not SERVING or hang are left.

        with Client("localhost:50051") as client:
            print(client.translate("Good morning.", source="en", target="fr").text)

    Args:
        address: host and port, or any gRPC target such as "dns:///translate.example:50051";
            without a port, 50051 is taken. Default: the environment variable DRAGOMAN_ADDRESS,
            else "localhost:50051".
        tls: True encrypts, and trusts the authorities that SSL_CERT_FILE names, else those that come with
            gRPC; the path of a file trusts the authorities in that; a `dragoman.Tls` has a certificate of
            the client, too; False is without. Default: the environment variable DRAGOMAN_TLS, which is 1,
            0 or such a path, with DRAGOMAN_CLIENT_CERTIFICATE and DRAGOMAN_CLIENT_KEY, else without.
        token: says who calls, where the server wants to know. Default: the environment variable
            DRAGOMAN_TOKEN. It is sent to other machines with TLS alone, or where `tls` is False.
        timeout: seconds that a call to the server may take where a method is not told
            otherwise; math.inf is no limit.

    Raises:
        TypeError: the address or the token is not a text, the timeout not a number, or `tls` none of its types.
            Methods raise it, and the next, for their timeouts.
        ValueError: the address is not one, the timeout is not above 0, a file of `tls` or the token is of no
            use, or the token would be sent to another machine without TLS.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        tls: TlsChoice = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._connection = Connection(address, timeout, tls, token)

    # A str is a Sequence[str] too: type checkers take the first overload that fits.
    @overload
    def translate(  # type: ignore[overload-overlap]
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
    def translate(
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
    def translate(
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

    def translate(
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
        """Translates one text, or each text of a list.

        Args:
            text: the text or texts. A list may be of any length: it goes out in several
                calls where needed, and comes back in its order.
            source: language code of the texts, such as "en".
            target: language code to translate into.
            target_prefix: what the translation begins with, for a text of a single segment;
                for a list, a list of the same length.
            include_signals: whether to say of every segment how its translation sits on its
                source: see `dragoman.Signals`. It takes another pass of the model.
            timeout: seconds for each call to the server, of which a long list takes several: the
                list ends when all of it is done. Default: the client's.
            errors: what to do about texts of a list that cannot be translated. "raise"
                raises for the first of them; "return" puts the exception in its place, and where
                a call fails, as by its timeout, in the places of all its texts. What concerns
                all texts, such as a language that the model does not have or a server that
                cannot be reached, is raised in any case.
            **options: how to decode, such as `beam_size=4`, and the model, segmentation and
                priority: see `dragoman.TranslateOptions`.

        Returns:
            A Translation for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a text with `errors="raise"`.
        """
        inputs = _requests.translate_inputs(
            text, target_prefix, source=source, target=target, include_signals=include_signals, options=options
        )
        return self._connection.deliver(
            self._connection.translation.Translate, inputs, _convert.translations, timeout, errors
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
    ) -> TranslationStream:
        """Translates a text, piece by piece as it is decoded.

        Args:
            text: the text.
            source: as for `translate`.
            target: as for `translate`.
            target_prefix: as for `translate`.
            timeout: seconds until the end of the stream; default: the client's.
            **options: as for `translate`.

        Returns:
            An iterator over pieces of the translation. At its end `.result` is the Translation.

        Raises:
            DragomanError: an argument cannot be sent. What else goes wrong is raised by iterating.
        """
        request = _requests.stream_request(text, target_prefix, source=source, target=target, options=options)
        method = self._connection.translation.StreamTranslation
        reader = TranslationReader(request)
        return TranslationStream(reader, self._connection.responses(method, request, timeout, reader.restart))

    def exchange(
        self,
        texts: Iterable[str],
        *,
        source: str,
        target: str,
        timeout: float | None = None,
        **options: Unpack[TranslateOptions],
    ) -> Iterator[Exchanged]:
        """Translates a stream of texts, each as soon as it is there.

        The iterable may be endless: it is taken, on another thread, no further than 256 texts
        ahead of the results that were taken, and fewer where they are long. What it raises is
        raised here, after the results of the texts before. Texts that find the server's queue
        full are sent again, and so are those that have no result when their server is lost.
        Leaving the iterator before its end cancels what is under way.

        Args:
            texts: the texts.
            source: as for `translate`.
            target: as for `translate`.
            timeout: seconds until the end of the exchange; default: any time.
            **options: as for `translate`.

        Returns:
            An iterator over the index of each text with its Translation, or with the
            DragomanError that says why there is none, in the order in which they are ready.

        Raises:
            DragomanError: an argument cannot be sent. Iterating raises what ends the exchange.
        """
        config = _requests.exchange_config(source=source, target=target, options=options)
        return self._connection.exchange(config, texts, timeout)

    @overload
    def score(  # type: ignore[overload-overlap]
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
    def score(
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
    def score(
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

    def score(
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
        """Gives the log-probability of a translation, or of each of a list.

        Args:
            text: the source or sources, each a single line.
            target_text: the translation of each: a text, or ids of tokens. The `token_ids` of a
                hypothesis give the very `sum_logprob` that came with it.
            source: language code of the sources.
            target: language code of the translations.
            timeout: as for `translate`.
            errors: as for `translate`.
            **options: the model, length_penalty and priority: see `dragoman.ScoreOptions`.

        Returns:
            A Score for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        inputs = _requests.score_inputs(text, target_text, source=source, target=target, options=options)
        return self._connection.deliver(self._connection.translation.Score, inputs, _convert.scores, timeout, errors)

    def attention(
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
        """Shows what the model attends to in a text and its translation.

        Weights come from one pass over the finished target, whoever wrote it: those of a
        translation made now are those of the same target given. `attention_bytes` says how large
        an answer is.

        Args:
            text: the source, a single line.
            target_text: the target, a text or ids of tokens; default: a translation made now.
            source: language code of the text.
            target: language code of the target.
            source_only: without a target; only the encoder has attention then.
            timeout: seconds until all weights are there; default: the client's.
            **options: which weights (`kinds=("encoder", "cross")`, `layers`, `heads` and so on), how
                to decode, the model and priority: see `dragoman.AttentionOptions`.

        Returns:
            An Attention with NumPy arrays; of several hypotheses the best, with the others in it.

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
        method = self._connection.attention.GetAttention
        responses = self._connection.responses(method, request, timeout, reader.restart)
        try:
            for response in responses:
                reader.add(response)
        finally:
            responses.cancel()
        return reader.attention()

    @overload
    def align(  # type: ignore[overload-overlap]
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
    def align(
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
    def align(
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

    def align(
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
        """Aligns the words of a text with those of its translation, or those of each of a list.

        Args:
            text: the source or sources, each a single line.
            target_text: the translation of each, a text or ids of tokens; None is one made now.
            source: language code of the sources.
            target: language code of the translations.
            timeout: as for `translate`.
            errors: as for `translate`.
            **options: `method`, `layer` and `heads`, how to decode, the model and priority: see
                `dragoman.AlignOptions`.

        Returns:
            An Alignment for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        inputs = _requests.align_inputs(text, target_text, source=source, target=target, options=options)
        return self._connection.deliver(self._connection.attention.Align, inputs, _convert.alignments, timeout, errors)

    def health(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server, or one of its models, is ready to translate.

        False where the server says that it is starting or stopping, or stuck, and where the model cannot be loaded.

        Args:
            model: name, or name@version; default: the server as a whole.
            timeout: seconds to wait for the answer; default: the client's.

        Raises:
            UnavailableError: no server answered.
            NotFoundError: the server has no such model.
            DragomanError: something answered, but no Dragoman server.
        """
        return self._connection.is_serving(_requests.health_check(model), timeout)

    def close(self) -> None:
        """Closes the connections; calls under way raise RequestCancelledError."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
