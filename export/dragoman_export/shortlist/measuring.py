"""What shortlists change: sentences that they were not made of, translated with the whole vocabulary and with lists."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.greedy import corpus_scores
from dragoman_export.progress import phase
from dragoman_export.shortlist.decoding import Decoder
from dragoman_export.shortlist.sentences import Ids
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import ShortlistFacts
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.engine.candidates import Candidates

_SIZES = (20, 50, 100, 200)  # of rows, by which users see what a longer one is worth


@dataclass(frozen=True)
class Samples:
    """Sentences of one direction to measure on, as the encoder reads them."""

    direction: Direction
    framing: Framing
    sources: tuple[Ids, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Of one direction."""

    facts: ShortlistFacts
    curve: Mapping[int, tuple[float, float]]  # by tokens per source token: share of identical sentences, mean length


def measure(samples: Samples, decoder: Decoder, tables: VocabularyTables, per_token: int, console: Console) -> Measured:
    """Translates samples greedily in both ways.

    Args:
        samples: of a direction that has a table.
        decoder: of a model that takes lists.
        tables: of the model.
        per_token: the longest row of the table.
        console: shows the progress.
    """
    framing, sources = samples.framing, samples.sources
    lists = [_list(source, samples, tables) for source in sources]
    name = "-".join(samples.direction)
    with phase(f"Measuring {name}", 2 * len(sources), console) as advance:
        full, full_seconds = decoder.timed(sources, framing)
        advance(len(sources))
        listed, seconds = decoder.timed(sources, framing, [Candidates(ids) for ids in lists])
        advance(len(sources))
    difference = None
    if samples.references:
        tokenizer = decoder.model.tokenizer
        full_bleu, bleu = (
            corpus_scores([tokenizer.decode(target) for target in targets], samples.references).bleu
            for targets in (full, listed)
        )
        difference = bleu - full_bleu
    lengths = np.array([len(ids) for ids in lists])
    facts = ShortlistFacts(
        samples.direction,
        per_token,
        num_sentences=len(sources),
        share_identical=float(np.mean([one == other for one, other in zip(full, listed, strict=True)])),
        bleu_difference=difference,
        mean_length=float(lengths.mean()),
        p95_length=float(np.percentile(lengths, 95)),
        speed_ratio=full_seconds / seconds,
    )
    curve = {size: _shares(full, samples, tables, size) for size in _SIZES if size < per_token}
    return Measured(facts, curve)


def _list(source: Ids, samples: Samples, tables: VocabularyTables, per_token: int | None = None) -> NDArray[np.int32]:
    ids = tables.shortlist(source, samples.direction, per_token)
    if ids is None:
        raise ValueError(f"there is no table of {'-'.join(samples.direction)}")
    return np.union1d(ids, samples.framing.target_prefix).astype(np.int32)


def _shares(targets: Sequence[Ids], samples: Samples, tables: VocabularyTables, per_token: int) -> tuple[float, float]:
    """A translation is the same with a list that has all of its tokens: each of them is the best of all."""
    lists = [_list(source, samples, tables, per_token) for source in samples.sources]
    share = np.mean([np.isin(target, ids).all() for target, ids in zip(targets, lists, strict=True)])
    return float(share), float(np.mean([len(ids) for ids in lists]))
