"""From protobuf messages to the types of the SDK."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from dragoman import types
from dragoman._lists import Batch
from dragoman.attention.types import Alignment, AlignmentChoice, AlignmentLink, AttentionToken
from dragoman.errors import DragomanError, InternalError, error_from_status
from dragoman.models import Pivot
from dragoman.v1 import attention_pb2, translation_pb2

_FINISH_REASONS: Mapping[int, types.FinishReason] = {
    translation_pb2.FINISH_REASON_STOP: types.FinishReason.STOP,
    translation_pb2.FINISH_REASON_LENGTH: types.FinishReason.LENGTH,
}
_SUSPICIONS: Mapping[int, types.Suspicion] = {
    translation_pb2.Suspicion.Value(f"SUSPICION_{suspicion.name}"): suspicion for suspicion in types.Suspicion
}
_VOCABULARIES: Mapping[int, types.Vocabulary] = {
    translation_pb2.VOCABULARY_FULL: "full",
    translation_pb2.VOCABULARY_LANGUAGE: "language",
    translation_pb2.VOCABULARY_SHORTLIST: "shortlist",
}
_METHODS: Mapping[int, types.AlignmentMethod] = {
    attention_pb2.ALIGNMENT_METHOD_OUTPUT_ROW: "output_row",
    attention_pb2.ALIGNMENT_METHOD_SHIFTED: "shifted",
}

_Request = TypeVar("_Request", bound=Message)
_Converted = TypeVar("_Converted")

_LanguagesRequest: TypeAlias = (
    translation_pb2.TranslateRequest
    | translation_pb2.StreamTranslationRequest
    | translation_pb2.ExchangeConfig
    | translation_pb2.ScoreRequest
    | attention_pb2.AlignRequest
    | attention_pb2.GetAttentionRequest
)
_TranslationResponse: TypeAlias = (
    translation_pb2.TranslateResponse
    | translation_pb2.StreamTranslationResponse
    | translation_pb2.ExchangeTranslationsResponse
)
_LanguagesResponse: TypeAlias = (
    _TranslationResponse | translation_pb2.ScoreResponse | attention_pb2.AlignResponse | attention_pb2.AttentionHeader
)


class Languages(NamedTuple):
    """The codes of two languages."""

    source: str
    target: str


def languages(request: _LanguagesRequest, response: _LanguagesResponse) -> Languages:
    """The model's own codes, or those of the request where the server is older than this and does not tell."""
    return Languages(
        response.source_language_code or request.source_language_code,
        response.target_language_code or request.target_language_code,
    )


def translations(
    batch: Batch[translation_pb2.TranslateRequest], response: translation_pb2.TranslateResponse
) -> list[types.Translation | DragomanError]:
    """What became of each input of a call, in order."""
    spoken = languages(batch.request, response)

    def translation(_: object, result: translation_pb2.TranslationResult) -> types.Translation:
        return _translation(spoken, response, result.translation)

    return _outcomes(batch, response.results, translation)


def streamed(
    request: translation_pb2.StreamTranslationRequest, response: translation_pb2.StreamTranslationResponse
) -> types.Translation:
    """The translation in the last message of a stream.

    Raises:
        InternalError: the translation makes no sense.
    """
    return _translation(languages(request, response), response, response.translation)


def exchanged(
    request: translation_pb2.ExchangeTranslationsRequest,
    response: translation_pb2.ExchangeTranslationsResponse,
    index: int,
) -> types.Translation | DragomanError:
    """What became of the text of an exchange with this index; `request` is the first of the exchange."""
    spoken = languages(request.config, response)

    def translation(result: translation_pb2.TranslationResult) -> types.Translation:
        return _translation(spoken, response, result.translation)

    return _outcome(response.result, translation, [index], 0)


def scores(
    batch: Batch[translation_pb2.ScoreRequest], response: translation_pb2.ScoreResponse
) -> list[types.Score | DragomanError]:
    """What became of each pair of a call, in order."""
    spoken = languages(batch.request, response)

    def score(_: object, result: translation_pb2.ScoreResult) -> types.Score:
        scored = result.scored
        return types.Score(
            _tokens(scored.tokens), scored.sum_logprob, scored.score, response.model, spoken.source, spoken.target
        )

    return _outcomes(batch, response.results, score)


def alignments(
    batch: Batch[attention_pb2.AlignRequest], response: attention_pb2.AlignResponse
) -> list[Alignment | DragomanError]:
    """What became of each pair of a call, in order."""
    spoken = languages(batch.request, response)

    def alignment(pair: attention_pb2.AlignInput, result: attention_pb2.AlignResult) -> Alignment:
        return _alignment(pair.text, spoken, response, result.alignment)

    return _outcomes(batch, response.results, alignment)


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


def vocabulary(value: int) -> types.Vocabulary | None:
    """What tokens were chosen from; None where the server is older or newer than this and does not tell it."""
    return _VOCABULARIES.get(value)


def _outcomes(
    batch: Batch[_Request], results: Sequence[Any], convert: Callable[[Any, Any], _Converted]
) -> list[_Converted | DragomanError]:
    """What `convert` makes of each input and its result, or what went wrong with it."""
    inputs = cast(Any, batch.request).inputs
    if len(results) != len(inputs):
        message = f"The server answered {len(inputs)} inputs with {len(results)} results"
        return [InternalError(message, input_index=index) for index in batch.indices]
    return [
        _outcome(result, partial(convert, item), batch.indices, place)
        for place, (item, result) in enumerate(zip(inputs, results, strict=True))
    ]


def _outcome(
    result: Any, convert: Callable[[Any], _Converted], indices: Sequence[int], place: int
) -> _Converted | DragomanError:
    """The same of one result, that of the input at `place` among those with these indices."""
    try:
        match result.WhichOneof("outcome"):
            case None:
                raise InternalError("The server sent an empty result")
            case "error":
                return error_from_status(result.error, indices, place)
            case _:
                return convert(result)
    except InternalError as error:
        error.input_index = indices[place]
        return error


def _translation(
    spoken: Languages, response: _TranslationResponse, message: translation_pb2.Translation
) -> types.Translation:
    return types.Translation(
        text=message.text,
        segments=tuple(_segment(segment) for segment in message.segments),
        model=response.model,
        source_language=spoken.source,
        target_language=spoken.target,
        stats=types.RequestStats(
            queue_seconds=_seconds(message.stats.queue_time),
            encode_seconds=_seconds(message.stats.encode_time),
            decode_seconds=_seconds(message.stats.decode_time),
            source_tokens=message.stats.source_tokens,
            target_tokens=message.stats.target_tokens,
        ),
        pivot=_pivot(response.pivot) if response.HasField("pivot") else None,
        vocabulary=vocabulary(message.vocabulary),
    )


def _pivot(message: translation_pb2.Pivot) -> Pivot:
    return Pivot(message.language_code, message.model, vocabulary(message.vocabulary))


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
    text: str, spoken: Languages, response: attention_pb2.AlignResponse, message: attention_pb2.Alignment
) -> Alignment:
    sources = source_tokens(message.source_tokens, text)
    targets = target_tokens(message.target_tokens, message.target_spans, message.target_text)
    if len(message.token_scores) != len(sources) * len(targets) or response.method not in _METHODS:
        raise InternalError("The server sent an alignment that makes no sense")
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
        source_language=spoken.source,
        target_language=spoken.target,
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
