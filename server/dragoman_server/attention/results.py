"""What callers get who ask for attention: plain values, written to the wire elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.alignment import Link
from dragoman_server.attention.chunks import TensorPlan
from dragoman_server.attention.selection import Selection
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Alignment
from dragoman_server.engine.sequence import FinishReason
from dragoman_server.errors import InvalidInputError
from dragoman_server.text.tokenizer import Span


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
