"""Parallel text for training: reading, keeping the test set out, tokenizing, and the order in which batches are shown.

A corpus is a set of sentence pairs of two languages; each *direction* of it (en->fr, fr->en) is trained on separately.
Everything here is a pure function of the files and a seed, so that an interrupted training finds its place again.
"""

import io
import random
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TextPair = tuple[str, str]


def read_pairs(path: Path) -> Iterator[TextPair]:
    """Yields the first two columns of a tab-separated UTF-8 file, or of the `.txt` and `.tsv` members of a zip of them.

    Members that start with an underscore (`_about.txt` in the manythings.org archives) are documentation, not data.

    Raises:
        ValueError: a line has fewer than two columns, or an archive has no data member.
    """
    if path.suffix != ".zip":
        with path.open(encoding="utf-8") as lines:
            yield from _split_columns(lines, str(path))
        return
    with zipfile.ZipFile(path) as archive:
        members = [n for n in archive.namelist() if n.endswith((".txt", ".tsv")) and not Path(n).name.startswith("_")]
        if not members:
            raise ValueError(f"{path} has no .txt or .tsv member")
        for member in members:
            with io.TextIOWrapper(archive.open(member), encoding="utf-8") as lines:
                yield from _split_columns(lines, f"{path}:{member}")


def _split_columns(lines: Iterable[str], origin: str) -> Iterator[TextPair]:
    for number, line in enumerate(lines, start=1):
        columns = line.rstrip("\r\n").split("\t")
        if columns == [""]:
            continue
        if len(columns) < 2:
            raise ValueError(f"{origin}, line {number}: expected two tab-separated columns")
        yield columns[0].strip(), columns[1].strip()


def comparison_key(text: str) -> str:
    """What two sentences have in common when they differ in case, punctuation and spacing only."""
    letters = "".join(" " if unicodedata.category(c)[0] in "PSZ" else c for c in unicodedata.normalize("NFKC", text))
    return " ".join(letters.lower().split())


def read_held_out(paths: Iterable[Path]) -> frozenset[str]:
    """The comparison keys of every line of the given files: sentences that may not be trained on."""
    # Not splitlines, which also splits at characters that may stand within a sentence.
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").split("\n"))
    return frozenset(comparison_key(line) for line in lines) - {""}


@dataclass(frozen=True)
class ParallelText:
    """Sentence pairs of two languages, split so that no sentence of the first language stands on both sides."""

    languages: tuple[str, str]
    training: tuple[TextPair, ...]
    development: tuple[TextPair, ...]
    num_held_out: int  # pairs left out because one side is a held-out sentence


def split_pairs(
    languages: tuple[str, str], pairs: Iterable[TextPair], held_out: frozenset[str], development_share: float
) -> ParallelText:
    """Drops held-out and empty pairs and sets about `development_share` of the rest aside.

    The split hashes the first side, so all translations of one sentence, in every corpus, fall on the same side.
    """
    training: list[TextPair] = []
    development: list[TextPair] = []
    num_held_out = 0
    for first, second in dict.fromkeys(pairs):
        first_key = comparison_key(first)
        if not first or not second:
            continue
        if first_key in held_out or comparison_key(second) in held_out:
            num_held_out += 1
            continue
        is_development = zlib.crc32(first_key.encode()) < development_share * 2**32
        (development if is_development else training).append((first, second))
    return ParallelText(languages, tuple(training), tuple(development), num_held_out)


