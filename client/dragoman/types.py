"""What translating returns: immutable values, free of protobuf."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias, TypedDict

from dragoman._repr import short_repr
from dragoman.models import Pivot
from dragoman.models import Vocabulary as Vocabulary

Segmentation: TypeAlias = Literal["line", "sentence", "packed"]
"""How a line is cut into the segments that the model translates in one piece: never; into
sentences; or only where it is too long for the model. Without it, as is best for the model:
most were trained on single sentences."""

EarlyStopping: TypeAlias = Literal["heuristic", "first", "never", "narrowing"]
"""When a beam search is over: Hugging Face's `early_stopping` of False, True and "never", and Marian's search."""

Priority: TypeAlias = Literal["interactive", "default", "bulk"]
"""Who gets the larger share of the server while there is not enough for all; nobody gets none."""

AttentionKind: TypeAlias = Literal["encoder", "decoder", "cross"]
"""What attends to what: source to source, target to target, or target to source."""

Reduction: TypeAlias = Literal["mean", "max"]
"""What one matrix of attention in the place of several is: their mean, or their largest value place by place."""

WeightType: TypeAlias = Literal["f32", "f16", "u16", "u8"]
"""What an attention weight is sent as: see `WeightType` in attention.proto."""

AlignmentMethod: TypeAlias = Literal["output_row", "shifted"]
"""Which row of attention aligns a target token: that of the step that emits it, or of the one
after it, which reads it (Shift-Att, Chen et al. 2020)."""


class DecodingOptions(TypedDict, total=False):
    """How to decode: the keywords of all methods that translate.

    Names, definitions and limits are those of `DecodingOptions` in translation.proto. What is
    absent or None is left to the server. Decoding is greedy, a beam search (`beam_size` above
    1), or sampling (with any of `temperature`, `top_k`, `top_p` and `seed`).
    """

    max_target_tokens: int | None
    """Most tokens to decode per segment, end-of-sentence included."""

    min_target_tokens: int | None
    """Fewest tokens before end-of-sentence."""

    max_length_ratio: float | None
    """Most tokens to decode per source token."""

    beam_size: int | None
    """Live hypotheses of a beam search."""

    num_hypotheses: int | None
    """How many hypotheses to return, best first: at most `beam_size`, or any number of samples."""

    length_penalty: float | None
    """The p in `score = sum_logprob / length ** p`."""

    patience: float | None
    """A beam search keeps `round(beam_size * patience)` finished hypotheses."""

    early_stopping: EarlyStopping | None
    """When a beam search is over."""

    temperature: float | None
    """Sampling: what log-probabilities are divided by."""

    top_k: int | None
    """Sampling: only the k most probable tokens; 0 is all."""

    top_p: float | None
    """Sampling: of these, the fewest whose probabilities sum up to p; 1 is all."""

    seed: int | None
    """Sampling: the same seed gives the same samples."""

    repetition_penalty: float | None
    """Above 1, tokens that the target has already get less likely."""

    no_repeat_ngram_size: int | None
    """No sequence of this many tokens comes twice; 0 is off."""

    suppressed_words: Sequence[str]
    """Words that must not come."""

    vocabulary: Vocabulary | None
    """What tokens are chosen from; attention and alignments take "full" alone."""


class TranslateOptions(DecodingOptions, total=False):
    """The keywords of all methods that translate, beside the languages and `timeout`."""

    model: str
    """Name of the model; empty for the server's default."""

    segmentation: Segmentation | None
    """How a line is cut into segments."""

    priority: Priority | None
    """Who goes first where not all can."""


class AttentionOptions(DecodingOptions, total=False):
    """The keywords of `attention`, beside the languages and `timeout`.

    Those of decoding are for a translation made now. Definitions are those of
    `AttentionSelection` in attention.proto.
    """

    model: str
    """Name of the model; empty for the server's default."""

    priority: Priority | None
    """Who goes first where not all can."""

    kinds: Sequence[AttentionKind]
    """What attends to what; empty means "cross", or "encoder" where there is no target."""

    layers: Sequence[int] | None
    """Which layers, from 0, or from -1 backwards; None is all."""

    heads: Sequence[int] | None
    """Which heads, from 0, or from -1 backwards; None is all."""

    head_reduction: Reduction | None
    """Puts one matrix in the place of those of the heads."""

    layer_reduction: Reduction | None
    """Puts one in the place of those of the layers, after the heads: "mean"."""

    rollout: bool
    """Attention rollout in the place of all layers and heads."""

    dtype: WeightType
    """What a weight is sent as, "u16" unless stated otherwise; callers have float32 in any case."""


