"""The tokens of a source and a target as callers see them: pieces, what they stand for, which are special."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dragoman_server.attention.results import AttentionTarget, SourceToken, TargetToken
from dragoman_server.engine.sequence import Hypothesis
from dragoman_server.service.planner import PlannedText
from dragoman_server.text.segmentation import SourceSegment
from dragoman_server.text.tokenizer import Span, TextCodec


def source_spans(text: str, source: SourceSegment, tokenizer: TextCodec) -> list[Span]:
    """What of the text each of the segment's tokens stands for."""
    spans = tokenizer.spans(text[source.begin : source.end])
    return [(source.begin + begin, source.begin + end) for begin, end in spans]


def unspelt_share(text: str, spans: Sequence[Span], source: SourceSegment, tokenizer: TextCodec) -> float:
    """How many of a segment's letters the vocabulary has no words for, 0 to 1; `spans` are those of its tokens."""
    are_unspelt = dict(zip(spans, map(tokenizer.is_unspelt, source.token_ids), strict=True))  # a letter's bytes once
    nums_letters = {(begin, end): sum(map(str.isalpha, text[begin:end])) for begin, end in are_unspelt}
    num_unspelt = sum(number for span, number in nums_letters.items() if are_unspelt[span])
    return num_unspelt / max(sum(nums_letters.values()), 1)


def source_tokens(planned: PlannedText, tokenizer: TextCodec) -> list[SourceToken]:
    """What the encoder reads of the only segment: its tokens, and the specials around them."""
    (source,), (request,), framing = planned.text.segments, planned.requests, planned.framing
    spans = [
        *((source.begin, source.begin) for _ in framing.source_prefix),
        *source_spans(planned.text.text, source, tokenizer),
        *((source.end, source.end) for _ in framing.source_suffix),
    ]
    of_text = framing.text_range(request.source_ids)
    pieces = tokenizer.pieces(request.source_ids)
    return [
        SourceToken(token_id, piece, span, index not in of_text)
        for index, (token_id, piece, span) in enumerate(zip(request.source_ids, pieces, spans, strict=True))
    ]


def target_text_and_spans(
    token_ids: Sequence[int], planned: PlannedText, tokenizer: TextCodec
) -> tuple[str, list[Span]]:
    """The text of a target, and what of it each token stands for: of the text that was given, if one was."""
    text, framing = planned.target_text, planned.framing
    if text is None:
        return tokenizer.decode(token_ids), tokenizer.target_spans(token_ids)
    end = len(text)
    return text, [
        *((0, 0) for _ in framing.target_prefix),
        *tokenizer.target_text_spans(text),
        *((end, end) for _ in framing.target_suffix),
    ]


def target_tokens(token_ids: Sequence[int], logprobs: Sequence[float], tokenizer: TextCodec) -> list[TargetToken]:
    """What the decoder emits, with the log-probability of each."""
    pieces = tokenizer.pieces(token_ids)
    return [TargetToken(*token) for token in zip(token_ids, pieces, logprobs, strict=True)]


@dataclass(frozen=True, slots=True)
class ForcedTarget:
    """A target and what the teacher-forced pass makes of it."""

    hypothesis: Hypothesis  # of a target that was given, only the ids count
    logprobs: Sequence[float]
    is_decoded: bool  # or given


def attention_target(
    target: ForcedTarget, planned: PlannedText, decoder_start_token_id: int, tokenizer: TextCodec
) -> AttentionTarget:
    """A target as the decoder sees it."""
    hypothesis = target.hypothesis
    text, spans = target_text_and_spans(hypothesis.token_ids, planned, tokenizer)
    tokens = target_tokens(hypothesis.token_ids, target.logprobs, tokenizer)
    (start,) = target_tokens([decoder_start_token_id], [0.0], tokenizer)
    # What was decoded keeps its score, and with it its place: rounding may rank close ones otherwise.
    forced = replace(hypothesis, token_logprobs=tuple(target.logprobs))
    return AttentionTarget(
        text,
        tokens,
        [start, *tokens[:-1]] if tokens else [],
        spans,
        forced.sum_logprob,
        hypothesis.score if target.is_decoded else forced.score,
        hypothesis.finish_reason if target.is_decoded else None,
    )
