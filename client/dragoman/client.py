"""The blocking client. `aio.py` has the same methods in the same order."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, cast, overload

import grpc

from dragoman import _calls, _convert
from dragoman._channel import channel_options, resolve_address
from dragoman.errors import DragomanError, FailedCall, RequestCancelledError, error_from_call
from dragoman.types import Segmentation, Translation
from dragoman.v1 import translation_pb2_grpc
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse


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
        model: str = "",
        max_target_tokens: int | None = None,
        segmentation: Segmentation | None = None,
        timeout: float | None = None,
    ) -> Translation: ...

    @overload
    def translate(
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
    def translate(
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

    def translate(
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
        """Translates one text, or each text of a list.

        Args:
            text: the text or texts. A list may be of any length: it goes out in several
                calls where needed, and comes back in its order.
            source: language code of the texts, such as "en".
            target: language code to translate into.
            model: name of the model; empty for the server's default.
            max_target_tokens: most tokens to decode per segment; default: the model's.
            segmentation: "line" never splits a line, "sentence" always splits it into
                sentences; default: only where it is too long for the model.
            timeout: seconds for the whole, however long the list; default: the client's.
            errors: what to do about texts of a list that cannot be translated. "raise"
                raises for the first of them; "return" puts the exception in its place.

        Returns:
            A Translation for a text, a list of them for a list.

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
        with self._while_open():
            results = self._translate(requests, self._timeout if timeout is None else timeout)
        if isinstance(text, str):
            return _calls.only_translation(results)
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
                    timeout=self._timeout if timeout is None else timeout,
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

    def _translate(self, requests: list[TranslateRequest], timeout: float) -> list[Translation | DragomanError]:
        if len(requests) == 1:
            # Waiting in this thread is half a millisecond faster than a future.
            return _receive(requests[0], lambda: self._stub.Translate(requests[0], timeout=timeout), 0)
        deadline = time.monotonic() + timeout
        results: list[Translation | DragomanError] = []
        under_way: deque[tuple[TranslateRequest, grpc.Future[TranslateResponse]]] = deque()

        def collect() -> None:
            request, call = under_way.popleft()
            results.extend(_receive(request, call.result, len(results)))

        try:
            for request in requests:
                if len(under_way) == _calls.MAX_CALLS_IN_FLIGHT:
                    collect()
                remaining = max(0.0, deadline - time.monotonic())
                under_way.append((request, self._stub.Translate.future(request, timeout=remaining)))
            while under_way:
                collect()
        finally:
            for _, call in under_way:
                call.cancel()
        return results

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


def _receive(
    request: TranslateRequest, wait: Callable[[], TranslateResponse], first_index: int
) -> list[Translation | DragomanError]:
    try:
        response = wait()
    except grpc.RpcError as error:
        raise error_from_call(cast(FailedCall, error), first_index) from error
    return _convert.outcomes(request, response, first_index)
