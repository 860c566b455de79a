"""Cuts a text into the segments that the model translates in one piece, and puts it together."""

import enum
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dragoman_server.text.sentences import primary_language, sentence_spans
from dragoman_server.text.tokenizer import Span
from dragoman_server.text.verbatim import has_words

Encode = Callable[[str], Sequence[int]]

# Those without spaces between sentences: the Chinese languages, by ISO 639-1 and 639-3, and Japanese.
_UNSPACED_LANGUAGES = frozenset(("zh", "zho", "cmn", "gan", "hak", "lzh", "nan", "wuu", "yue", "ja", "jpn"))

# White space that parts a line: of three characters and more, or with a tab.
_WIDE_GAP = re.compile(r"\s{3,}|[^\S\t]?\t\s?")


class Segmentation(enum.Enum):
    """How a line is cut; a bundle's manifest has the values. Line breaks always cut."""

    LINE = "line"  # never
    SENTENCE = "sentence"  # into single sentences
    PACKED = "packed"  # into sentences where the line is too long, packed together again


@dataclass(frozen=True, slots=True)
class SourceSegment:
    """`text[begin:end]` of the caller's string, in code points, and its ids without specials."""

    begin: int
    end: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentedText:
    """A text and its segments: in order, not overlapping, each with at least one token.

    What is in no segment is a separator, which comes back as it is: white space, line breaks, and what has nothing to
    translate, such as "12:30" on a line of its own.
    """

    text: str
    segments: tuple[SourceSegment, ...]
    joint: str = ""
    """Stands between the translations of segments with nothing between them, as sentences have in Chinese."""

    def source_texts(self) -> list[str]:
        """The text of every segment."""
        return [self.text[segment.begin : segment.end] for segment in self.segments]

    def separators(self) -> list[str]:
        """What stands before, between and after the translations: one more than there are segments."""
        ends = [0, *(segment.end for segment in self.segments)]
        begins = [*(segment.begin for segment in self.segments), len(self.text)]
        separators = [self.text[end:begin] for end, begin in zip(ends, begins, strict=True)]
        separators[1:-1] = [separator or self.joint for separator in separators[1:-1]]
        return separators

    def rejoin(self, translations: Sequence[str]) -> str:
        """The text with every segment replaced by its translation.

        With `source_texts()` for translations it is the original text, exactly, where there is no `joint`.
        """
        first, *rest = self.separators()
        parts = [first]
        for translation, separator in zip(translations, rest, strict=True):
            parts += (translation, separator)
        return "".join(parts)


def segment(
    text: str,
    encode: Encode,
    segmentation: Segmentation,
    segment_tokens: int,
    languages: tuple[str, str],
    max_segments: int | None = None,
) -> SegmentedText:
    """Cuts `text` into segments.

    Lines and sentences without words are in none. Nor is a wide gap in a line (white space with a tab, or of three
    characters and more), unless lines are not to be cut.

    Args:
        text: any string.
        encode: gives the ids of a text without specials.
        segmentation: how lines are cut.
        segment_tokens: ids without specials that neighbouring sentences may have for `PACKED` to leave them together.
            They are neighbours where an ordinary space or nothing is between them: the model would not give other
            white space back. A single sentence may have more: what is too long for the model is for the caller to
            judge.
        languages: BCP-47 tags of the text and of what it is translated into.
        max_segments: after so many the rest of the text is left alone. None: all are cut.
    """
    source_language, target_language = languages

    def tokenized(begin: int, end: int) -> SourceSegment:
        return SourceSegment(begin, end, tuple(encode(text[begin:end])))

    spans = _line_spans(text)
    if segmentation is not Segmentation.LINE:
        spans = _sentence_spans(text, spans, source_language)
    segments = (
        _packed(text, spans, tokenized, segment_tokens)
        if segmentation is Segmentation.PACKED
        else (tokenized(*span) for span in spans)
    )
    kept = (found for found in segments if found.token_ids and has_words(text[found.begin : found.end]))
    joint = "" if primary_language(target_language) in _UNSPACED_LANGUAGES else " "
    return SegmentedText(text, tuple(itertools.islice(kept, max_segments)), joint)


def num_lines_with_words(text: str) -> int:
    """There are at least as many segments, which is known before any of them is tokenized."""
    return sum(map(has_words, text.splitlines()))


def lines(text: str, encode: Encode, max_segments: int | None = None) -> SegmentedText:
    """The text with every line that has tokens as a segment, whether there are words in it or not."""
    segments = (SourceSegment(begin, end, tuple(encode(text[begin:end]))) for begin, end in _line_spans(text))
    kept = (found for found in segments if found.token_ids)
    return SegmentedText(text, tuple(itertools.islice(kept, max_segments)))


def _line_spans(text: str) -> Iterator[Span]:
    """The lines that are not blank, without the white space around them."""
    offset = 0
    for line in text.splitlines(keepends=True):
        if stripped := line.strip():
            begin = offset + len(line) - len(line.lstrip())
            yield begin, begin + len(stripped)
        offset += len(line)


def _sentence_spans(text: str, line_spans: Iterable[Span], language: str) -> Iterator[Span]:
    for begin, end in line_spans:
        for field_begin, field_end in _field_spans(text, begin, end):
            for first, last in sentence_spans(text[field_begin:field_end], language):
                yield field_begin + first, field_begin + last


def _field_spans(text: str, begin: int, end: int) -> Iterator[Span]:
    """What wide gaps separate in `text[begin:end]`."""
    for gap in _WIDE_GAP.finditer(text, begin, end):
        yield begin, gap.start()
        begin = gap.end()
    yield begin, end


def _packed(
    text: str, spans: Iterable[Span], tokenized: Callable[[int, int], SourceSegment], segment_tokens: int
) -> Iterator[SourceSegment]:
    """Neighbouring sentences in as few segments as they fit into."""
    block: list[Span] = []
    for span in spans:
        if block and text[block[-1][1] : span[0]] not in ("", " "):
            yield from _packed_block(block, tokenized, segment_tokens)
            block = []
        block.append(span)
    if block:
        yield from _packed_block(block, tokenized, segment_tokens)


def _packed_block(
    block: Sequence[Span], tokenized: Callable[[int, int], SourceSegment], segment_tokens: int
) -> Iterator[SourceSegment]:
    whole = tokenized(block[0][0], block[-1][1])
    if len(whole.token_ids) <= segment_tokens:
        yield whole
        return
    sentences = [sentence for span in block if (sentence := tokenized(*span)).token_ids]
    while sentences:
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
