"""TranslationService on the wire: gRPC calls to calls of the translator, nothing else."""

import math
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.service.calls import (
    CallContext,
    ExchangeInput,
    ScoreCall,
    StreamCall,
    TranslateCall,
    TranslateConfig,
)
from dragoman_server.service.results import ExchangeOutcome
from dragoman_server.service.translate import Translator
from dragoman_server.wire.messages import (
    exchange_response,
    read_config,
    read_exchange,
    read_input,
    read_pair,
    read_score_config,
    score_response,
    translate_response,
    write_translation,
)

SERVICE_NAME = "dragoman.v1.TranslationService"

Context = grpc.aio.ServicerContext[Any, Any]


class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """Errors are raised as they are: the guard turns them into a status.

    Streams of responses are coroutines that write, for the guard's sake; the stubs know generators alone.
    """

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    async def Translate(self, request: pb.TranslateRequest, context: Context) -> pb.TranslateResponse:
        """Translates a batch of texts."""
        inputs = [read_input(message) for message in request.inputs]
        call = TranslateCall(inputs, read_config(request), request.include_signals)
        return translate_response(await self._translator.translate(call, call_context(context)))

    async def StreamTranslation(  # type: ignore[override]
        self, request: pb.StreamTranslationRequest, context: Context
    ) -> None:
        """Translates a text and sends it while it is decoded."""

        async def send(delta: str) -> None:
            await context.write(pb.StreamTranslationResponse(delta=delta))

        call = StreamCall(read_input(request.input), read_config(request))
        outcome = await self._translator.stream(call, call_context(context), send)
        response = pb.StreamTranslationResponse(
            model=outcome.model,
            source_language_code=outcome.direction.source,
            target_language_code=outcome.direction.target,
        )
        write_translation(response.translation, outcome.result)
        await context.write(response)

    async def ExchangeTranslations(  # type: ignore[override]
        self, requests: AsyncIterator[pb.ExchangeTranslationsRequest], context: Context
    ) -> None:
        """Translates a stream of texts."""

        async def messages() -> AsyncIterator[TranslateConfig | ExchangeInput]:
            async for request in requests:
                yield read_exchange(request)

        async def send(outcome: ExchangeOutcome) -> None:
            await context.write(exchange_response(outcome))

        await self._translator.exchange(messages(), call_context(context), send)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Gives the log-probabilities of given translations."""
        call = ScoreCall([read_pair(message) for message in request.inputs], read_score_config(request))
        return score_response(await self._translator.score(call, call_context(context)))


def call_context(context: Context) -> CallContext:
    """What is known of a call beside its messages."""
    remaining: float | None = context.time_remaining()
    # The deadline is one of the wall clock, which can be set; ours cannot.
    return CallContext(math.inf if remaining is None else time.monotonic() + remaining)
