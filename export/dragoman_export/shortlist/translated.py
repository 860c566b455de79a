"""Translates the sentences that shortlists are made of, and counts which tokens they are translated into."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.progress import phase
from dragoman_export.shortlist.decoding import Decoder
from dragoman_export.shortlist.kept import KeptWork
from dragoman_export.shortlist.links import Aligner, Links, LinkSum
from dragoman_export.shortlist.sentences import Ids, Sentences

# Sentences that are translated and kept at a time.
_CHUNK = 1024


class Translated(NamedTuple):
    """What the sentences of a direction show."""

    links: Links
    counts: NDArray[np.int64]  # of every token of the target


def translate_and_count(
    sentences: Sentences, decoder: Decoder, aligner: Aligner, kept: KeptWork, console: Console
) -> Translated:
    """Translates sentences greedily and aligns them; what an earlier run has kept is not done again.

    The engine translates some sentences while others are aligned.
    """
    size = decoder.model.manifest.architecture.vocabulary_size
    total, counts = LinkSum(), np.zeros(size, np.int64)
    name = "-".join(sentences.direction)
    sources = sentences.made_of
    chunks = [sources[begin : begin + _CHUNK] for begin in range(0, len(sources), _CHUNK)]
    keys = [f"{name}-{number}" for number in range(len(chunks))]
    found = [kept.load(key) for key in keys]
    missing = [index for index, arrays in enumerate(found) if arrays is None]
    with phase(f"Translating {name}", len(sources), console) as advance:
        advance(sum(len(chunk) for chunk, arrays in zip(chunks, found, strict=True) if arrays is not None))
        # One more than is aligned, so that the engine always has work.
        pending = [decoder.submit(chunks[index], sentences.framing) for index in missing[:1]]
        for number, index in enumerate(missing):
            pending += [decoder.submit(chunks[after], sentences.framing) for after in missing[number + 1 : number + 2]]
            arrays = _counted(chunks[index], [*pending.pop(0)], sentences, aligner, size)
            kept.save(keys[index], arrays)
            found[index] = arrays
            advance(len(chunks[index]))
    for of_chunk in found:
        if of_chunk is not None:
            total.add(Links(of_chunk["sources"], of_chunk["targets"], of_chunk["weights"]))
            counts += of_chunk["counts"]
    return Translated(total.total(), counts)


def _counted(
    sources: Sequence[Ids], targets: Sequence[Ids], sentences: Sentences, aligner: Aligner, size: int
) -> dict[str, NDArray[Any]]:
    links = Links.summed([aligner.links(*pair, sentences.framing) for pair in zip(sources, targets, strict=True)])
    counts = np.bincount(np.concatenate(targets), minlength=size)
    return {**links._asdict(), "counts": counts}
