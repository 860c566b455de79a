"""Words in the place of the pieces that a tokenizer makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman.attention import alignment
from dragoman.attention.types import AttentionToken


class Word(NamedTuple):
    """Neighbouring tokens that stand for a word, or one that stands for nothing of the text."""

    text: str
    tokens: tuple[AttentionToken, ...]

    @property
    def is_special(self) -> bool:
        """Whether it is a tag, a start token or end-of-sentence, and not of the text."""
        return self.tokens[0].is_special


def words_of(text: str, tokens: Sequence[AttentionToken]) -> list[Word]:
    """The words that `tokens` stand for; every token is in one, and they keep their order.

    A token that stands for white space goes with the word after it. Words that share a token are one.
    """
    finder = alignment.WordFinder(alignment.words(text))
    runs: list[list[AttentionToken]] = []
    last: int | None = None  # the last word of the text that the last run reaches into
    for token in tokens:
        if token.is_special:
            runs.append([token])
            last = None
            continue
        places = finder.find((token.span.begin, token.span.end))
        if last is not None and places[0] <= last:
            runs[-1].append(token)
        else:
            runs.append([token])
        last = places[-1]
    return [Word(_text(text, run), tuple(run)) for run in runs]


def joined(matrix: NDArray[np.float32], rows: Sequence[Word], columns: Sequence[Word]) -> NDArray[np.float32]:
    """The weights between words: summed over the tokens that are attended to, averaged over those that attend.

    Args:
        matrix: [..., tokens of `rows`, tokens of `columns`].
        rows: the words that attend.
        columns: the words that are attended to.

    Returns:
        [..., words of `rows`, words of `columns`]. Rows sum to what they did.
    """
    lengths = np.array([len(word.tokens) for word in rows])
    by_column = np.add.reduceat(matrix, _begins(columns), axis=-1)
    summed = np.add.reduceat(by_column, _begins(rows), axis=-2)
    means: NDArray[np.float32] = (summed / lengths[:, None]).astype(np.float32)
    return means


def _begins(words: Sequence[Word]) -> list[int]:
    """The index of the first token of each word."""
    return [0, *np.cumsum([len(word.tokens) for word in words[:-1]]).tolist()]


def _text(text: str, run: Sequence[AttentionToken]) -> str:
    if run[0].is_special:
        return run[0].text
    return text[run[0].span.begin : run[-1].span.end].strip() or run[0].piece
