"""Cuts a text into the segments that the model translates in one piece, and puts it together."""

import enum
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dragoman_server.text.sentences import sentence_spans

Encode = Callable[[str], Sequence[int]]


class Segmentation(enum.IntEnum):
    """How a line is cut; the numbers are those of the API. Line breaks always cut."""

    AUTO = 0  # into sentences only where the line is too long, packed together again
    LINE = 1  # never
    SENTENCE = 2  # into single sentences


@dataclass(frozen=True, slots=True)
class SourceSegment:
    """`text[begin:end]` of the caller's string, in code points, and its ids without specials."""

    begin: int
    end: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentedText:
    """A text and its segments: in order, not overlapping, each with at least one token.

    What is in no segment is a separator: white space, line breaks, and characters that the
    tokenizer drops, such as a zero-width space on a line of its own.
    """

    text: str
    segments: tuple[SourceSegment, ...]

    def source_texts(self) -> list[str]:
        """The text of every segment."""
        return [self.text[segment.begin : segment.end] for segment in self.segments]

    def separators(self) -> list[str]:
        """What stands before, between and after the segments: one more than there are of them."""
        ends = [0, *(segment.end for segment in self.segments)]
        begins = [*(segment.begin for segment in self.segments), len(self.text)]
        return [self.text[end:begin] for end, begin in zip(ends, begins, strict=True)]

    def rejoin(self, translations: Sequence[str]) -> str:
        """The text with every segment replaced by its translation.

        With `source_texts()` for translations it is the original text, exactly.
        """
        first, *rest = self.separators()
        parts = [first]
        for translation, separator in zip(translations, rest, strict=True):
            parts += (translation, separator)
        return "".join(parts)


def segment(
    text: str, encode: Encode, segmentation: Segmentation, segment_tokens: int, max_segments: int | None = None
) -> SegmentedText:
    """Cuts `text` into segments.

    Args:
        text: any string.
        encode: gives the ids of a text without specials.
        segmentation: how lines are cut.
        segment_tokens: ids without specials that a line may have before `AUTO` splits it, and
            up to which the sentences of such a line are packed together. A single sentence may
            have more: what is too long for the model is for the caller to judge.
        max_segments: after so many the rest of the text is left alone. None: all are cut.
    """
    segments = (
        found
        for begin, end in _line_spans(text)
        for found in _cut_line(text, begin, end, encode, segmentation, segment_tokens)
    )
    return SegmentedText(text, tuple(itertools.islice(segments, max_segments)))


def num_lines_with_letters(text: str) -> int:
    """There are at least as many segments, which is known before any of them is tokenized."""
    return sum(any(map(str.isalpha, line)) for line in text.splitlines())


def _line_spans(text: str) -> Iterator[tuple[int, int]]:
    """The lines that are not blank, without the white space around them."""
    offset = 0
    for line in text.splitlines(keepends=True):
        if stripped := line.strip():
            begin = offset + len(line) - len(line.lstrip())
            yield begin, begin + len(stripped)
        offset += len(line)


def _cut_line(
    text: str,
    begin: int,
    end: int,
    encode: Encode,
    segmentation: Segmentation,
    segment_tokens: int,
) -> Iterator[SourceSegment]:
    def tokenized(begin: int, end: int) -> SourceSegment:
        return SourceSegment(begin, end, tuple(encode(text[begin:end])))

    if segmentation is not Segmentation.SENTENCE:
        line = tokenized(begin, end)
        if segmentation is Segmentation.LINE or len(line.token_ids) <= segment_tokens:
            if line.token_ids:
                yield line
            return
    sentences = [
        sentence
        for first, last in sentence_spans(text[begin:end])
        if (sentence := tokenized(begin + first, begin + last)).token_ids
    ]
    if segmentation is Segmentation.SENTENCE:
        yield from sentences
    while segmentation is Segmentation.AUTO and sentences:
        count = _fitting(sentences, segment_tokens)
        packed = sentences[0]
        while count > 1:
            joined = tokenized(packed.begin, sentences[count - 1].end)
            if len(joined.token_ids) <= segment_tokens:
                packed = joined
                break
            # More tokens than one by one: no space stands between them.
            count -= 1
        yield packed
        del sentences[:count]


def _fitting(sentences: Sequence[SourceSegment], segment_tokens: int) -> int:
    """How many sentences from the first on have at most `segment_tokens` in sum, at least 1."""
    total = 0
    for count, sentence in enumerate(sentences):
        total += len(sentence.token_ids)
        if total > segment_tokens:
            return max(count, 1)
    return len(sentences)
