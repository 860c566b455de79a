"""A scripted Dragoman server on a loopback port: what clients are tested against."""

import threading
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dragoman.v1 import translation_pb2, translation_pb2_grpc
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse, TranslationResult

MODEL = "default@0123456789ab"

Handler = Callable[[TranslateRequest, grpc.ServicerContext], TranslateResponse]


def translated(text: str) -> TranslationResult:
    """The fake translation of a text: upper case, two tokens with log-probability -0.5 each."""
    result = TranslationResult()
    result.translation.text = text.upper()
    result.translation.stats.queue_time.FromMilliseconds(250)
    result.translation.stats.source_tokens = 3
    result.translation.stats.target_tokens = 2
    segment = result.translation.segments.add(source_tokens=3)
    segment.source_span.end = len(text)
    hypothesis = segment.hypotheses.add(
        text=text.upper(),
        sum_logprob=-1.0,
        score=-0.5,
        finish_reason=translation_pb2.FINISH_REASON_STOP,
    )
    hypothesis.tokens.add(id=7, piece="▁" + text.upper(), logprob=-0.5)
    hypothesis.tokens.add(id=2, piece="</s>", logprob=-0.5)
    return result


def failed(code: grpc.StatusCode, message: str, *details: Message) -> TranslationResult:
    """A result with an error."""
    return TranslationResult(error=status(code, message, *details))


def status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    """A google.rpc.Status with its details packed."""
    packed = []
    for detail in details:
        any_detail = Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Message) -> None:
    """Fails a whole call, with rich details in the trailer."""
    rich = status(code, message, *details).SerializeToString()
    context.set_trailing_metadata((("grpc-status-details-bin", rich),))
    context.abort(code, message)


def upper(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    """The handler that translates everything."""
    return TranslateResponse(results=[translated(source.text) for source in request.inputs], model=MODEL)


class FakeServer(translation_pb2_grpc.TranslationServiceServicer):
    """Answers by `handler`, which a test may replace, and records the requests."""

    def __init__(self) -> None:
        self.handler: Handler = upper
        self.requests: list[TranslateRequest] = []
        self.release = threading.Event()
        """Set at the end, for handlers that wait for the end of the test."""
        self.health = health.HealthServicer()
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Translate(self, request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        """Records the request and lets the handler answer."""
        with self._lock:
            self.requests.append(request)
        return self.handler(request, context)

    def hang(self, request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        """The handler that never answers."""
        self.release.wait()
        return TranslateResponse()

    def set_serving(self, *, is_serving: bool) -> None:
        """Sets what health checks answer."""
        serving = health_pb2.HealthCheckResponse.SERVING
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set("", serving if is_serving else not_serving)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.stop(grace=None).wait()
