"""From what the engine answers to what callers get: detokenize -> rejoin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dragoman_server.attention.signals import Signals
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.sequence import Completion, Hypothesis
from dragoman_server.errors import DragomanError, InvalidInputError
from dragoman_server.service.plan import PlannedText
from dragoman_server.text.tokenizer import TextCodec

# Bytes of a character that is not complete are decoded to these.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hypothesis as text."""

    text: str
    pieces: Sequence[str]  # one for each of `hypothesis.token_ids`
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class TranslatedSegment:
    """`text[begin:end]` of an input, in code points, and its translations, best first."""

    begin: int
    end: int
    num_source_tokens: int  # with language tag and end-of-sentence
    candidates: Sequence[Candidate]
    signals: Signals | None = None  # of the first


@dataclass(frozen=True, slots=True)
class TranslatedText:
    """One input, translated. Of each phase it gives the slowest segment's time."""

    text: str
    segments: Sequence[TranslatedSegment]
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float

    @property
    def num_source_tokens(self) -> int:
        """Tokens the encoder read, over all segments."""
        return sum(segment.num_source_tokens for segment in self.segments)

    @property
    def num_target_tokens(self) -> int:
        """Tokens of the best candidates, over all segments."""
        return sum(len(s.candidates[0].hypothesis.token_ids) for s in self.segments)


@dataclass(frozen=True, slots=True)
class ScoredTarget:
    """A target that was given, with its log-probabilities."""

    pieces: Sequence[str]  # one for each of `hypothesis.token_ids`
    hypothesis: Hypothesis


@dataclass(frozen=True, slots=True)
class TranslateOutcome:
    """One result per input, in order: its translation, or why there is none."""

    results: Sequence[TranslatedText | InvalidInputError]
    model: str  # name@version
    direction: Direction


@dataclass(frozen=True, slots=True)
class StreamOutcome:
    """The translation of the only input."""

    result: TranslatedText
    model: str  # name@version
    direction: Direction


@dataclass(frozen=True, slots=True)
class ExchangeOutcome:
    """What became of one input of a stream."""

    id: str  # the caller's
    result: TranslatedText | DragomanError
    model: str  # name@version
    direction: Direction


@dataclass(frozen=True, slots=True)
class ScoreOutcome:
    """One result per pair, in order: its score, or why there is none."""

    results: Sequence[ScoredTarget | InvalidInputError]
    model: str  # name@version
    direction: Direction


def translated_text(
    planned: PlannedText,
    completions: Sequence[Completion],
    tokenizer: TextCodec,
    signals: Sequence[Signals | None] = (),
) -> TranslatedText:
    """The translation of an input, from those of its segments in order, and their signals where there are any."""
    text = planned.text
    segments = [
        TranslatedSegment(
            source.begin,
            source.end,
            len(request.source_ids),
            [_candidate(hypothesis, tokenizer) for hypothesis in completion.hypotheses],
            of_segment,
        )
        for source, request, completion, of_segment in zip(
            text.segments, planned.requests, completions, signals or (None,) * len(completions), strict=True
        )
    ]
    return TranslatedText(
        text.rejoin([segment.candidates[0].text for segment in segments]),
        segments,
        max((c.queue_seconds for c in completions), default=0.0),
        max((c.encode_seconds for c in completions), default=0.0),
        max((c.decode_seconds for c in completions), default=0.0),
    )


def scored_target(completion: Completion, tokenizer: TextCodec) -> ScoredTarget:
    """The score of a pair."""
    hypothesis = completion.hypotheses[0]
    return ScoredTarget(tokenizer.pieces(hypothesis.token_ids), hypothesis)


def _candidate(hypothesis: Hypothesis, tokenizer: TextCodec) -> Candidate:
    # End-of-sentence is a control symbol, which has no text.
    return Candidate(tokenizer.decode(hypothesis.token_ids), tokenizer.pieces(hypothesis.token_ids), hypothesis)


class GrowingText:
    """A translation while it is decoded: what is certain of its text, piece by piece.

    Args:
        separators: what stands before, between and after the segments: one more than there are
            of them.
        decode: gives the text of token ids.
    """

    def __init__(self, separators: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._separators = separators
        self._decode = decode
        self._segment = 0  # the first that is not finished
        self._given = ""  # of its text
        self._is_begun = False

    def grow(self, certain_ids: Sequence[Sequence[int]], finished: Sequence[Completion | None]) -> str:
        """The text that follows on what was given before; "" while there is none.

        Args:
            certain_ids: what the target of each segment begins with, whatever comes. They only
                ever get more.
            finished: the answer for each segment, or None.

        Raises:
            RuntimeError: a text does not begin as its beginning did: what was given cannot be
                taken back.
        """
        parts = [] if self._is_begun else [self._separators[0]]
        self._is_begun = True
        while self._segment < len(finished) and (completion := finished[self._segment]) is not None:
            text = self._decode(completion.hypotheses[0].token_ids)
            if not text.startswith(self._given):
                raise RuntimeError("the text of a finished target is not what its beginning was")
            parts += (text[len(self._given) :], self._separators[self._segment + 1])
            self._segment, self._given = self._segment + 1, ""
        if self._segment < len(finished):
            text = self._decode(certain_ids[self._segment]).rstrip(_UNFINISHED)
            if text.startswith(self._given):
                parts.append(text[len(self._given) :])
                self._given = text
        return "".join(parts)
