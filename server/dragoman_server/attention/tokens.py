"""The tokens of a source and a target as callers see them: pieces, what they stand for, which are special."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dragoman_server.attention.results import AttentionTarget, SourceToken, TargetToken
from dragoman_server.engine.sequence import Hypothesis, Request
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


def source_tokens(text: str, source: SourceSegment, request: Request, tokenizer: TextCodec) -> list[SourceToken]:
    """What the encoder reads: language tags, the segment's tokens, end-of-sentence."""
    spans = source_spans(text, source, tokenizer)
    num_tags = len(request.source_ids) - len(spans) - 1
    all_spans = [(source.begin, source.begin)] * num_tags + spans + [(source.end, source.end)]
    pieces = tokenizer.pieces(request.source_ids)
    return [
        SourceToken(token_id, piece, span, not 0 <= index - num_tags < len(spans))
        for index, (token_id, piece, span) in enumerate(zip(request.source_ids, pieces, all_spans, strict=True))
    ]


def target_text_and_spans(
    token_ids: Sequence[int], given_text: str | None, tokenizer: TextCodec
) -> tuple[str, list[Span]]:
    """The text of a target, and what of it each token stands for: of the text that was given, if one was."""
    if given_text is None:
        return tokenizer.decode(token_ids), tokenizer.target_spans(token_ids)
    spans, end = tokenizer.target_text_spans(given_text), len(given_text)
    return given_text, [*spans, (end, end)]  # and end-of-sentence


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
    target: ForcedTarget, given_text: str | None, decoder_start_token_id: int, tokenizer: TextCodec
) -> AttentionTarget:
    """A target as the decoder sees it."""
    hypothesis = target.hypothesis
    text, spans = target_text_and_spans(hypothesis.token_ids, given_text, tokenizer)
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
