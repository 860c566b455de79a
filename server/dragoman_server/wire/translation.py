"""TranslationService on the wire: gRPC calls to calls of the translator, nothing else."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.service.calls import ScoreCall, StreamCall, TranslateCall
from dragoman_server.service.translate import Translator
from dragoman_server.wire.context import Context, call_context
from dragoman_server.wire.elements import Elements
from dragoman_server.wire.guard import StreamRules
from dragoman_server.wire.messages import (
    exchange_response,
    read_config,
    read_exchange,
    read_input,
    read_pair,
    read_score_config,
    score_response,
    stream_response,
    translate_response,
)

SERVICE_NAME = "dragoman.v1.TranslationService"

STREAM_RULES = {
    f"{SERVICE_NAME}/ExchangeTranslations": StreamRules(num_answers=lambda message: message.HasField("input"))
}


class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """Errors are raised as they are: the guard turns them into a status."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    async def Translate(self, request: pb.TranslateRequest, context: Context) -> pb.TranslateResponse:
        """Translates a batch of texts."""
        call = TranslateCall(Elements(read_input, request.inputs), read_config(request), request.include_signals)
        return translate_response(await self._translator.translate(call, call_context()))

    async def StreamTranslation(
        self, request: pb.StreamTranslationRequest, context: Context
    ) -> AsyncGenerator[pb.StreamTranslationResponse, None]:
        """Translates a text and sends it while it is decoded."""
        call = StreamCall(read_input(request.input), read_config(request))
        async with aclosing(self._translator.stream(call, call_context())) as parts:
            async for part in parts:
                yield stream_response(part)

    async def ExchangeTranslations(
        self, requests: AsyncIterator[pb.ExchangeTranslationsRequest], context: Context
    ) -> AsyncGenerator[pb.ExchangeTranslationsResponse, None]:
        """Translates a stream of texts."""
        messages = (read_exchange(request) async for request in requests)
        async with aclosing(self._translator.exchange(messages, call_context())) as outcomes:
            async for outcome in outcomes:
                yield exchange_response(outcome)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """Gives the log-probabilities of given translations."""
        call = ScoreCall(Elements(read_pair, request.inputs), read_score_config(request))
        return score_response(await self._translator.score(call, call_context()))
