"""Reading the shortlists of other toolkits: Marian's and bergamot's, as text and binary, and CTranslate2's vmap.txt."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_export.shortlist.links import Links
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.text.tokenizer import TextCodec

# marian-dev, src/data/shortlist.h
_MARIAN_MAGIC = 0xF11A48D5013417F5
_MARIAN_HEADER = struct.Struct("<6Q")  # magic, checksum, first_num, best_num, number of offsets, number of ids
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_BYTES = 1 << 30
_MASK = (1 << 64) - 1
# Marian has no name for the word that a source word without translation is aligned with.
_NULL = "NULL"
_MIN_KNOWN_SHARE = 0.5


class Imported(NamedTuple):
    """A shortlist in the ids of a bundle."""

    links: Links
    frequent: NDArray[np.int64]  # ids that are in every list


def read_shortlist(path: Path, manifest: Manifest, tokenizer: TextCodec, num_frequent: int) -> Imported:
    """Reads a file of any of the three formats, which it is known by; it may be compressed by gzip.

    Args:
        path: of the file.
        manifest: of the bundle.
        tokenizer: of the bundle.
        num_frequent: how many of the first ids of the vocabulary are in every list, where a file leaves that to
            Marian's command line. Vocabularies begin with their most frequent pieces.

    Raises:
        ValueError: it is damaged, has ids beyond the vocabularies, or is of another model's pieces.
        OSError: it cannot be read.
    """
    contents = _contents(path)
    try:
        if contents[:8] == _MARIAN_MAGIC.to_bytes(8, "little"):
            return _read_binary(contents, manifest, tokenizer)
        try:
            lines = contents.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError("it is neither text nor a binary shortlist of Marian's") from error
        names = _Names.of(manifest, tokenizer)
        if all("\t" in line for line in lines[:100]) and not _is_lexical(lines[0]):
            return _read_vmap(lines, names)
        first = np.arange(min(num_frequent, manifest.architecture.vocabulary_size))
        return Imported(_read_lexical(lines, names), first)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _contents(path: Path) -> bytes:
    with path.open("rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as opened:
            contents: bytes = opened.read(_MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(contents) > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES} bytes")
    return contents


class _Names(NamedTuple):
    """The ids of pieces."""

    source: Mapping[str, int]
    target: Mapping[str, int]

    @classmethod
    def of(cls, manifest: Manifest, tokenizer: TextCodec) -> "_Names":
        source = tokenizer.source_pieces(range(tokenizer.source_vocabulary.size))
        size = min(tokenizer.vocabulary.size, manifest.architecture.vocabulary_size)
        target = tokenizer.pieces(range(size))
        return cls(*({piece: index for index, piece in enumerate(pieces)} for pieces in (source, target)))


def _known(pairs: Iterable[tuple[str, str, float]], names: _Names) -> Links:
    """The links between pieces that the bundle has. Of a pair that is there twice the last weight counts."""
    weights: dict[tuple[int, int], float] = {}
    num_pairs = num_known = 0
    for source, target, weight in pairs:
        num_pairs += 1
        if source in names.source and target in names.target:
            num_known += 1
            weights[names.source[source], names.target[target]] = weight
    if not num_known or num_known < _MIN_KNOWN_SHARE * num_pairs:
        raise ValueError(
            f"it has {num_pairs} pairs of tokens, and the model has those of {num_known}: it is of another vocabulary"
        )
    ids = np.array([*weights], np.int64)
    return Links.summed([Links(ids[:, 0], ids[:, 1], np.array([*weights.values()]))])


# -- Marian ------------------------------------------------------------------------------------------------------------


def _is_lexical(line: str) -> bool:
    parts = line.split()
    return len(parts) == 3 and _number(parts[2]) is not None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _read_lexical(lines: Sequence[str], names: _Names) -> Links:
    """`target source probability` on each line, as Marian reads it."""
    pairs = []
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        weight = _number(parts[2]) if len(parts) == 3 else None
        if weight is None:
            raise ValueError(f"line {number} is {line!r:.80}, not a target piece, a source piece and a probability")
        target, source = parts[:2]
        if _NULL not in (source, target):
            pairs.append((source, target, weight))
    return _known(pairs, names)


def _read_binary(contents: bytes, manifest: Manifest, tokenizer: TextCodec) -> Imported:
    """Ids are those of Marian's vocabulary, which are the bundle's, too."""
    if len(contents) < _MARIAN_HEADER.size:
        raise ValueError("it is cut off in its header")
    _, checksum, first_num, _, num_offsets, num_ids = _MARIAN_HEADER.unpack_from(contents)
    size = _MARIAN_HEADER.size + 8 * num_offsets + 4 * num_ids
    if len(contents) != size:
        raise ValueError(f"it is {len(contents)} bytes long; by its header it has {size}")
    if _marian_checksum(contents[16:]) != checksum:
        raise ValueError("it is damaged: its checksum is another")
    offsets = np.frombuffer(contents, "<u8", num_offsets, _MARIAN_HEADER.size).astype(np.int64)
    ids = np.frombuffer(contents, "<u4", num_ids, _MARIAN_HEADER.size + 8 * num_offsets).astype(np.int64)
    if num_offsets < 2 or offsets[0] != 0 or offsets[-1] != num_ids or (np.diff(offsets) < 0).any():
        raise ValueError("its rows are not one behind the other")
    num_sources, num_targets = tokenizer.source_vocabulary.size, manifest.architecture.vocabulary_size
    if num_offsets - 1 > num_sources:
        raise ValueError(f"it has rows of {num_offsets - 1} source tokens; the model has {num_sources}")
    if num_ids and (largest := int(ids.max())) >= num_targets:
        raise ValueError(f"it has the target id {largest}; the model has {num_targets} tokens")
    sources = np.repeat(np.arange(num_offsets - 1), np.diff(offsets))
    return Imported(Links.summed([Links(sources, ids, np.ones(num_ids))]), np.arange(min(first_num, num_targets)))


def _marian_checksum(contents: bytes) -> int:
    """`hashMem` of marian-dev's src/common/hash.h, over numbers of 8 bytes; what is left at the end does not count."""
    seed = 0
    for value in np.frombuffer(contents, "<u8", len(contents) // 8).tolist():
        seed ^= (value + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _MASK
    return seed


# -- CTranslate2 -------------------------------------------------------------------------------------------------------


def _read_vmap(lines: Sequence[str], names: _Names) -> Imported:
    """`source pieces TAB target pieces` on each line, separated by spaces, as CTranslate2 reads it.

    The line without source pieces has what is in every list. A row of several source pieces goes to that of them which
    has the shortest row so far: it is there whenever all of them are.
    """
    rows: dict[str, list[str]] = {}
    several: list[tuple[list[str], list[str]]] = []
    common: list[str] = []
    for number, line in enumerate(lines, start=1):
        key, tab, values = line.partition("\t")
        if not tab or "\t" in values:
            raise ValueError(f"line {number} is {line!r:.80}, not source pieces, a tab and target pieces")
        sources, targets = key.split(), values.split()
        if not sources:
            common += targets
        elif len(sources) == 1:
            rows.setdefault(sources[0], []).extend(targets)
        else:
            several.append((sources, targets))
    for sources, targets in several:
        known = [source for source in sources if source in names.source]
        shortest = min(known or sources, key=lambda source: len(rows.get(source, ())))
        rows.setdefault(shortest, []).extend(targets)
    frequent = np.array([names.target[piece] for piece in common if piece in names.target], np.int64)
    return Imported(_known(_ranked(rows), names), frequent)


def _ranked(rows: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, float]]:
    """Targets of a row stand by probability, the best first."""
    for source, targets in rows.items():
        for rank, target in enumerate(dict.fromkeys(targets)):
            yield source, target, 1 / (1 + rank)
