"""Tokens that attend, and what they align: immutable values, free of NumPy."""

from dataclasses import dataclass
from typing import NamedTuple

from dragoman._repr import short_repr
from dragoman.types import AlignmentMethod, TextSpan


@dataclass(frozen=True, slots=True)
class AttentionToken:
    """A token that attends, or is attended to."""

    id: int
    """Index in the model's vocabulary of its side."""

    piece: str
    """The vocabulary entry, with the tokenizer's own marks such as "▁" for a space."""

    text: str
    """What a reader sees: the part of the text that it stands for, else the piece."""

    span: TextSpan
    """Which part of the text it stands for; empty for what is not of the text."""

    is_special: bool
    """Whether it is a tag, a start token or end-of-sentence, and not of the text."""

    logprob: float | None = None
    """Natural logarithm of the probability that the model gave to this token; None for what it only read."""


class AlignmentLink(NamedTuple):
    """A pair that belongs together, by index."""

    source: int
    """Of the source."""

    target: int
    """Of the target."""

    score: float
    """The attention weight behind it, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AlignmentChoice:
    """From which weights of cross-attention tokens are aligned."""

    method: AlignmentMethod
    """Which rows are read."""

    layer: int
    """The decoder layer, from 0."""

    heads: tuple[int, ...]
    """The heads whose mean is taken, from 0."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which part of a target comes from which part of its source.

    Every token and every word of the target is linked to at least one of the source. Words are what
    white space separates, without the punctuation around them, which are words of their own; in writing
    without spaces, a letter is.
    """

    text: str
    """The source."""

    target_text: str
    """The target."""

    source_tokens: tuple[AttentionToken, ...]
    """The tokens of the source that are of the text."""

    target_tokens: tuple[AttentionToken, ...]
    """The tokens of the target that are of the text."""

    token_links: tuple[AlignmentLink, ...]
    """Links between tokens."""

    source_words: tuple[TextSpan, ...]
    """The words of the source, as parts of `text`."""

    target_words: tuple[TextSpan, ...]
    """The words of the target, as parts of `target_text`."""

    word_links: tuple[AlignmentLink, ...]
    """Links between words."""

    token_scores: tuple[tuple[float, ...], ...]
    """The weight of every source token for every target token: a row for each of `target_tokens`."""

    method: AlignmentMethod
    """Which rows of attention were read."""

    layer: int
    """The decoder layer, from 0."""

    heads: tuple[int, ...]
    """The heads whose mean was taken."""

    model: str
    """The model and version, as "name@digest"."""

    source_language: str
    """Language code of the source, as the model has it: "en" where the call said "en-US"."""

    target_language: str
    """Language code of the target, likewise."""

    def pharaoh(self) -> str:
        """The links between words as source-target pairs, counted from 0: "0-0 1-2"."""
        return " ".join(f"{link.source}-{link.target}" for link in self.word_links)

    def word_pairs(self) -> list[tuple[str, str]]:
        """The words themselves, a pair for each of `word_links`."""
        return [
            (_part(self.text, self.source_words[link.source]), _part(self.target_text, self.target_words[link.target]))
            for link in self.word_links
        ]

    def __repr__(self) -> str:
        return short_repr(self, text=self.text, target_text=self.target_text, num_word_links=len(self.word_links))


def _part(text: str, span: TextSpan) -> str:
    return text[span.begin : span.end]
