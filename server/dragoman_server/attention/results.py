"""What callers get who ask for attention: plain values, written to the wire elsewhere.

Tokens are shown as pieces with what of a text they stand for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.alignment import Link
from dragoman_server.attention.chunks import TensorPlan
from dragoman_server.attention.selection import Selection
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Alignment
from dragoman_server.engine.sequence import FinishReason, Hypothesis
from dragoman_server.errors import InvalidInputError
from dragoman_server.text.segmentation import SourceSegment
from dragoman_server.text.tokenizer import Span, TextCodec


@dataclass(frozen=True, slots=True)
class SourceToken:
    """A token that the encoder read."""

    id: int
    piece: str
    span: Span  # in the caller's text
    is_special: bool  # whether it is a tag or end-of-sentence


@dataclass(frozen=True, slots=True)
class TargetToken:
    """A token that the decoder emitted or read."""

    id: int
    piece: str
    logprob: float


@dataclass(frozen=True, slots=True)
class AttentionTarget:
    """A target as the decoder sees it."""

    text: str
    tokens: Sequence[TargetToken]
    decoder_input_tokens: Sequence[TargetToken]
    spans: Sequence[Span]  # in `text`, of each of `tokens`
    sum_logprob: float
    score: float
    finish_reason: FinishReason | None  # None where the target was given


@dataclass(frozen=True, slots=True)
class AttentionHeader:
    """What the weights that follow are about."""

    model: str  # name@version
    direction: Direction
    source_tokens: Sequence[SourceToken]
    targets: Sequence[AttentionTarget]
    tensors: Sequence[TensorPlan]
    selection: Selection
    alignment: Alignment  # what the bundle aligns with


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """Which part of a target comes from which part of its source."""

    target_text: str
    source_tokens: Sequence[SourceToken]  # of the text
    target_tokens: Sequence[TargetToken]  # of the text
    target_spans: Sequence[Span]
    token_links: Sequence[Link]
    source_words: Sequence[Span]
    target_words: Sequence[Span]
    word_links: Sequence[Link]
    token_scores: NDArray[np.float32]  # [target tokens, source tokens]


@dataclass(frozen=True, slots=True)
class AlignOutcome:
    """One result per pair, in order: its alignment, or why there is none."""

    results: Sequence[AlignedPair | InvalidInputError]
    alignment: Alignment  # what was used
    model: str  # name@version
    direction: Direction


@dataclass(frozen=True, slots=True)
class Source:
    """A segment of a caller's text, as the encoder reads it."""

    text: str  # all of the caller's
    segment: SourceSegment
    token_ids: Sequence[int]  # in the framing
    framing: Framing

    @property
    def segment_text(self) -> str:
        return self.text[self.segment.begin : self.segment.end]

    def spans(self, tokenizer: TextCodec) -> list[Span]:
        """The part of the caller's text that each of the segment's tokens stands for."""
        first = self.segment.begin
        return [(first + begin, first + end) for begin, end in tokenizer.spans(self.segment_text)]

    def tokens(self, tokenizer: TextCodec) -> list[SourceToken]:
        """All that the encoder reads: the segment's tokens, and the specials around them."""
        begin, end = self.segment.begin, self.segment.end
        spans = [
            *((begin, begin) for _ in self.framing.source_prefix),
            *self.spans(tokenizer),
            *((end, end) for _ in self.framing.source_suffix),
        ]
        of_text, pieces = self.framing.text_range(self.token_ids), tokenizer.source_pieces(self.token_ids)
        return [
            SourceToken(token_id, piece, span, index not in of_text)
            for index, (token_id, piece, span) in enumerate(zip(self.token_ids, pieces, spans, strict=True))
        ]


def target_text_and_spans(
    token_ids: Sequence[int], given_text: str | None, framing: Framing, tokenizer: TextCodec
) -> tuple[str, list[Span]]:
    """The text of a target, and the part of it that each token stands for: of the text that was given, if one was."""
    if given_text is None:
        return tokenizer.decode(token_ids), tokenizer.target_spans(token_ids)
    end = len(given_text)
    return given_text, [
        *((0, 0) for _ in framing.target_prefix),
        *tokenizer.target_text_spans(given_text),
        *((end, end) for _ in framing.target_suffix),
    ]


def target_tokens(token_ids: Sequence[int], logprobs: Sequence[float], tokenizer: TextCodec) -> list[TargetToken]:
    """The tokens that the decoder emits, with the log-probability of each."""
    pieces = tokenizer.pieces(token_ids)
    return [TargetToken(*token) for token in zip(token_ids, pieces, logprobs, strict=True)]


def attention_target(
    source: Source,
    hypothesis: Hypothesis,
    is_given: bool,
    given_text: str | None,
    decoder_start_token_id: int,
    tokenizer: TextCodec,
) -> AttentionTarget:
    """A target as the decoder sees it.

    Args:
        source: that it translates.
        hypothesis: the target, decoded or forced.
        is_given: whether the caller gave it.
        given_text: what the caller gave, where that was a text.
        decoder_start_token_id: of the model.
        tokenizer: of the model.
    """
    text, spans = target_text_and_spans(hypothesis.token_ids, given_text, source.framing, tokenizer)
    tokens = target_tokens(hypothesis.token_ids, hypothesis.token_logprobs, tokenizer)
    (start,) = target_tokens([decoder_start_token_id], [0.0], tokenizer)
    return AttentionTarget(
        text,
        tokens,
        [start, *tokens[:-1]] if tokens else [],
        spans,
        hypothesis.sum_logprob,
        hypothesis.score,
        None if is_given else hypothesis.finish_reason,
    )
