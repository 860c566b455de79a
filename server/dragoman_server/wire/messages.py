"""Messages of the API to plain values and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dragoman.v1 import attention_pb2
from dragoman.v1 import translation_pb2 as pb
from dragoman_server.attention.signals import Signals
from dragoman_server.engine.sequence import Hypothesis
from dragoman_server.errors import DragomanError
from dragoman_server.service.calls import DecodingFields, ExchangeInput, Pair, TextInput, TranslateConfig
from dragoman_server.service.pivot import Pivot
from dragoman_server.service.results import (
    Candidate,
    ExchangeOutcome,
    ScoreOutcome,
    StreamOutcome,
    TranslatedSegment,
    TranslatedText,
    TranslateOutcome,
)
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.wire import enums
from dragoman_server.wire.status import status_of

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_TranslationConfig = pb.TranslateRequest | pb.StreamTranslationRequest | pb.ExchangeConfig


# -- requests ----------------------------------------------------------------------------------


def read_config(message: _TranslationConfig) -> TranslateConfig:
    """What the messages that begin a translation have in common."""
    return TranslateConfig(
        message.source_language_code,
        message.target_language_code,
        message.model,
        read_options(message.options),
        enums.read(enums.SEGMENTATIONS, message.segmentation),
        enums.read(enums.PRIORITIES, message.priority),
    )


def read_options(message: pb.DecodingOptions) -> DecodingFields:
    """The options that are set: each has presence, or has no value that means anything."""
    fields = {field.name: value for field, value in message.ListFields()}
    if "early_stopping" in fields:
        fields["early_stopping"] = enums.read(enums.EARLY_STOPPINGS, message.early_stopping)
    if "vocabulary" in fields:
        fields["vocabulary"] = enums.read(enums.VOCABULARIES, message.vocabulary)
    return DecodingFields(**fields)


def read_score_config(message: pb.ScoreRequest) -> TranslateConfig:
    """The same for scoring, where a source is one line."""
    return TranslateConfig(
        message.source_language_code,
        message.target_language_code,
        message.model,
        DecodingFields(length_penalty=message.length_penalty if message.HasField("length_penalty") else None),
        Segmentation.LINE,
        enums.read(enums.PRIORITIES, message.priority),
    )


def read_input(message: pb.TranslationInput) -> TextInput:
    """A text to translate."""
    return TextInput(message.text, message.target_prefix)


def read_exchange(message: pb.ExchangeTranslationsRequest) -> TranslateConfig | ExchangeInput:
    """A message of a stream; an empty one is an empty config, whose faults say what is missing."""
    if message.WhichOneof("message") == "input":
        return ExchangeInput(message.input.id, read_input(message.input.input))
    return read_config(message.config)


def read_pair(message: pb.ScoreInput | attention_pb2.AlignInput | attention_pb2.GetAttentionRequest) -> Pair:
    """A text and a translation of it."""
    match message.WhichOneof("target"):
        case "target_text":
            return Pair(message.text, message.target_text)
        case "target_token_ids":
            return Pair(message.text, message.target_token_ids.ids)
        case _:
            return Pair(message.text, None)


# -- responses ---------------------------------------------------------------------------------


def translate_response(outcome: TranslateOutcome) -> pb.TranslateResponse:
    """The answer to a batch of texts."""
    response = pb.TranslateResponse(
        model=outcome.model,
        source_language_code=outcome.direction.source,
        target_language_code=outcome.direction.target,
        pivot=_pivot(outcome.pivot),
    )
    for result in outcome.results:
        _write_result(response.results.add(), result)
    return response


def stream_response(part: str | StreamOutcome) -> pb.StreamTranslationResponse:
    """A piece of a translation; or the whole, at its end."""
    if isinstance(part, str):
        return pb.StreamTranslationResponse(delta=part)
    response = pb.StreamTranslationResponse(
        model=part.model,
        source_language_code=part.direction.source,
        target_language_code=part.direction.target,
        pivot=_pivot(part.pivot),
    )
    _write_translation(response.translation, part.result)
    return response


def exchange_response(outcome: ExchangeOutcome) -> pb.ExchangeTranslationsResponse:
    """The answer to one text of a stream."""
    response = pb.ExchangeTranslationsResponse(
        id=outcome.id,
        model=outcome.model,
        source_language_code=outcome.direction.source,
        target_language_code=outcome.direction.target,
        pivot=_pivot(outcome.pivot),
    )
    _write_result(response.result, outcome.result)
    return response


def score_response(outcome: ScoreOutcome) -> pb.ScoreResponse:
    """The answer to a batch of pairs."""
    response = pb.ScoreResponse(
        model=outcome.model,
        source_language_code=outcome.direction.source,
        target_language_code=outcome.direction.target,
    )
    for result in outcome.results:
        if isinstance(result, DragomanError):
            response.results.add(error=status_of(result))
        else:
            hypothesis = result.hypothesis
            scored = response.results.add().scored
            _write_tokens(scored.tokens, hypothesis, result.pieces)
            scored.sum_logprob, scored.score = hypothesis.sum_logprob, hypothesis.score
    return response


def _pivot(pivot: Pivot | None) -> pb.Pivot | None:
    if pivot is None:
        return None
    vocabulary = enums.VOCABULARY_NUMBERS[pivot.vocabulary]
    return pb.Pivot(language_code=pivot.language, model=pivot.model, vocabulary=vocabulary)


def _write_translation(message: pb.Translation, translated: TranslatedText) -> None:
    """Fills in a translated text."""
    message.text = translated.text
    message.vocabulary = enums.VOCABULARY_NUMBERS[translated.vocabulary]
    for segment in translated.segments:
        _write_segment(message.segments.add(), segment)
    stats = message.stats
    stats.queue_time.FromNanoseconds(_nanoseconds(translated.queue_seconds))
    stats.encode_time.FromNanoseconds(_nanoseconds(translated.encode_seconds))
    stats.decode_time.FromNanoseconds(_nanoseconds(translated.decode_seconds))
    stats.source_tokens = translated.num_source_tokens
    stats.target_tokens = translated.num_target_tokens


def _write_result(message: pb.TranslationResult, result: TranslatedText | DragomanError) -> None:
    if isinstance(result, DragomanError):
        message.error.CopyFrom(status_of(result))
    else:
        _write_translation(message.translation, result)


def _write_segment(message: pb.Segment, segment: TranslatedSegment) -> None:
    message.source_span.begin = segment.begin
    message.source_span.end = segment.end
    message.source_tokens = segment.num_source_tokens
    for candidate in segment.candidates:
        _write_hypothesis(message.hypotheses.add(), candidate)
    if segment.signals is not None:
        _write_signals(message.signals, segment.signals)


def _write_signals(message: pb.Signals, signals: Signals) -> None:
    message.source_coverage = signals.source_coverage
    message.uncovered_spans.extend(pb.TextSpan(begin=begin, end=end) for begin, end in signals.uncovered_spans)
    message.attention_entropy = signals.attention_entropy
    message.end_of_sentence_share = signals.end_of_sentence_share
    message.repetition = signals.repetition
    message.length_ratio = signals.length_ratio
    message.suspicions.extend(enums.SUSPICION_NUMBERS[suspicion] for suspicion in signals.suspicions)


def _write_hypothesis(message: pb.Hypothesis, candidate: Candidate) -> None:
    hypothesis = candidate.hypothesis
    message.text = candidate.text
    message.sum_logprob = hypothesis.sum_logprob
    message.score = hypothesis.score
    message.finish_reason = enums.FINISH_REASON_NUMBERS[hypothesis.finish_reason]
    _write_tokens(message.tokens, hypothesis, candidate.pieces)


def _write_tokens(
    messages: "RepeatedCompositeFieldContainer[pb.Token]", hypothesis: Hypothesis, pieces: Sequence[str]
) -> None:
    # Most of the time of a large answer goes by here: filling in takes a third of the time of making and copying.
    for token_id, piece, logprob in zip(hypothesis.token_ids, pieces, hypothesis.token_logprobs, strict=True):
        message = messages.add()
        message.id, message.piece, message.logprob = token_id, piece, logprob


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
