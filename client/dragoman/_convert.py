"""From protobuf messages to the types of the SDK."""

from collections.abc import Iterable
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from dragoman import types
from dragoman.errors import DragomanError, InternalError, error_from_status
from dragoman.v1 import translation_pb2

_FINISH_REASONS: dict[translation_pb2.FinishReason.ValueType, types.FinishReason] = {
    translation_pb2.FINISH_REASON_STOP: types.FinishReason.STOP,
    translation_pb2.FINISH_REASON_LENGTH: types.FinishReason.LENGTH,
}


_WithLanguages: TypeAlias = (
    translation_pb2.TranslateRequest | translation_pb2.StreamTranslationRequest | translation_pb2.ExchangeConfig
)


def translations(
    request: translation_pb2.TranslateRequest,
    response: translation_pb2.TranslateResponse,
    first_index: int,
) -> list[types.Translation | DragomanError]:
    """What became of each input of `request`, in order.

    `first_index` is the index in the caller's list of the first input of the request.

    Raises:
        InternalError: the answer does not have one result per input.
    """
    _check_number(len(request.inputs), len(response.results))
    return [
        _outcome(request, response.model, result, first_index, index) for index, result in enumerate(response.results)
    ]


def streamed(
    request: translation_pb2.StreamTranslationRequest, response: translation_pb2.StreamTranslationResponse
) -> types.Translation:
    """The translation in the last message of a stream.

    Raises:
        InternalError: the translation makes no sense.
    """
    return _translation(request, response.model, response.translation)


def exchanged(
    request: translation_pb2.ExchangeTranslationsRequest, response: translation_pb2.ExchangeTranslationsResponse
) -> tuple[int, types.Translation | DragomanError]:
    """The index of a text of an exchange, and what became of it; `request` is the first of the exchange.

    Raises:
        InternalError: the answer makes no sense.
    """
    if not response.id.isdecimal():
        raise InternalError(f"The server sent a result for {response.id!r}, which it was not asked for")
    index = int(response.id)
    return index, _outcome(request.config, response.model, response.result, 0, index)


def scores(
    request: translation_pb2.ScoreRequest,
    response: translation_pb2.ScoreResponse,
    first_index: int,
) -> list[types.Score | DragomanError]:
    """What became of each pair of `request`, in order: see `translations`.

    Raises:
        InternalError: the answer does not have one result per pair.
    """
    _check_number(len(request.inputs), len(response.results))
    return [_score(response.model, result, first_index, index) for index, result in enumerate(response.results)]


def _check_number(num_inputs: int, num_results: int) -> None:
    if num_results != num_inputs:
        raise InternalError(f"The server answered {num_inputs} inputs with {num_results} results")


def _outcome(
    request: _WithLanguages,
    model: str,
    result: translation_pb2.TranslationResult,
    first_index: int,
    index: int,
) -> types.Translation | DragomanError:
    match result.WhichOneof("outcome"):
        case "translation":
            return _translation(request, model, result.translation)
        case "error":
            return error_from_status(result.error, first_index, index)
        case _:
            return InternalError("The server sent an empty result", input_index=first_index + index)


def _score(
    model: str, result: translation_pb2.ScoreResult, first_index: int, index: int
) -> types.Score | DragomanError:
    match result.WhichOneof("outcome"):
        case "scored":
            scored = result.scored
            return types.Score(_tokens(scored.tokens), scored.sum_logprob, scored.score, model)
        case "error":
            return error_from_status(result.error, first_index, index)
        case _:
            return InternalError("The server sent an empty result", input_index=first_index + index)


def _translation(request: _WithLanguages, model: str, message: translation_pb2.Translation) -> types.Translation:
    return types.Translation(
        text=message.text,
        segments=tuple(_segment(segment) for segment in message.segments),
        model=model,
        source_language=request.source_language_code,
        target_language=request.target_language_code,
        stats=types.RequestStats(
            queue_seconds=_seconds(message.stats.queue_time),
            encode_seconds=_seconds(message.stats.encode_time),
            decode_seconds=_seconds(message.stats.decode_time),
            source_tokens=message.stats.source_tokens,
            target_tokens=message.stats.target_tokens,
        ),
    )


def _segment(message: translation_pb2.Segment) -> types.Segment:
    if not message.hypotheses:
        raise InternalError("The server sent a segment without a translation")
    return types.Segment(
        source_span=types.TextSpan(message.source_span.begin, message.source_span.end),
        hypotheses=tuple(_hypothesis(hypothesis) for hypothesis in message.hypotheses),
        source_tokens=message.source_tokens,
    )


def _hypothesis(message: translation_pb2.Hypothesis) -> types.Hypothesis:
    return types.Hypothesis(
        text=message.text,
        tokens=_tokens(message.tokens),
        sum_logprob=message.sum_logprob,
        score=message.score,
        finish_reason=_FINISH_REASONS.get(message.finish_reason, types.FinishReason.UNSPECIFIED),
    )


def _tokens(messages: Iterable[translation_pb2.Token]) -> tuple[types.Token, ...]:
    return tuple(types.Token(token.id, token.piece, token.logprob) for token in messages)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
