"""A scripted Dragoman server on a loopback port: what clients are tested against."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Self

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dragoman._channel import KEEPALIVE_TIME_MS
from dragoman.v1 import attention_pb2_grpc, models_pb2_grpc, translation_pb2, translation_pb2_grpc
from dragoman.v1.attention_pb2 import AlignRequest, AlignResponse, GetAttentionRequest, GetAttentionResponse
from dragoman.v1.translation_pb2 import (
    ExchangeTranslationsRequest,
    ExchangeTranslationsResponse,
    ScoredTarget,
    ScoreRequest,
    ScoreResponse,
    StreamTranslationRequest,
    StreamTranslationResponse,
    TranslateRequest,
    TranslateResponse,
    TranslationResult,
)
from support import fake_attention
from support.fake_models import FakeModels

MODEL = fake_attention.MODEL
languages = fake_attention.languages

Handler = Callable[[TranslateRequest, grpc.ServicerContext], TranslateResponse]
StreamHandler = Callable[[StreamTranslationRequest, grpc.ServicerContext], Iterator[StreamTranslationResponse]]
ExchangeHandler = Callable[
    [Iterator[ExchangeTranslationsRequest], grpc.ServicerContext], Iterator[ExchangeTranslationsResponse]
]
ScoreHandler = Callable[[ScoreRequest, grpc.ServicerContext], ScoreResponse]
AttentionHandler = Callable[[GetAttentionRequest, grpc.ServicerContext], Iterator[GetAttentionResponse]]
AlignHandler = Callable[[AlignRequest, grpc.ServicerContext], AlignResponse]


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


def full_queue(seconds: float) -> tuple[Message, Message]:
    """The details of an error that says when there will be room in the queue."""
    retry_delay = Duration()
    retry_delay.FromNanoseconds(int(seconds * 1e9))
    return ErrorInfo(reason="QUEUE_FULL", domain="dragoman"), RetryInfo(retry_delay=retry_delay)


def upper(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    """The handler that translates everything."""
    results = [translated(source.text) for source in request.inputs]
    spoken = languages(request.source_language_code, request.target_language_code)
    return TranslateResponse(results=results, model=MODEL, **spoken)


def upper_stream(
    request: StreamTranslationRequest, context: grpc.ServicerContext
) -> Iterator[StreamTranslationResponse]:
    """The handler that streams the translation word by word."""
    result = translated(request.input.text)
    for delta in re.findall(r"\S+\s*|\s+", result.translation.text):
        yield StreamTranslationResponse(delta=delta)
    spoken = languages(request.source_language_code, request.target_language_code)
    yield StreamTranslationResponse(translation=result.translation, model=MODEL, **spoken)


def upper_exchange(
    requests: Iterator[ExchangeTranslationsRequest], context: grpc.ServicerContext
) -> Iterator[ExchangeTranslationsResponse]:
    """The handler that translates every text as it comes."""
    config = next(requests).config
    spoken = languages(config.source_language_code, config.target_language_code)
    for request in requests:
        result = translated(request.input.input.text)
        yield ExchangeTranslationsResponse(id=request.input.id, result=result, model=MODEL, **spoken)


def scored(request: ScoreRequest, context: grpc.ServicerContext) -> ScoreResponse:
    """The handler that gives every token -0.5; a text has a token for each letter."""
    response = ScoreResponse(model=MODEL, **languages(request.source_language_code, request.target_language_code))
    for pair in request.inputs:
        ids = pair.target_token_ids.ids or range(len(pair.target_text))
        score = ScoredTarget(sum_logprob=-0.5 * len(ids), score=-0.5)
        for token_id in ids:
            score.tokens.add(id=token_id, piece=f"p{token_id}", logprob=-0.5)
        response.results.add(scored=score)
    return response


def _bound(max_workers: int) -> tuple[grpc.Server, str]:
    """A server on a free port, and its address."""
    options = [("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers), options=options)
    return server, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"


class _Health(health.HealthServicer):  # type: ignore[misc]
    """That of gRPC, but watchers learn the first status alone: with it, one that leaves may hold up the server."""

    def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send: Callable[[health_pb2.HealthCheckResponse], None],
    ) -> None:
        """Sends the status, and keeps the call open without a thread."""
        send(self.Check(request, context))


class FakeServer(translation_pb2_grpc.TranslationServiceServicer, attention_pb2_grpc.AttentionServiceServicer):
    """Answers by its handlers, which a test may replace, and records the requests."""

    def __init__(self) -> None:
        self.handler: Handler = upper
        self.stream_handler: StreamHandler = upper_stream
        self.exchange_handler: ExchangeHandler = upper_exchange
        self.score_handler: ScoreHandler = scored
        self.attention_handler: AttentionHandler = fake_attention.attend
        self.align_handler: AlignHandler = fake_attention.align
        self.requests: list[TranslateRequest] = []
        self.stream_requests: list[StreamTranslationRequest] = []
        self.exchange_requests: list[ExchangeTranslationsRequest] = []
        self.score_requests: list[ScoreRequest] = []
        self.attention_requests: list[GetAttentionRequest] = []
        self.align_requests: list[AlignRequest] = []
        self.release = threading.Event()
        """Set at the end, for handlers that wait for the end of the test."""
        self.health = _Health()
        self.models = FakeModels()
        self._lock = threading.Lock()
        self._server, self.address = _bound(max_workers=8)
        self._admin, self.admin_address = _bound(max_workers=2)
        translation_pb2_grpc.add_TranslationServiceServicer_to_server(self, self._server)
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(self, self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self.models, self._server)
        models_pb2_grpc.add_ModelAdminServiceServicer_to_server(self.models, self._admin)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    def Translate(self, request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        """Records the request and lets the handler answer."""
        with self._lock:
            self.requests.append(request)
        return self.handler(request, context)

    def StreamTranslation(
        self, request: StreamTranslationRequest, context: grpc.ServicerContext
    ) -> Iterator[StreamTranslationResponse]:
        """Records the request and lets the handler answer."""
        self.stream_requests.append(request)
        return self.stream_handler(request, context)

    def ExchangeTranslations(
        self, request_iterator: Iterator[ExchangeTranslationsRequest], context: grpc.ServicerContext
    ) -> Iterator[ExchangeTranslationsResponse]:
        """Records the requests and lets the handler answer."""

        def recorded() -> Iterator[ExchangeTranslationsRequest]:
            for request in request_iterator:
                self.exchange_requests.append(request)
                yield request

        return self.exchange_handler(recorded(), context)

    def Score(self, request: ScoreRequest, context: grpc.ServicerContext) -> ScoreResponse:
        """Records the request and lets the handler answer."""
        with self._lock:
            self.score_requests.append(request)
        return self.score_handler(request, context)

    def GetAttention(
        self, request: GetAttentionRequest, context: grpc.ServicerContext
    ) -> Iterator[GetAttentionResponse]:
        """Records the request and lets the handler answer."""
        with self._lock:
            self.attention_requests.append(request)
        return self.attention_handler(request, context)

    def Align(self, request: AlignRequest, context: grpc.ServicerContext) -> AlignResponse:
        """Records the request and lets the handler answer."""
        with self._lock:
            self.align_requests.append(request)
        return self.align_handler(request, context)

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
        self._admin.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release.set()
        for stopping in [self._server.stop(grace=None), self._admin.stop(grace=None)]:
            stopping.wait()
