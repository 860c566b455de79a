"""TranslationService on the wire: messages to plain values and back, nothing else."""

import math
import time

import grpc

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.engine.sequence import FinishReason
from dragoman_server.errors import InvalidInputError
from dragoman_server.translator import (
    CallContext,
    Candidate,
    TranslateCall,
    TranslatedSegment,
    TranslatedText,
    Translator,
)
from dragoman_server.wire.status import status_of

SERVICE_NAME = "dragoman.v1.TranslationService"

_FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}

_Context = grpc.aio.ServicerContext[pb.TranslateRequest, pb.TranslateResponse]


class TranslationServicer(translation_pb2_grpc.TranslationServiceServicer):
    """Errors are raised as they are: the guard turns them into a status."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    async def Translate(self, request: pb.TranslateRequest, context: _Context) -> pb.TranslateResponse:
        """Translates a batch of texts."""
        options = request.options
        call = TranslateCall(
            texts=[translation_input.text for translation_input in request.inputs],
            source_language_code=request.source_language_code,
            target_language_code=request.target_language_code,
            model=request.model,
            segmentation=request.segmentation,
            max_target_tokens=(options.max_target_tokens if options.HasField("max_target_tokens") else None),
        )
        outcome = await self._translator.translate(call, _call_context(context))
        response = pb.TranslateResponse(model=outcome.model)
        for result in outcome.results:
            if isinstance(result, InvalidInputError):
                response.results.add(error=status_of(result))
            else:
                _write_translation(response.results.add().translation, result)
        return response


def _call_context(context: _Context) -> CallContext:
    remaining: float | None = context.time_remaining()
    # The deadline is one of the wall clock, which can be set; ours cannot.
    return CallContext(math.inf if remaining is None else time.monotonic() + remaining)


def _write_translation(message: pb.Translation, translated: TranslatedText) -> None:
    message.text = translated.text
    for segment in translated.segments:
        _write_segment(message.segments.add(), segment)
    stats = message.stats
    stats.queue_time.FromNanoseconds(_nanoseconds(translated.queue_seconds))
    stats.encode_time.FromNanoseconds(_nanoseconds(translated.encode_seconds))
    stats.decode_time.FromNanoseconds(_nanoseconds(translated.decode_seconds))
    stats.source_tokens = translated.num_source_tokens
    stats.target_tokens = translated.num_target_tokens


def _write_segment(message: pb.Segment, segment: TranslatedSegment) -> None:
    message.source_span.begin = segment.begin
    message.source_span.end = segment.end
    message.source_tokens = segment.num_source_tokens
    for candidate in segment.candidates:
        _write_hypothesis(message.hypotheses.add(), candidate)


def _write_hypothesis(message: pb.Hypothesis, candidate: Candidate) -> None:
    hypothesis = candidate.hypothesis
    message.text = candidate.text
    message.sum_logprob = hypothesis.sum_logprob
    message.score = hypothesis.score
    message.finish_reason = _FINISH_REASONS[hypothesis.finish_reason]
    for token_id, piece, logprob in zip(hypothesis.token_ids, candidate.pieces, hypothesis.token_logprobs, strict=True):
        message.tokens.add(id=token_id, piece=piece, logprob=logprob)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
