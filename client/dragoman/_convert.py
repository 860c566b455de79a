"""Between protobuf messages and the types of the SDK: the only place that knows both."""

from collections.abc import Sequence
from typing import get_args

from google.protobuf.duration_pb2 import Duration

from dragoman import types
from dragoman.errors import DragomanError, InternalError, InvalidArgumentError, error_from_status
from dragoman.v1 import translation_pb2

# A long list goes out in several calls: small enough for the limits of a server on messages
# and inputs, large enough to fill its batches.
MAX_INPUTS_PER_CALL = 128
MAX_TEXT_BYTES_PER_CALL = 1024 * 1024

_SEGMENTATIONS: dict[types.Segmentation | None, translation_pb2.Segmentation.ValueType] = {
    None: translation_pb2.SEGMENTATION_UNSPECIFIED,
    "line": translation_pb2.SEGMENTATION_LINE,
    "sentence": translation_pb2.SEGMENTATION_SENTENCE,
}

_FINISH_REASONS: dict[translation_pb2.FinishReason.ValueType, types.FinishReason] = {
    translation_pb2.FINISH_REASON_STOP: types.FinishReason.STOP,
    translation_pb2.FINISH_REASON_LENGTH: types.FinishReason.LENGTH,
}


def translate_requests(
    texts: Sequence[str],
    *,
    source: str,
    target: str,
    model: str,
    max_target_tokens: int | None,
    segmentation: types.Segmentation | None,
) -> list[translation_pb2.TranslateRequest]:
    """The calls that translate `texts`, in order, each within the limits of a call.

    Raises:
        InvalidArgumentError: an option or a text cannot be put into a message.
    """
    if segmentation not in _SEGMENTATIONS:
        raise InvalidArgumentError(
            f"segmentation is {segmentation!r}: use one of {get_args(types.Segmentation)} or None"
        )
    if max_target_tokens is not None and not 0 < max_target_tokens < 2**32:
        raise InvalidArgumentError(f"max_target_tokens is {max_target_tokens}: use a number of at least 1, or None")

    def request() -> translation_pb2.TranslateRequest:
        return translation_pb2.TranslateRequest(
            source_language_code=source,
            target_language_code=target,
            model=model,
            options=translation_pb2.DecodingOptions(max_target_tokens=max_target_tokens),
            segmentation=_SEGMENTATIONS[segmentation],
        )

    requests: list[translation_pb2.TranslateRequest] = []
    num_bytes = 0
    for index, text in enumerate(texts):
        size = _utf8_size(text, index)
        is_full = not requests or len(requests[-1].inputs) == MAX_INPUTS_PER_CALL
        if is_full or num_bytes + size > MAX_TEXT_BYTES_PER_CALL:
            requests.append(request())
            num_bytes = 0
        requests[-1].inputs.add(text=text)
        num_bytes += size
    return requests


def outcomes(
    request: translation_pb2.TranslateRequest,
    response: translation_pb2.TranslateResponse,
    first_index: int,
) -> list[types.Translation | DragomanError]:
    """What became of each input of `request`, in order.

    `first_index` is the index in the caller's list of the first input of the request.

    Raises:
        InternalError: the answer does not have one result per input.
    """
    if len(response.results) != len(request.inputs):
        raise InternalError(f"The server answered {len(request.inputs)} inputs with {len(response.results)} results")
    return [
        _outcome(request, response.model, result, first_index, index) for index, result in enumerate(response.results)
    ]


def _outcome(
    request: translation_pb2.TranslateRequest,
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


def _translation(
    request: translation_pb2.TranslateRequest,
    model: str,
    message: translation_pb2.Translation,
) -> types.Translation:
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
        tokens=tuple(types.Token(token.id, token.piece, token.logprob) for token in message.tokens),
        sum_logprob=message.sum_logprob,
        score=message.score,
        finish_reason=_FINISH_REASONS.get(message.finish_reason, types.FinishReason.UNSPECIFIED),
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _utf8_size(text: str, index: int) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            "The text has a lone surrogate, which no Unicode text can have", input_index=index
        ) from None
