"""From protobuf messages to the types of the SDK."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from dragoman import types
from dragoman.attention.types import Alignment, AlignmentChoice, AlignmentLink, AttentionToken
from dragoman.errors import DragomanError, InternalError, error_from_status
from dragoman.v1 import attention_pb2, translation_pb2

_FINISH_REASONS: Mapping[int, types.FinishReason] = {
    translation_pb2.FINISH_REASON_STOP: types.FinishReason.STOP,
    translation_pb2.FINISH_REASON_LENGTH: types.FinishReason.LENGTH,
}
_SUSPICIONS: Mapping[int, types.Suspicion] = {
    translation_pb2.Suspicion.Value(f"SUSPICION_{suspicion.name}"): suspicion for suspicion in types.Suspicion
}
_METHODS: Mapping[int, types.AlignmentMethod] = {
    attention_pb2.ALIGNMENT_METHOD_OUTPUT_ROW: "output_row",
    attention_pb2.ALIGNMENT_METHOD_SHIFTED: "shifted",
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


def alignments(
    request: attention_pb2.AlignRequest,
    response: attention_pb2.AlignResponse,
    first_index: int,
) -> list[Alignment | DragomanError]:
    """What became of each pair of `request`, in order: see `translations`.

    Raises:
        InternalError: the answer does not have one result per pair, or makes no sense.
    """
    _check_number(len(request.inputs), len(response.results))
    return [
        _alignment(pair.text, response, result, first_index, index)
        for index, (pair, result) in enumerate(zip(request.inputs, response.results, strict=True))
    ]


def source_tokens(messages: Iterable[attention_pb2.SourceToken], text: str) -> tuple[AttentionToken, ...]:
    """The tokens of the source `text`."""
    return tuple(
        _attention_token(token.id, token.piece, _span(token.span), text, is_special=token.is_special)
        for token in messages
    )


def target_tokens(
    messages: Sequence[translation_pb2.Token], spans: Sequence[translation_pb2.TextSpan], text: str
) -> tuple[AttentionToken, ...]:
    """The tokens of the target `text`, of which each stands for the span of its place.

    Raises:
        InternalError: there is not one span for every token.
    """
    if len(messages) != len(spans):
        raise InternalError(f"The server sent {len(messages)} tokens with {len(spans)} spans")
    return tuple(
        _attention_token(
            token.id, token.piece, _span(span), text, is_special=span.begin == span.end, logprob=token.logprob
        )
        for token, span in zip(messages, spans, strict=True)
    )


def decoder_input_tokens(target: attention_pb2.AttentionTarget) -> tuple[AttentionToken, ...]:
    """The start token, then those of the target without the last: they stand for what those stand for.

    Raises:
        InternalError: they are not as many as the target's tokens.
    """
    if len(target.decoder_input_tokens) != len(target.tokens):
        raise InternalError(
            f"The server sent {len(target.tokens)} tokens with {len(target.decoder_input_tokens)} decoder inputs"
        )
    spans = [translation_pb2.TextSpan(), *target.spans[:-1]]
    tokens = zip(target.decoder_input_tokens, spans, strict=False)
    return tuple(
        _attention_token(token.id, token.piece, _span(span), target.text, is_special=span.begin == span.end)
        for token, span in tokens
    )


def finish_reason(value: int) -> types.FinishReason:
    """Why decoding ended."""
    return _FINISH_REASONS.get(value, types.FinishReason.UNSPECIFIED)


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
        source_span=_span(message.source_span),
        hypotheses=tuple(_hypothesis(hypothesis) for hypothesis in message.hypotheses),
        source_tokens=message.source_tokens,
        signals=_signals(message.signals) if message.HasField("signals") else None,
    )


def _signals(message: translation_pb2.Signals) -> types.Signals:
    return types.Signals(
        source_coverage=message.source_coverage,
        uncovered_spans=tuple(_span(span) for span in message.uncovered_spans),
        attention_entropy=message.attention_entropy,
        end_of_sentence_share=message.end_of_sentence_share,
        repetition=message.repetition,
        length_ratio=message.length_ratio,
        suspicions=tuple(_SUSPICIONS.get(value, types.Suspicion.UNSPECIFIED) for value in message.suspicions),
    )


def _alignment(
    text: str, response: attention_pb2.AlignResponse, result: attention_pb2.AlignResult, first_index: int, index: int
) -> Alignment | DragomanError:
    match result.WhichOneof("outcome"):
        case "alignment":
            message = result.alignment
        case "error":
            return error_from_status(result.error, first_index, index)
        case _:
            return InternalError("The server sent an empty result", input_index=first_index + index)
    sources = source_tokens(message.source_tokens, text)
    targets = target_tokens(message.target_tokens, message.target_spans, message.target_text)
    if len(message.token_scores) != len(sources) * len(targets) or response.method not in _METHODS:
        return InternalError("The server sent an alignment that makes no sense", input_index=first_index + index)
    scores = message.token_scores
    return Alignment(
        text=text,
        target_text=message.target_text,
        source_tokens=sources,
        target_tokens=targets,
        token_links=_links(message.token_links),
        source_words=tuple(_span(span) for span in message.source_words),
        target_words=tuple(_span(span) for span in message.target_words),
        word_links=_links(message.word_links),
        token_scores=tuple(tuple(scores[row * len(sources) : (row + 1) * len(sources)]) for row in range(len(targets))),
        method=_METHODS[response.method],
        layer=response.layer,
        heads=tuple(response.heads),
        model=response.model,
    )


def alignment_choice(message: attention_pb2.AlignmentChoice) -> AlignmentChoice:
    """Raises InternalError where the method is none that this version knows."""
    if message.method not in _METHODS:
        raise InternalError("The server sent attention with a method of alignment that this version does not know")
    return AlignmentChoice(_METHODS[message.method], message.layer, tuple(message.heads))


def _links(messages: Iterable[attention_pb2.AlignmentLink]) -> tuple[AlignmentLink, ...]:
    return tuple(AlignmentLink(link.source, link.target, link.score) for link in messages)


def _attention_token(
    token_id: int, piece: str, span: types.TextSpan, text: str, *, is_special: bool, logprob: float | None = None
) -> AttentionToken:
    return AttentionToken(token_id, piece, text[span.begin : span.end] or piece, span, is_special, logprob)


def _span(message: translation_pb2.TextSpan) -> types.TextSpan:
    return types.TextSpan(message.begin, message.end)


def _hypothesis(message: translation_pb2.Hypothesis) -> types.Hypothesis:
    return types.Hypothesis(
        text=message.text,
        tokens=_tokens(message.tokens),
        sum_logprob=message.sum_logprob,
        score=message.score,
        finish_reason=finish_reason(message.finish_reason),
    )


def _tokens(messages: Iterable[translation_pb2.Token]) -> tuple[types.Token, ...]:
    return tuple(types.Token(token.id, token.piece, token.logprob) for token in messages)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
