"""Word alignments made by hand, and the error rate of others against them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman_export.text_files import read_lines

WordLinks = frozenset[tuple[int, int]]  # (index of a source word, index of a target word)

_REQUIRED, _OPTIONAL = {"source_words", "target_words", "sure"}, {"possible"}


@dataclass(frozen=True)
class GoldPair:
    """A sentence, its translation, and which words belong together."""

    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    sure: WordLinks
    possible: WordLinks  # the sure ones included

    @classmethod
    def from_json(cls, text: str) -> "GoldPair":
        """Raises ValueError naming the field at fault."""
        values = json.loads(text)
        if not isinstance(values, dict) or not _REQUIRED <= values.keys() <= _REQUIRED | _OPTIONAL:
            raise ValueError("not an object of source_words, target_words, sure and, where there are any, possible")
        source_words, target_words = (_words(values[name], name) for name in ("source_words", "target_words"))
        sure = _links(values["sure"], "sure", len(source_words), len(target_words))
        possible = _links(values.get("possible", []), "possible", len(source_words), len(target_words))
        return cls(source_words, target_words, sure, sure | possible)


@dataclass(frozen=True)
class GoldAlignments:
    """Pairs of one direction."""

    languages: tuple[str, str]
    pairs: tuple[GoldPair, ...]

    @classmethod
    def read(cls, languages: tuple[str, str], path: Path) -> "GoldAlignments":
        """Reads a file of JSON lines, one object for each pair.

            {"source_words": ["the", "cat"], "target_words": ["le", "chat"], "sure": [[0, 0], [1, 1]], "possible": []}

        A link is [index of the source word, index of the target word], from 0. `possible` has links that an alignment
        may have or lack (Och & Ney 2003); without it there are none.

        Raises:
            ValueError: naming the line and what is wrong, or there are fewer than two pairs.
        """
        pairs = []
        for number, line in enumerate(read_lines(path), start=1):
            try:
                pairs.append(GoldPair.from_json(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
        if len(pairs) < 2:
            raise ValueError(
                f"{path} has {len(pairs)} pairs; at least 2 are needed, one to choose by and one to report"
            )
        return cls(languages, tuple(pairs))

    @property
    def direction(self) -> str:
        return "-".join(self.languages)


def alignment_error_rate(alignments: Iterable[tuple[GoldPair, WordLinks]]) -> float:
    """AER of found links A, given sure links S and possible ones P (Och & Ney 2003), all counted over all pairs.

        1 - (|A and S| + |A and P|) / (|A| + |S|)

    0 is best. Between 0 and 1.
    """
    agreeing = total = 0
    for gold, found in alignments:
        agreeing += len(found & gold.sure) + len(found & gold.possible)
        total += len(found) + len(gold.sure)
    return 1 - agreeing / total


def _words(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(word, str) and word.strip() for word in values) or not values:
        raise ValueError(f"{name} is not a list of at least one word, none of them blank")
    return tuple(values)


def _links(values: Any, name: str, num_source_words: int, num_target_words: int) -> WordLinks:
    if not isinstance(values, list) or not all(
        isinstance(link, list) and len(link) == 2 and all(type(index) is int for index in link) for link in values
    ):
        raise ValueError(f"{name} is not a list of [source index, target index]")
    for source, target in values:
        if not (0 <= source < num_source_words and 0 <= target < num_target_words):
            raise ValueError(
                f"{name} has [{source}, {target}]; there are {num_source_words} source_words and "
                f"{num_target_words} target_words"
            )
    return frozenset((source, target) for source, target in values)