@dataclass(frozen=True)
class TokenRows:
    """Many token sequences in one flat array: a million short Python lists would take gigabytes."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]  # [rows + 1]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(a) for a in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Direction:
    """One translation direction: the source prefix (language tag) and the tokenized sides, without specials."""

    source_language: str
    target_language: str
    prefix_ids: tuple[int, ...]
    source: TokenRows
    target: TokenRows
    weight: float = 1.0  # how often an epoch shows each pair; 0.5 shows a random half of them


@dataclass(frozen=True)
class Example:
    """One training example: a direction and the pairs joined into it (usually one)."""

    direction: int
    rows: tuple[int, ...]
    source_length: int
    target_length: int


@dataclass(frozen=True)
class BatchOptions:
    """How examples are formed and grouped; lengths and budgets are in tokens."""

    batch_tokens: int = 3072  # padded tokens of the longer side, per batch
    join_share: float = 0.1  # share of the pairs that is joined into longer examples
    max_tokens: int = 200  # longest example, either side; longer pairs are left out


def plan_epoch(directions: Sequence[Direction], options: BatchOptions, seed: int, epoch: int) -> list[list[Example]]:
    """The batches of one epoch, in order: every pair of every direction (by its weight), grouped by length, shuffled.

    Some pairs are joined to their (shuffled) neighbours up to a random length, so that the model also learns inputs of
    several sentences, which a corpus of single sentences would never show it.
    """
    rng = random.Random(f"{seed}-{epoch}")
    examples: list[Example] = []
    for index, direction in enumerate(directions):
        examples.extend(_plan_direction(index, direction, options, rng))
    # Random ties, then by length: batches hold little padding and still differ from epoch to epoch.
    rng.shuffle(examples)
    examples.sort(key=lambda e: (max(e.source_length, e.target_length), e.target_length))
    batches: list[list[Example]] = []
    batch: list[Example] = []
    for example in examples:
        width = max(example.source_length, example.target_length)
        if batch and (len(batch) + 1) * width > options.batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(example)
    if batch:
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def _plan_direction(index: int, direction: Direction, options: BatchOptions, rng: random.Random) -> Iterator[Example]:
    # Specials: the prefix and end-of-sentence on the source, end-of-sentence on the target.
    extra = len(direction.prefix_ids) + 1
    source_lengths, target_lengths = direction.source.lengths.tolist(), direction.target.lengths.tolist()
    rows = [
        row
        for row in range(len(direction.source))
        if source_lengths[row] + extra <= options.max_tokens and target_lengths[row] + 1 <= options.max_tokens
    ]
    repetitions = int(direction.weight)
    rows = rows * repetitions + rng.sample(rows, round(len(rows) * (direction.weight - repetitions)))
    rng.shuffle(rows)
    num_joined = int(len(rows) * options.join_share)
    group: list[int] = []
    source_length, target_length, limit = extra, 1, 0
    for position, row in enumerate(rows):
        source_length += source_lengths[row]
        target_length += target_lengths[row]
        if group and max(source_length, target_length) > limit:
            yield Example(index, tuple(group), source_length - source_lengths[row], target_length - target_lengths[row])
            group = []
            source_length, target_length = extra + source_lengths[row], 1 + target_lengths[row]
        if not group:
            limit = rng.randint(16, options.max_tokens) if position < num_joined else 0
        group.append(row)
    if group:
        yield Example(index, tuple(group), source_length, target_length)


def batch_arrays(
    batch: Sequence[Example], directions: Sequence[Direction], pad_id: int, bos_id: int, eos_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Source ids [B, S], decoder input ids [B, T] and labels [B, T], int64, right-padded with `pad_id`."""
    source = np.full((len(batch), max(e.source_length for e in batch)), pad_id, dtype=np.int64)
    target = np.full((len(batch), max(e.target_length for e in batch)), pad_id, dtype=np.int64)
    labels = np.full_like(target, pad_id)
    for i, example in enumerate(batch):
        direction = directions[example.direction]
        parts = [direction.source[row] for row in example.rows]
        source[i, : example.source_length] = np.concatenate([direction.prefix_ids, *parts, [eos_id]])
        words = np.concatenate([direction.target[row] for row in example.rows])
        target[i, : example.target_length] = np.concatenate([[bos_id], words])
        labels[i, : example.target_length] = np.concatenate([words, [eos_id]])
    return source, target, labels
