"""Chooses the cross-attention weights that align words best, judged by alignments made by hand."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from dragoman.attention.alignment import Span, align, rows, word_links
from dragoman_export.bundle.gold_alignment import GoldAlignments, GoldPair, WordLinks, alignment_error_rate
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Alignment, AlignmentMethod
from dragoman_server.runtime.attention_pass import AttentionPass


@dataclass(frozen=True)
class ForcedPair:
    """A pair of sentences, and the weights of the teacher-forced pass over it."""

    gold: GoldPair
    cross: NDArray[np.float32]  # [layers, heads, target tokens, source tokens]
    source_is_text: tuple[bool, ...]  # by column
    target_is_text: tuple[bool, ...]  # by row
    source_spans: tuple[Span, ...]  # by token of the text: the word that it is a piece of, (i, i + 1)
    target_spans: tuple[Span, ...]

    def links(self, alignment: Alignment) -> WordLinks:
        """The words that these weights link."""
        cross = self.cross[alignment.layer, list(alignment.heads)].mean(axis=0)
        token_links = align(rows(cross, alignment.method), self.source_is_text, self.target_is_text)
        source_words, target_words = (
            [(i, i + 1) for i in range(len(words))] for words in (self.gold.source_words, self.gold.target_words)
        )
        found = word_links(token_links, self.source_spans, self.target_spans, source_words, target_words)
        return frozenset((link.source, link.target) for link in found)


Half = Mapping[str, Sequence[ForcedPair]]
"""Half of the pairs of every direction."""


@dataclass(frozen=True)
class Trial:
    """The alignment error rate of one choice of weights, by direction."""

    alignment: Alignment
    first_half: Mapping[str, float]  # decides the choice
    second_half: Mapping[str, float]  # is reported

    @property
    def mean_first_half(self) -> float:
        """Mean of the directions."""
        return _mean(self.first_half)

    @property
    def mean_second_half(self) -> float:
        """Mean of the directions."""
        return _mean(self.second_half)


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`."""

    trials: tuple[Trial, ...]  # the `candidates` of every method and layer
    best: Trial
    num_pairs: Mapping[str, tuple[int, int]]  # in the two halves, by direction


def tune(bundle: Bundle, golds: Sequence[GoldAlignments], num_threads: int, console: Console) -> Tuning:
    """Tries both methods and every layer, each with all of its heads, with single heads and with sets of heads.

    A set starts from the best single head and takes in the head that lowers the AER most, until none does. The lowest
    AER on the first half of each direction's pairs, averaged over the directions, decides.

    Raises:
        BundleError: the bundle has no attention graph, or one that ONNX Runtime refuses.
        ValueError: the model does not translate a direction, or a pair does not fit into it.
    """
    first: dict[str, list[ForcedPair]] = {}
    second: dict[str, list[ForcedPair]] = {}
    model = _ForcedModel(bundle, num_threads)
    for gold in golds:
        pairs = [model.force(gold, i) for i in track(range(len(gold.pairs)), gold.direction, console=console)]
        middle = len(pairs) // 2
        first.setdefault(gold.direction, []).extend(pairs[:middle])
        second.setdefault(gold.direction, []).extend(pairs[middle:])
    architecture = bundle.manifest.architecture
    places = [(method, i) for method in get_args(AlignmentMethod) for i in range(architecture.num_decoder_layers)]
    trials = tuple(
        Trial(alignment, error_rates(first, alignment), error_rates(second, alignment))
        for method, layer in track(places, "methods and layers", console=console)
        for alignment in candidates(first, method, layer, architecture.num_heads)
    )
    best = min(trials, key=lambda trial: trial.mean_first_half)
    return Tuning(trials, best, {direction: (len(first[direction]), len(second[direction])) for direction in first})


def candidates(half: Half, method: AlignmentMethod, layer: int, num_heads: int) -> Iterator[Alignment]:
    """Three choices of one layer: all heads, the best single head, and a set of heads if one is better than that."""

    def error(heads: tuple[int, ...]) -> float:
        return _mean(error_rates(half, Alignment(method, layer, heads)))

    yield Alignment(method, layer, tuple(range(num_heads)))
    heads: tuple[int, ...] = min(((head,) for head in range(num_heads)), key=error)
    yield Alignment(method, layer, heads)
    lowest = error(heads)
    while len(heads) < num_heads:
        larger = min((tuple(sorted((*heads, head))) for head in set(range(num_heads)) - set(heads)), key=error)
        if not error(larger) < lowest:
            break
        heads, lowest = larger, error(larger)
    if len(heads) > 1:
        yield Alignment(method, layer, heads)


def error_rates(half: Half, alignment: Alignment) -> dict[str, float]:
    """AER by direction."""
    return {
        direction: alignment_error_rate((pair.gold, pair.links(alignment)) for pair in pairs)
        for direction, pairs in half.items()
    }


def write_alignment(bundle: Bundle, alignment: Alignment) -> Bundle:
    """Writes the choice into the manifest atomically, and opens the bundle, which has another version now."""
    manifest = dataclasses.replace(bundle.manifest, alignment=alignment)
    path = bundle.folder / MANIFEST_FILE
    partial = path.with_suffix(".tmp")
    partial.write_text(manifest.to_json(), encoding="utf-8")
    partial.replace(path)
    return Bundle.open(bundle.folder)


class _ForcedModel:
    """A model that is forced to emit given translations."""

    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        self._manifest = bundle.manifest
        self._weights = AttentionPass(bundle, num_threads)
        self._tokenizer = bundle.tokenizer

    def force(self, gold: GoldAlignments, index: int) -> ForcedPair:
        """Words are tokenized one by one. That gives the pieces of the whole text, as no piece spans a space."""
        if gold.languages not in self._manifest.languages:
            raise ValueError(f"the model does not translate {gold.direction}")
        pair = gold.pairs[index]
        source_pieces = [self._tokenizer.encode(word) for word in pair.source_words]
        target_pieces = [self._tokenizer.encode_target(word) for word in pair.target_words]
        framing = self._manifest.framing_of(gold.languages)
        source_ids, target_ids = framing.frame([*chain(*source_pieces)]), framing.frame_target([*chain(*target_pieces)])
        limits = self._manifest.limits
        for side, ids, limit in (
            ("source", source_ids, limits.max_source_tokens),
            ("target", target_ids, limits.max_target_tokens),
        ):
            if len(ids) > limit:
                raise ValueError(
                    f"{gold.direction}, pair {index + 1}: the {side} has {len(ids)} tokens, at most {limit} fit"
                )
        if not any(source_pieces):
            raise ValueError(f"{gold.direction}, pair {index + 1}: the source has no tokens")
        source_spans, target_spans = (
            tuple((i, i + 1) for i, pieces in enumerate(of_words) for _ in pieces)
            for of_words in (source_pieces, target_pieces)
        )
        return ForcedPair(
            pair,
            self._weights.cross(source_ids, target_ids),
            tuple(index in framing.text_range(source_ids) for index in range(len(source_ids))),
            tuple(index in framing.target_text_range(target_ids) for index in range(len(target_ids))),
            source_spans,
            target_spans,
        )


def _mean(error_rates: Mapping[str, float]) -> float:
    return sum(error_rates.values()) / len(error_rates)
