"""The table of a direction: for each source token its likely target tokens, and the most frequent of all."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_export.shortlist.links import Links
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.text.tokenizer import UNKNOWN, TextCodec

# Of all rows of a table: 4 MB of ids of two bytes.
MAX_LINKS = 1 << 21


class Table(NamedTuple):
    """As `vocabulary.bin` has it."""

    direction: Direction
    offsets: NDArray[np.int64]  # [num_source_ids + 1]
    links: NDArray[np.int64]  # target ids of all rows, the best of each first
    frequent: NDArray[np.int64]


def most_frequent(counts: NDArray[np.int64], number: int, eos_token_id: int) -> NDArray[np.int64]:
    """The tokens that occur most often, and end-of-sentence, by id.

    Args:
        counts: of every token of the target.
        number: of tokens, at most.
        eos_token_id: is among them.
    """
    order = np.argsort(-counts, kind="stable")[:number]
    return np.union1d(order[counts[order] > 0], [eos_token_id])


def same_pieces(tokenizer: TextCodec, manifest: Manifest) -> Links:
    """Each source token with the target token of the same text: names and numbers are often copied.

    Their weights are infinite, so that they stand first in their rows.
    """
    sizes = tokenizer.source_vocabulary.size, min(tokenizer.vocabulary.size, manifest.architecture.vocabulary_size)
    of_source, of_target = (
        pieces(range(size)) for pieces, size in zip((tokenizer.source_pieces, tokenizer.pieces), sizes, strict=True)
    )
    targets = {piece: index for index, piece in enumerate(of_target) if not tokenizer.is_control(index)}
    targets.pop(UNKNOWN, None)
    found = [
        (index, targets[piece])
        for index, piece in enumerate(of_source)
        if piece in targets and not tokenizer.is_source_control(index)
    ]
    sources, same = (np.array(ids, np.int64) for ids in zip(*found, strict=True)) if found else Links.none()[:2]
    return Links(sources, same, np.full(len(found), np.inf))


def make_table(
    direction: Direction, links: Links, frequent: NDArray[np.int64], num_source_ids: int, per_token: int
) -> Table:
    """The table of a direction.

    Tokens of `frequent` are in no row, as they are in every list. A table that would be too large loses the lightest
    links.

    Args:
        direction: that it is of.
        links: with their weights.
        frequent: ids, end-of-sentence among them.
        num_source_ids: size of the source's vocabulary.
        per_token: the most links of a source token.
    """
    is_kept = ~np.isin(links.targets, frequent) & (links.sources < num_source_ids)
    sources, targets, weights = links.sources[is_kept], links.targets[is_kept], links.weights[is_kept]
    order = np.lexsort((targets, -weights, sources))
    sources, targets, weights = sources[order], targets[order], weights[order]
    begins = np.searchsorted(sources, np.arange(num_source_ids))
    is_kept = np.arange(len(sources)) - begins[sources] < per_token
    if is_kept.sum() > MAX_LINKS:
        kept = np.flatnonzero(is_kept)
        lightest = kept[np.argsort(weights[kept], kind="stable")[: len(kept) - MAX_LINKS]]
        is_kept[lightest] = False
    offsets = np.concatenate(([0], np.bincount(sources[is_kept], minlength=num_source_ids).cumsum()))
    return Table(direction, offsets, targets[is_kept], frequent)
