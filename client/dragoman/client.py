"""The blocking client. `aio.py` has the same methods in the same order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar, Unpack, cast, overload

import grpc

from dragoman import _calls, _convert, _requests
from dragoman._channel import channel_options, resolve_address
from dragoman._exchange import Exchanged, exchange
from dragoman._extras import name_extra
from dragoman._requests import Target
from dragoman.attention.types import Alignment
from dragoman.errors import DragomanError, FailedCall, RequestCancelledError, error_from_call
from dragoman.streams import TranslationStream
from dragoman.types import AlignOptions, AttentionOptions, Score, ScoreOptions, TranslateOptions, Translation
from dragoman.v1 import attention_pb2_grpc, translation_pb2_grpc
from dragoman.v1.translation_pb2 import ExchangeTranslationsRequest, ExchangeTranslationsResponse

if TYPE_CHECKING:
    from dragoman.attention.attention import Attention

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")


class Client:
    """Translates through a Dragoman server.

    Safe to share between threads; keep one for the life of the program, as it holds the
    connections. Create it after forking. Calls that could not reach a server are sent again,
    up to three times.

        with Client("localhost:50051") as client:
            print(client.translate("Good morning.", source="en", target="fr").text)

    Args:
        address: host and port, or any gRPC target such as "dns:///translate.example:50051";
            default: the environment variable DRAGOMAN_ADDRESS, else "localhost:50051".
        timeout: seconds that a method may take where it is not told otherwise.
    """

    def __init__(self, address: str | None = None, *, timeout: float = _calls.DEFAULT_TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        self._closed = False
        self._channel = grpc.insecure_channel(resolve_address(address), channel_options())
        self._stub = translation_pb2_grpc.TranslationServiceStub(self._channel)
        self._attention_stub = attention_pb2_grpc.AttentionServiceStub(self._channel)
        self._check_health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            _calls.HEALTH_CHECK_METHOD
        )

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
            timeout: seconds for the whole, however long the list; default: the client's.
            errors: what to do about texts of a list that cannot be translated. "raise"
                raises for the first of them; "return" puts the exception in its place.
            **options: how to decode, such as `beam_size=4`, and the model, segmentation and
                priority: see `dragoman.TranslateOptions`.

        Returns:
            A Translation for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a text with `errors="raise"`.
        """
        requests = _requests.translate_requests(
            text, target_prefix, source=source, target=target, include_signals=include_signals, options=options
        )
        results = self._run(self._stub.Translate, requests, _convert.translations, timeout)
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
        with self._while_open():
            call = self._stub.StreamTranslation(request, timeout=self._seconds(timeout))
        return TranslationStream(request, call)

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
        ahead of the results that were taken. What it raises is raised here, after the results
        of the texts before. Leaving the iterator before its end cancels what is under way.

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

        def start(
            requests: Iterator[ExchangeTranslationsRequest],
        ) -> _calls.MessageIterator[ExchangeTranslationsResponse]:
            with self._while_open():
                return self._stub.ExchangeTranslations(requests, timeout=timeout)

        return exchange(start, config, texts)

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
            timeout: seconds for the whole, however long the list; default: the client's.
            errors: as for `translate`.
            **options: the model, length_penalty and priority: see `dragoman.ScoreOptions`.

        Returns:
            A Score for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        requests = _requests.score_requests(text, target_text, source=source, target=target, options=options)
        results = self._run(self._stub.Score, requests, _convert.scores, timeout)
        if isinstance(text, str):
            return _calls.only_result(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

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
        with self._while_open():
            call = self._attention_stub.GetAttention(request, timeout=self._seconds(timeout))
            try:
                for response in call:
                    reader.add(response)
            except grpc.RpcError as error:
                raise error_from_call(cast(FailedCall, error)) from error
            finally:
                call.cancel()
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
            timeout: seconds for the whole, however long the list; default: the client's.
            errors: as for `translate`.
            **options: `method`, `layer` and `heads`, how to decode, the model and priority: see
                `dragoman.AlignOptions`.

        Returns:
            An Alignment for a text, a list of them for a list.

        Raises:
            DragomanError: the call failed, or a pair with `errors="raise"`.
        """
        requests = _requests.align_requests(text, target_text, source=source, target=target, options=options)
        results = self._run(self._attention_stub.Align, requests, _convert.alignments, timeout)
        if isinstance(text, str):
            return _calls.only_result(results)
        return _calls.raise_first_error(results) if errors == "raise" else results

    def health(self, *, timeout: float | None = None) -> bool:
        """Whether the server is ready to translate.

        False where it cannot be reached, does not answer in time, or is starting or stopping.

        Args:
            timeout: seconds to wait for the answer; default: the client's.

        Raises:
            DragomanError: something answered, but no Dragoman server.
        """
        try:
            with self._while_open():
                answer = self._check_health(
                    _calls.HEALTH_CHECK_REQUEST,
                    timeout=self._seconds(timeout),
                )
        except grpc.RpcError as error:
            return _calls.not_serving(error_from_call(cast(FailedCall, error)))
        return answer == _calls.HEALTH_CHECK_SERVING

    def close(self) -> None:
        """Closes the connections; calls under way raise RequestCancelledError."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(
        self,
        call: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        requests: Sequence[_Request],
        read: Callable[[_Request, _Response, int], list[_Result]],
        timeout: float | None,
    ) -> list[_Result]:
        """The results of all requests, in order: `read` gives those of one, whose first has the given index."""
        seconds = self._seconds(timeout)
        with self._while_open():
            if len(requests) == 1:
                # Waiting in this thread is half a millisecond faster than a future.
                return read(requests[0], _answer(lambda: call(requests[0], timeout=seconds), 0), 0)
            deadline = time.monotonic() + seconds
            results: list[_Result] = []
            under_way: deque[tuple[_Request, grpc.Future[_Response]]] = deque()

            def collect() -> None:
                request, future = under_way.popleft()
                results.extend(read(request, _answer(future.result, len(results)), len(results)))

            try:
                for request in requests:
                    if len(under_way) == _calls.MAX_CALLS_IN_FLIGHT:
                        collect()
                    remaining = max(0.0, deadline - time.monotonic())
                    under_way.append((request, call.future(request, timeout=remaining)))
                while under_way:
                    collect()
            finally:
                for _, future in under_way:
                    future.cancel()
            return results

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        if self._closed:
            raise RuntimeError("The client is closed")
        try:
            yield
        except (ValueError, grpc.FutureCancelledError):
            # What grpc raises where another thread closes the channel around this time.
            if not self._closed:
                raise
            raise RequestCancelledError("The client was closed during the call") from None


def _answer(wait: Callable[[], _Response], first_index: int) -> _Response:
    try:
        return wait()
    except grpc.RpcError as error:
        raise error_from_call(cast(FailedCall, error), first_index) from error
