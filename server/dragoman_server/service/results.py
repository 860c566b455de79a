"""From what the engine answers to what callers get: detokenize -> rejoin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dragoman.types import Vocabulary
from dragoman_server.attention.signals import Signals
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.sequence import Completion, Hypothesis
from dragoman_server.errors import DragomanError, InvalidInputError
from dragoman_server.service.pivot import FirstLeg, Pivot, joined, passages, slowest
from dragoman_server.service.plan import PlannedText
from dragoman_server.text.segmentation import SegmentedText
from dragoman_server.text.tokenizer import TextCodec

# Bytes of a character that is not complete are decoded to these.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hypothesis as text."""

    text: str  # of the tokens; of a segment that two models read, also what stands between and around these
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
    """One input, translated. Of each phase it gives the slowest segment's time, summed where two models did it."""

    text: str
    segments: Sequence[TranslatedSegment]
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float
    vocabulary: Vocabulary  # that the tokens were chosen from

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
    pivot: Pivot | None


@dataclass(frozen=True, slots=True)
class StreamOutcome:
    """The translation of the only input."""

    result: TranslatedText
    model: str  # name@version
    direction: Direction
    pivot: Pivot | None


@dataclass(frozen=True, slots=True)
class ExchangeOutcome:
    """What became of one input of a stream."""

    id: str  # the caller's
    result: TranslatedText | DragomanError
    model: str  # name@version
    direction: Direction
    pivot: Pivot | None


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
    candidates = [[_candidate(hypothesis, tokenizer) for hypothesis in c.hypotheses] for c in completions]
    text = planned.text.rejoin([best.text for best, *_ in candidates])
    seconds = slowest(completions)
    if planned.first is not None:
        segments = _segments_of_both(planned.first, planned.text, [best for best, *_ in candidates], text)
        queue, encode, decode = map(sum, zip(planned.first.seconds, seconds, strict=True))
        return TranslatedText(text, segments, queue, encode, decode, planned.vocabulary)
    segments = [
        TranslatedSegment(source.begin, source.end, len(request.source_ids), own, of_segment)
        for source, request, own, of_segment in zip(
            planned.text.segments, planned.requests, candidates, signals or (None,) * len(completions), strict=True
        )
    ]
    return TranslatedText(text, segments, *seconds, planned.vocabulary)


def _segments_of_both(
    first: FirstLeg, second: SegmentedText, candidates: Sequence[Candidate], text: str
) -> list[TranslatedSegment]:
    """The segments of a text that went through two models; `candidates` and `text` are those of the second."""
    segments: list[TranslatedSegment] = []
    for passage in passages(first, second, [candidate.text for candidate in candidates]):
        own = candidates[passage.second]
        hypothesis = joined(
            [candidate.hypothesis for candidate in own], is_cut_off=any(first.are_cut_off[passage.first])
        )
        pieces = [piece for candidate in own for piece in candidate.pieces]
        candidate = Candidate(text[slice(*passage.target)], pieces, hypothesis)
        num_source_tokens = sum(first.nums_source_tokens[passage.first])
        segments.append(TranslatedSegment(*passage.source, num_source_tokens, [candidate]))
    return segments


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
