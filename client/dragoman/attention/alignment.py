"""Which words of a source a translation's words come from: links, read off cross-attention."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

AlignmentMethod = Literal["output_row", "shifted"]
Span = tuple[int, int]  # [begin, end) in code points

# Letters of writing without spaces between words: Thai and Lao, Myanmar, Khmer, the Tai scripts, Chinese, Japanese
# and Yi. Korean has spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f"
    "\u31a0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


class Link(NamedTuple):
    """A pair that belongs together, by index."""

    source: int
    target: int
    score: float  # the attention weight behind it, from 0 to 1


def rows(cross: NDArray[np.float32], method: AlignmentMethod) -> NDArray[np.float32]:
    """The row of cross-attention from which each target token is aligned.

    Args:
        cross: [..., T, S]; row t is the step that emits the t-th of T target tokens. The last one is end-of-sentence.
        method: `output_row` takes that row. `shifted` takes row t + 1, of the step that has just read the token
            (Shift-Att; Chen et al. 2020, "Accurate Word Alignment Induction from Neural Machine Translation").

    Returns:
        [..., T, S]; row t is for token t. End-of-sentence, which no step reads, keeps its own.
    """
    if method == "output_row":
        return cross
    return np.concatenate((cross[..., 1:, :], cross[..., -1:, :]), axis=-2)


def align(cross: NDArray[np.float32], source_is_text: Sequence[bool], target_is_text: Sequence[bool]) -> list[Link]:
    """Links every target token with the source token of the largest weight.

    Tokens that are not of the text (tags, end-of-sentence) are left out on both sides, before the largest weight is
    looked for: models rest their attention on them.

    Args:
        cross: [T, S], from `rows`, of one head or the mean of several.
        source_is_text: by column.
        target_is_text: by row.

    Returns:
        One link for every token of the target's text, in their order. Indexes count the tokens of the text alone.

    Raises:
        ValueError: the source has no token of the text.
    """
    if not any(source_is_text):
        raise ValueError("the source has no token of the text to align with")
    weights = cross[np.ix_(np.asarray(target_is_text, bool), np.asarray(source_is_text, bool))]
    best = weights.argmax(axis=1)
    scores = np.take_along_axis(weights, best[:, None], axis=1)[:, 0]
    return [Link(*link) for link in zip(best.tolist(), range(len(best)), scores.tolist(), strict=True)]


def words(text: str) -> list[Span]:
    """The words of a text, for any language.

    Words are what white space separates. Punctuation around them is apart, every mark a word; inside ("don't",
    "porte-avions") it is part of them. In writing without spaces, such as Japanese or Thai, every letter is a word.
    Combining marks, and characters that only format, stay with what they follow. Every character that is not white
    space is in exactly one word.
    """
    found: list[Span] = []
    run: list[Span] = []  # characters that form one word, but for the punctuation around it
    for begin, end in _characters(text):
        if run and begin > run[-1][1]:
            found += _split_punctuation(text, run)
            run = []
        if _UNSPACED.match(text[begin]) and unicodedata.category(text[begin]) in ("Lo", "Lm", "Nl"):
            found += [*_split_punctuation(text, run), (begin, end)]
            run = []
        else:
            run.append((begin, end))
    return found + _split_punctuation(text, run)


def _characters(text: str) -> Iterator[Span]:
    """What readers take for a character, but for white space: a code point with the marks that follow it."""
    begin = 0
    for end in range(1, len(text) + 1):
        if text[begin].isspace():
            begin = end
        elif end == len(text) or not _is_mark(text[end]):
            yield begin, end
            begin = end


def _is_mark(code_point: str) -> bool:
    category = unicodedata.category(code_point)
    return category[0] == "M" or category == "Cf"


def _split_punctuation(text: str, run: Sequence[Span]) -> list[Span]:
    """Parts the punctuation at both ends from what is between."""
    inside = [i for i, (begin, _) in enumerate(run) if unicodedata.category(text[begin])[0] != "P"]
    if not inside:
        return list(run)
    first, last = inside[0], inside[-1]
    return [*run[:first], (run[first][0], run[last][1]), *run[last + 1 :]]


def word_links(
    token_links: Iterable[Link],
    source_spans: Sequence[Span],
    target_spans: Sequence[Span],
    source_words: Sequence[Span],
    target_words: Sequence[Span],
) -> list[Link]:
    """Links between words: of its tokens' links, every target word has the one with the largest score.

    To have them all, as is common, brings in many wrong ones: the later pieces of a rare word attend to little of use.
    A token that stands for white space or for nothing goes with the word after it, a target word for which no token
    stands has the links of its neighbour.

    Args:
        token_links: from `align`.
        source_spans: what each source token stands for; may be empty.
        target_spans: the same of each target token.
        source_words: in order and apart, as `words` gives them.
        target_words: likewise.

    Returns:
        By target and then source; several for a target word only where one source token stands for several words.
        Every target word has at least one, if there is any token link.
    """
    if not source_words or not target_words:
        return []
    sources, targets = WordFinder(source_words), WordFinder(target_words)
    best: list[Link | None] = [None] * len(target_words)
    for link in token_links:
        for target in targets.find(target_spans[link.target]):
            other = best[target]
            if other is None or link.score > other.score:
                best[target] = link
    for places in (range(len(best)), reversed(range(len(best)))):
        for place, neighbour in pairwise(places):
            best[neighbour] = best[neighbour] or best[place]
    return [
        Link(source, target, link.score)
        for target, link in enumerate(best)
        if link is not None
        for source in sources.find(source_spans[link.source])
    ]


class WordFinder:
    """Finds words by what they cover."""

    def __init__(self, words: Sequence[Span]) -> None:
        self._words = words
        self._ends = [end for _, end in words]

    def find(self, span: Span) -> range:
        """The words that overlap a span; where none does, the next one, or the last."""
        begin, end = span
        first = min(bisect_right(self._ends, begin), len(self._words) - 1)
        last = first
        while last + 1 < len(self._words) and self._words[last + 1][0] < end:
            last += 1
        return range(first, last + 1)


def pharaoh(links: Iterable[Link]) -> str:
    """Links as source-target pairs, counted from 0: "0-0 1-2"."""
    return " ".join(f"{link.source}-{link.target}" for link in links)
