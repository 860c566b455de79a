"""Makes a corpus ready for training: reads, splits, changes, tokenizes and aligns it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import sentencepiece as spm

from dragoman_export.text_files import CorpusFile
from dragoman_export.train.alignment import align_pairs
from dragoman_export.train.augment import augment
from dragoman_export.train.corpus import (
    ParallelText,
    TextPair,
    comparison_key,
    read_held_out,
    read_pairs,
    split_pairs,
)
from dragoman_export.train.prepared import Links, Prepared, PreparedText, TokenRows
from dragoman_export.train.tokenizer import open_tokenizer, train_tokenizer


@dataclass(frozen=True)
class CorpusOptions:
    """The text to train on, and its changes."""

    files: tuple[CorpusFile, ...]
    weights: Mapping[Path, float] = field(
        default_factory=dict
    )  # how often an epoch shows each pair of a file, if not 1
    held_out: tuple[Path, ...] = ()  # files of test sentences that may not be trained on
    development_share: float = 0.002
    changed_share: float = 0.0  # changed pairs beside each pair, see `augment`; at 0 nothing is changed at all
    seed: int = 1
    align: bool = False

    def __post_init__(self) -> None:
        for name, limit in (("development_share", 0.5), ("changed_share", 10.0)):
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} is {getattr(self, name)}, must be between 0 and {limit:g}")
        unknown = self.weights.keys() - {file.path for file in self.files}
        if unknown:
            raise ValueError(f"a weight is given for {min(unknown)}, which is none of the files of pairs")

    def weight(self, file: CorpusFile) -> float:
        return self.weights.get(file.path, 1.0)


def prepare(
    options: CorpusOptions,
    tokenizer: bytes | int,
    report: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Reads the files and turns them into token ids.

    Files with a weight above 1 are to be learned by heart: none of their sentences is set aside for development, here
    or in another file.

    Args:
        options: the files and their use.
        tokenizer: a serialized SentencePiece model, or the largest number of pieces of a new one: a small corpus does
            not fill a large vocabulary.
        report: is called with a line about each file.

    Raises:
        ValueError: a file cannot be read, nothing is left to train on, or a tool fails.
    """
    texts = _read(options, report)
    changed = [text.training for text in texts]
    if options.changed_share:
        changed = [tuple(augment(text.training, text.languages, options.seed, options.changed_share)) for text in texts]
    if not any(changed):
        raise ValueError("no pairs are left to train on")
    if isinstance(tokenizer, int):
        languages = sorted({code for text in texts for code in text.languages})
        sentences = {sentence for pairs in changed for pair in pairs for sentence in pair}
        tokenizer = train_tokenizer(sorted(sentences), tokenizer, languages)
    links: Sequence[Links | None] = _align(texts, changed, tokenizer, report) if options.align else [None] * len(texts)
    processor = spm.SentencePieceProcessor(model_proto=tokenizer)
    prepared = []
    for file, text, pairs, of_pairs in zip(options.files, texts, changed, links, strict=True):
        first, second = (TokenRows.of(processor.encode([pair[side] for pair in pairs])) for side in (0, 1))
        weight = options.weight(file)
        prepared.append(
            PreparedText(file.path.stem, text.languages, weight, (first, second), of_pairs, text.development)
        )
    return Prepared(tokenizer, tuple(prepared))


def _read(options: CorpusOptions, report: Callable[[str], None]) -> list[ParallelText]:
    held_out = read_held_out(options.held_out)
    pairs = [list(read_pairs(file)) for file in options.files]
    by_heart = {
        comparison_key(first)
        for file, of_file in zip(options.files, pairs, strict=True)
        if options.weight(file) > 1
        for first, _ in of_file
    }
    texts = []
    for file, of_file in zip(options.files, pairs, strict=True):
        text = split_pairs(file.languages, of_file, held_out, options.development_share, by_heart)
        texts.append(text)
        report(
            f"{'-'.join(text.languages)} {file.path.name}: {len(text.training):,} pairs to train on, "
            f"{len(text.development):,} for development, {text.num_held_out:,} left out, which are in the test set"
        )
    return texts


def _align(
    texts: Sequence[ParallelText],
    changed: Sequence[Sequence[TextPair]],
    tokenizer: bytes,
    report: Callable[[str], None],
) -> list[Links]:
    """Aligns all texts of the same two languages together: the aligner learns its dictionary from them."""
    codec = open_tokenizer(tokenizer)
    rows: dict[int, list[list[tuple[int, int]]]] = {}
    for languages in dict.fromkeys(text.languages for text in texts):
        indexes = [i for i, text in enumerate(texts) if text.languages == languages]
        together = [pair for i in indexes for pair in changed[i]]
        report(f"{'-'.join(languages)}: aligning the words of {len(together):,} pairs")
        found = align_pairs(together, codec.spans)
        for i in indexes:
            rows[i] = list(islice(found, len(changed[i])))
    return [Links.of(rows[i]) for i in range(len(texts))]