class AlignOptions(DecodingOptions, total=False):
    """The keywords of `align`, beside the languages and `timeout`; those of decoding are for translations made now."""

    model: str
    """Name of the model; empty for the server's default."""

    priority: Priority | None
    """Who goes first where not all can."""

    method: AlignmentMethod | None
    """Which rows of attention are read. This and the next two are what was found best for the model, if left out."""

    layer: int | None
    """The decoder layer, from 0, or from -1 backwards."""

    heads: Sequence[int] | None
    """The heads whose mean is taken, from 0, or from -1 backwards; all, where only a layer is given."""


class ScoreOptions(TypedDict, total=False):
    """The keywords of `score`, beside the languages and `timeout`."""

    model: str
    """Name of the model; empty for the server's default."""

    length_penalty: float | None
    """The p in `score = sum_logprob / length ** p`."""

    priority: Priority | None
    """Who goes first where not all can."""


class FinishReason(StrEnum):
    """Why decoding of a hypothesis ended."""

    STOP = "stop"
    """The model emitted the end-of-sentence token."""

    LENGTH = "length"
    """The limit on target tokens was reached: the translation is probably cut off."""

    UNSPECIFIED = "unspecified"
    """A reason that this version of the SDK does not know."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a hypothesis."""

    id: int
    """Index in the model's target vocabulary."""

    piece: str
    """The vocabulary entry, with the tokenizer's own marks such as "▁" for a space."""

    logprob: float
    """Natural logarithm of the probability that the model gave to this token; where it was chosen from a list, among
    the tokens of that."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished candidate translation."""

    text: str
    """The translation."""

    tokens: tuple[Token, ...]
    """The decoded tokens, with the end-of-sentence token where the model emitted it."""

    sum_logprob: float
    """Sum of the log-probabilities of the tokens."""

    score: float
    """What hypotheses are ranked by, greater is better: `sum_logprob / len(tokens) ** length_penalty`.
    Scores compare among results of the same options."""

    finish_reason: FinishReason
    """Why decoding ended."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens."""
        return tuple(token.id for token in self.tokens)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return short_repr(self, text=self.text, score=self.score, num_tokens=len(self.tokens))


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A half-open range of a text: `text[span.begin:span.end]`."""

    begin: int
    """Index of the first code point."""

    end: int
    """Index after the last code point."""


class Suspicion(StrEnum):
    """What is unusual about a translation."""

    UNCOVERED = "uncovered"
    """Much of the source is not covered: something may be left out."""

    DETACHED = "detached"
    """Attention is nearly even, or rests on end-of-sentence: the target may not come from the source."""

    REPETITIVE = "repetitive"
    """The target repeats itself."""

    LENGTH = "length"
    """The target is much shorter or longer than the source."""

    CUT_OFF = "cut_off"
    """The target was cut off by its limit."""

    NOT_COPIED = "not_copied"
    """A number, an address, a placeholder or the like of the source is not in the target."""

    UNKNOWN_SCRIPT = "unknown_script"
    """The model's vocabulary has no words for much of the source: it may be in another script or language."""

    UNSPECIFIED = "unspecified"
    """One that this version of the SDK does not know."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What attention says of a translation: hints for a reader, not verdicts.

    Definitions are those of `Signals` in translation.proto.
    """

    source_coverage: float
    """The share of the source's tokens that the translation has read."""

    uncovered_spans: tuple[TextSpan, ...]
    """Which parts of the source text it has not read."""

    attention_entropy: float
    """0 where every target token reads one source token, 1 where it reads all alike."""

    end_of_sentence_share: float
    """How much attention rests on the source's end, and so reads nothing."""

    repetition: float
    """The share of target tokens in a sequence of four that came before."""

    length_ratio: float
    """Target tokens over source tokens."""

    suspicions: tuple[Suspicion, ...]
    """What is beyond the usual; empty for most translations."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the source text that the model translated in one piece."""

    source_span: TextSpan
    """Where the segment stands in the source text."""

    hypotheses: tuple[Hypothesis, ...]
    """The candidates, best first; at least one."""

    source_tokens: int
    """Number of tokens that the encoder read, language tags and end-of-sentence included."""

    signals: Signals | None = None
    """How the best candidate sits on the source, where `include_signals` asked for it."""

    def __str__(self) -> str:
        return self.hypotheses[0].text

    def __repr__(self) -> str:
        return short_repr(self, source_span=self.source_span, text=str(self), num_hypotheses=len(self.hypotheses))


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Time and amount of work behind one translation.

    The segments of a text are translated together: each time is that of the slowest one.
    """

    queue_seconds: float
    """From arrival at the engine until the encoder started."""

    encode_seconds: float
    """Time in the encoder."""

    decode_seconds: float
    """From the end of encoding until the last token."""

    source_tokens: int
    """Tokens read, over all segments."""

    target_tokens: int
    """Tokens of the best hypotheses, over all segments."""


@dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one text.

    `tokens`, `token_ids`, `sum_logprob`, `score` and `finish_reason` are those of the best
    translation of the whole text. Where it has several segments, tokens follow each other,
    log-probabilities add up, the score is the sum over the number of all tokens, and a
    segment cut off by its length makes the whole cut off.
    """

    text: str
    """The translation, with the white space and line breaks of the source."""

    segments: tuple[Segment, ...]
    """The segments in the order of the source; none for blank text."""

    model: str
    """The model and version that translated, as "name@digest"; through a pivot, that of the second translation."""

    source_language: str
    """Language code of the source, as the model has it: "en" where the call said "en-US"."""

    target_language: str
    """Language code of the translation, likewise."""

    stats: RequestStats
    """Where the time went, and how much was translated."""

    pivot: Pivot | None = None
    """The language that the text went through, where no model translates the pair by itself."""

    vocabulary: Vocabulary | None = None
    """What its tokens were chosen from. None: the server does not say, or says what this version of the SDK does not
    know. Log-probabilities and scores over a list are those among its tokens: compare them with those of the same
    list."""

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The candidates for the text, best first; at least one.

        A text of several segments has one, made of the best of each: the others stand in
        `segments`.
        """
        if len(self.segments) == 1:
            return self.segments[0].hypotheses
        tokens = self.tokens
        return (Hypothesis(self.text, tokens, self.sum_logprob, self.score, self.finish_reason),)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The decoded tokens, with the end-of-sentence token of every segment."""
        return tuple(token for best in self._best() for token in best.tokens)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of `tokens`."""
        return tuple(token.id for token in self.tokens)

    @property
    def sum_logprob(self) -> float:
        """Log-probability of the translation under the model; 0 for blank text."""
        return math.fsum(best.sum_logprob for best in self._best())

    @property
    def score(self) -> float:
        """`sum_logprob` over the number of tokens, greater is better; 0 for blank text."""
        if len(self.segments) == 1:
            return self.segments[0].hypotheses[0].score
        return self.sum_logprob / max(1, len(self.tokens))

    @property
    def finish_reason(self) -> FinishReason:
        """LENGTH if any segment was cut off, else what all segments ended with."""
        reasons = {best.finish_reason for best in self._best()}
        for reason in (FinishReason.LENGTH, FinishReason.UNSPECIFIED):
            if reason in reasons:
                return reason
        return FinishReason.STOP

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        pivot = {"pivot": self.pivot} if self.pivot else {}
        return short_repr(
            self, text=self.text, score=self.score, num_segments=len(self.segments), model=self.model, **pivot
        )

    def _best(self) -> tuple[Hypothesis, ...]:
        return tuple(segment.hypotheses[0] for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Score:
    """The log-probability of a given translation."""

    tokens: tuple[Token, ...]
    """The tokens of the target, with the end-of-sentence token where it was scored."""

    sum_logprob: float
    """Sum of the log-probabilities of the tokens."""

    score: float
    """`sum_logprob / len(tokens) ** length_penalty`, greater is better."""

    model: str
    """The model and version that scored, as "name@digest"."""

    source_language: str
    """Language code of the source, as the model has it: "en" where the call said "en-US"."""

    target_language: str
    """Language code of the target, likewise."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens."""
        return tuple(token.id for token in self.tokens)

    def __repr__(self) -> str:
        return short_repr(self, score=self.score, sum_logprob=self.sum_logprob, num_tokens=len(self.tokens))
