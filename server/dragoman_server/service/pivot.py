"""Two legs as one: a text goes through a third language, and its segments keep the places of the caller's text.

The second leg reads the text of the first as if a caller had sent it, so its segments are not those of the first: two
sentences may have become one. Segments of both legs that have text in common are one segment of the answer; what stands
between, neither model has read. Nothing of either leg is left out:

* What the first leg translated into a text without words, such as "12", the second leaves as it is. It is a segment
  with that text and without tokens.
* What the first leg took for text without words, and the second did not, is a segment without source tokens.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dragoman.types import Vocabulary
from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis, Request
from dragoman_server.errors import FieldViolation, Reason
from dragoman_server.text.segmentation import SegmentedText
from dragoman_server.text.tokenizer import Span, TextCodec


class Pivot(NamedTuple):
    """What came before the model that wrote the answer."""

    language: str  # the first model's tag
    model: str  # name@version
    vocabulary: Vocabulary  # that its targets were chosen from


@dataclass(frozen=True, slots=True)
class FirstLeg:
    """A text that was translated into the language of the pivot."""

    source: SegmentedText
    text: str  # the translation
    spans: Sequence[Span]  # in `text`, of the translation of each segment; may be empty
    nums_source_tokens: Sequence[int]  # of each segment
    are_cut_off: Sequence[bool]  # whether the translation of a segment reached its limit
    seconds: tuple[float, float, float]  # in the queue, encoding and decoding: of each the slowest segment's

    @classmethod
    def of(
        cls,
        source: SegmentedText,
        requests: Sequence[Request],
        completions: Sequence[Completion],
        tokenizer: TextCodec,
    ) -> "FirstLeg":
        """Takes the best hypothesis of every segment, whose requests and answers are given in order."""
        best = [completion.hypotheses[0] for completion in completions]
        texts = [tokenizer.decode(hypothesis.token_ids) for hypothesis in best]
        return cls(
            source,
            source.rejoin(texts),
            spans_of(source, texts),
            [len(request.source_ids) for request in requests],
            [hypothesis.finish_reason is FinishReason.LENGTH for hypothesis in best],
            slowest(completions),
        )


class Passage(NamedTuple):
    """Segments of both legs that are one segment of the answer."""

    source: Span  # in the caller's text
    target: Span  # in the text of the answer
    first: slice  # its segments of the first leg; may be none
    second: slice  # its segments of the second leg; may be none


def passages(first: FirstLeg, second: SegmentedText, translations: Sequence[str]) -> list[Passage]:
    """The smallest passages that have no text in common, in order.

    Args:
        first: the first leg.
        second: its text, as the second leg has cut it.
        translations: of the segments of the second leg.
    """
    cut = [(segment.begin, segment.end) for segment in second.segments]
    sources = [(segment.begin, segment.end) for segment in first.source.segments]
    targets = spans_of(second, translations)
    found: list[Passage] = []
    num_first = num_second = 0
    for group in _groups(first.spans, cut):
        of_first = slice(num_first, num_first := num_first + group.num_first)
        of_second = slice(num_second, num_second := num_second + group.num_second)
        source, target = _moved(group, of_first, first.spans, sources), _moved(group, of_second, cut, targets)
        found.append(Passage(source, target, of_first, of_second))
    return found


def joined(hypotheses: Sequence[Hypothesis], *, is_cut_off: bool) -> Hypothesis:
    """One hypothesis of those of the second leg, in order; without any, one without tokens.

    `is_cut_off` says whether a translation of the first leg reached its limit.
    """
    if not hypotheses:
        whole = Hypothesis((), (), FinishReason.STOP)
    elif len(hypotheses) == 1:
        (whole,) = hypotheses
    else:
        ranked = [h.ranked_logprob for h in hypotheses if h.ranked_logprob is not None]
        are_cut_off = any(h.finish_reason is FinishReason.LENGTH for h in hypotheses)
        whole = Hypothesis(
            tuple(token_id for h in hypotheses for token_id in h.token_ids),
            tuple(logprob for h in hypotheses for logprob in h.token_logprobs),
            FinishReason.LENGTH if are_cut_off else FinishReason.STOP,
            hypotheses[0].length_penalty,
            sum(ranked) if ranked else None,
        )
    return replace(whole, finish_reason=FinishReason.LENGTH) if is_cut_off else whole


def spans_of(text: SegmentedText, translations: Sequence[str]) -> list[Span]:
    """Where the translation of every segment stands in the text that is put together of them."""
    spans: list[Span] = []
    end = 0
    for separator, translation in zip(text.separators(), translations, strict=False):  # one separator is the last
        begin = end + len(separator)
        end = begin + len(translation)
        spans.append((begin, end))
    return spans


def slowest(completions: Sequence[Completion]) -> tuple[float, float, float]:
    """The longest time in the queue, that of encoding and that of decoding, in seconds."""
    return (
        max((c.queue_seconds for c in completions), default=0.0),
        max((c.encode_seconds for c in completions), default=0.0),
        max((c.decode_seconds for c in completions), default=0.0),
    )


def refusal(field: str, description: str, route: str) -> FieldViolation:
    """The violation of a field that makes no sense across two legs."""
    return FieldViolation(field, f"{description}, as {route}", Reason.NOT_WITH_PIVOT)


@dataclass(slots=True)
class _Group:
    """Segments that have parts of the first leg's text in common."""

    begin: int  # in that text
    end: int
    num_first: int = 0  # segments of the first leg
    num_second: int = 0


def _groups(first: Sequence[Span], second: Sequence[Span]) -> list[_Group]:
    groups: list[_Group] = []
    of_both = heapq.merge(((*span, False) for span in first), ((*span, True) for span in second))
    for begin, end, is_second in of_both:
        if not groups or begin >= groups[-1].end:
            groups.append(_Group(begin, end))
        group = groups[-1]
        group.end = max(group.end, end)
        group.num_first += not is_second
        group.num_second += is_second
    return groups


def _moved(group: _Group, segments: slice, spans: Sequence[Span], others: Sequence[Span]) -> Span:
    """The part of another text that a group stands for.

    Args:
        group: in the one text.
        segments: those of the leg that are in it.
        spans: of all segments of the leg in the one text.
        others: of all segments in the other text, which has the same between them.
    """

    def behind(place: int, num_segments: int) -> int:
        if not num_segments:
            return place
        return others[num_segments - 1][1] + place - spans[num_segments - 1][1]

    end = behind(group.end, segments.stop)
    if segments.start < segments.stop and spans[segments.start][0] == group.begin:
        # What is before it need not be the same: nothing in the one text may be a space in the other.
        return others[segments.start][0], end
    return behind(group.begin, segments.start), end
