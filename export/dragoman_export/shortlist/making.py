"""From a bundle to one with lists: translate, count, write, measure; the manifest last."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.bundle.evaluation import TestSet
from dragoman_export.bundle.sources import sample_sentences
from dragoman_export.new_folder import new_folder
from dragoman_export.shortlist.decoding import open_decoder
from dragoman_export.shortlist.imports import read_shortlist
from dragoman_export.shortlist.kept import KeptWork
from dragoman_export.shortlist.language_lists import LanguageLists
from dragoman_export.shortlist.links import Links
from dragoman_export.shortlist.measuring import Measured, Samples, measure
from dragoman_export.shortlist.sentences import framed, read_sentences
from dragoman_export.shortlist.tables import Table, make_table, most_frequent, same_pieces
from dragoman_export.shortlist.translated import open_translator, translate_and_count
from dragoman_export.shortlist.writing import vocabulary_bytes
from dragoman_export.text_files import CorpusFile, read_lines
from dragoman_server.bundle.bundle import Bundle, file_sha256
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import (
    CUDA_PRECISIONS,
    MANIFEST_FILE,
    VOCABULARY_FILE,
    Manifest,
    ShortlistFacts,
    VocabularyFacts,
)


@dataclass(frozen=True)
class Wanted:
    """What lists are made of, and how long they are."""

    sources: Sequence[CorpusFile] = ()  # sentences to be translated
    imports: Sequence[CorpusFile] = ()  # shortlists of other toolkits
    tests: Sequence[TestSet] = ()  # sentences and references to measure on, in place of some of `sources`
    target_texts: Mapping[str, Sequence[Path]] = dataclasses.field(default_factory=dict)  # by language
    per_token: int = 100
    num_frequent: int = 100
    num_held_out: int = 1000


@dataclass(frozen=True)
class Made:
    """A bundle with lists."""

    bundle: Bundle
    measured: tuple[Measured, ...]
    list_lengths: Mapping[str, int]  # by target language
    missing_shares: Mapping[str, float]  # of tokens of more such text as a list was made by, those that it lacks
    num_too_long: Mapping[Direction, int]  # sentences that were left out


def make_lists(
    bundle: Bundle, folder: Path, wanted: Wanted, num_threads: int, console: Console, *, replaces: bool = False
) -> Made:
    """Writes a copy of a bundle, with lists of all target languages and shortlists of some directions.

    What takes long, the translations, is kept beside the folder until that is written: after a run that was stopped,
    the same call goes on.

    Args:
        bundle: without lists, or with others.
        folder: to be made.
        wanted: what is to be in it.
        num_threads: that translate; 0: as many as there are CPUs.
        console: shows the progress.
        replaces: whether a bundle that is there is replaced.

    Raises:
        FileExistsError: the folder exists; where `replaces` is true, and is no bundle.
        ValueError: the bundle takes no lists, a file is at fault, or there is nothing to measure a direction on.
        BundleError: the bundle cannot be served.
    """
    manifest = bundle.manifest
    if manifest.precision in CUDA_PRECISIONS:
        raise ValueError(
            f"{bundle.folder} is at {manifest.precision}, for CUDA, where targets have the whole vocabulary: lists are "
            "for bundles at int8 and fp32"
        )
    with new_folder(folder, unless_has=MANIFEST_FILE if replaces else None) as partial:
        maker = _Maker(bundle, wanted, console)
        kept = KeptWork(folder, maker.purpose)
        made = maker.make(partial, kept, num_threads)
    kept.delete()
    return dataclasses.replace(made, bundle=dataclasses.replace(made.bundle, folder=folder))


class _Maker:
    """Reads all files first, so that none is found to be at fault after an hour."""

    def __init__(self, bundle: Bundle, wanted: Wanted, console: Console) -> None:
        self._bundle, self._wanted, self._console = bundle, wanted, console
        self._manifest, self._tokenizer = bundle.manifest, bundle.tokenizer
        self._sentences = read_sentences(bundle, wanted.sources, wanted.num_held_out)
        self._imported = {
            Direction(*file.languages): read_shortlist(file.path, self._manifest, self._tokenizer, wanted.num_frequent)
            for file in wanted.imports
        }
        self._texts = {
            language: [line for path in paths for line in read_lines(path)]
            for language, paths in wanted.target_texts.items()
        }
        for language, lines in self._texts.items():
            if not any(map(str.strip, lines)):
                paths = ", ".join(map(str, wanted.target_texts[language]))
                raise ValueError(f"{paths} has no text: the list of {language} would have nothing but characters")
        directions = [*(sentences.direction for sentences in self._sentences), *self._imported]
        self._check(directions)
        self._missing_shares: dict[str, float] = {}
        self._samples = [self._samples_of(direction) for direction in directions]

    @property
    def purpose(self) -> list[Any]:
        """All that translations depend on."""
        digests = {
            "-".join(sentences.direction): hashlib.sha256(repr(sentences.made_of).encode()).hexdigest()
            for sentences in self._sentences
        }
        return [self._bundle.version, digests]

    def make(self, folder: Path, kept: KeptWork, num_threads: int) -> Made:
        names = self._manifest.files.keys() - {VOCABULARY_FILE}
        for name in sorted(names):
            shutil.copyfile(self._bundle.folder / name, folder / name)
        tables, counts = self._tables(kept, num_threads)
        lists = self._lists(counts)
        num_source_ids = self._tokenizer.source_vocabulary.size
        contents = vocabulary_bytes(self._manifest, num_source_ids, lists, tables)
        (folder / VOCABULARY_FILE).write_bytes(contents)
        # Before they are measured.
        per_token = self._wanted.per_token
        facts = [ShortlistFacts(table.direction, per_token, 1, 0.0, None, 1.0, 1.0, 0.0) for table in tables]
        self._write_manifest(folder, facts, [*lists])
        measured: list[Measured] = []
        if tables:
            with open_decoder(folder, num_threads) as decoder:
                vocabulary = decoder.model.bundle.vocabulary
                assert vocabulary is not None
                measured += [
                    measure(samples, decoder, vocabulary, self._wanted.per_token, self._console)
                    for samples in self._samples
                ]
            self._write_manifest(folder, [each.facts for each in measured], [*lists])
        num_too_long = {s.direction: s.num_too_long for s in self._sentences if s.num_too_long}
        lengths = {language: len(ids) for language, ids in lists.items()}
        return Made(Bundle.open(folder), tuple(measured), lengths, self._missing_shares, num_too_long)

    def _check(self, directions: Sequence[Direction]) -> None:
        """Raises ValueError where the model does not translate what is asked for, or it is asked for twice."""
        for direction in [*directions, *(Direction(t.source_language, t.target_language) for t in self._wanted.tests)]:
            if direction not in self._manifest.languages:
                raise ValueError(f"the model does not translate {direction.source} to {direction.target}")
        if len({*directions}) < len(self._sentences) + len(self._wanted.imports):
            raise ValueError("a direction has one table: give its sentences, or one file to be imported")
        if unknown := sorted(self._texts.keys() - self._manifest.languages.targets):
            raise ValueError(f"the model does not translate to {unknown[0]}")

    def _samples_of(self, direction: Direction) -> Samples:
        """What a direction is measured on: a test set, sentences that were held out, or the exporter's samples."""
        framing = self._manifest.framing_of(direction)
        for test in self._wanted.tests:
            if (test.source_language, test.target_language) == direction:
                return Samples(direction, framing, framed(self._bundle, direction, test.sources), test.references)
        for sentences in self._sentences:
            if sentences.direction == direction:
                return Samples(direction, framing, sentences.held_out)
        if not (lines := sample_sentences(direction.source)):
            raise ValueError(
                f"there are no sample sentences of {direction.source} to measure the lists on: give some by --test"
            )
        return Samples(direction, framing, framed(self._bundle, direction, lines))

    def _tables(self, kept: KeptWork, num_threads: int) -> tuple[list[Table], dict[str, NDArray[np.int64]]]:
        """The tables, and how often the translations into each language have each token."""
        manifest, wanted = self._manifest, self._wanted
        size = self._tokenizer.source_vocabulary.size
        same = same_pieces(self._tokenizer, manifest)
        tables: list[Table] = []
        counts: dict[str, NDArray[np.int64]] = {}

        def add(direction: Direction, links: Links, frequent: NDArray[np.int64]) -> None:
            tables.append(make_table(direction, Links.summed([links, same]), frequent, size, wanted.per_token))

        if self._sentences:
            with open_translator(self._bundle, num_threads) as translator:
                for sentences in self._sentences:
                    found = translate_and_count(sentences, translator, kept, self._console)
                    frequent = most_frequent(found.counts, wanted.num_frequent, manifest.eos_token_id)
                    add(sentences.direction, found.links, frequent)
                    target = sentences.direction.target
                    counts[target] = counts.get(target, 0) + found.counts
        for direction, imported in self._imported.items():
            add(direction, imported.links, np.union1d(imported.frequent, [manifest.eos_token_id]))
        return tables, counts

    def _lists(self, counts: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """The list of every target language; it has all that translations into the language have."""
        maker = LanguageLists(self._manifest, self._tokenizer)
        lists = {}
        for language in sorted(self._manifest.languages.targets):
            ids = maker.by_scripts(language)
            if language in self._texts:
                ids, self._missing_shares[language] = maker.by_text(language, self._texts[language])
            if ids is not None:
                lists[language] = np.union1d(ids, np.flatnonzero(counts[language])) if language in counts else ids
        return lists

    def _write_manifest(self, folder: Path, facts: Sequence[ShortlistFacts], languages: Sequence[str]) -> None:
        files = {**self._manifest.files, VOCABULARY_FILE: file_sha256(folder / VOCABULARY_FILE)}
        vocabulary = VocabularyFacts(tuple(facts), tuple(languages))
        manifest: Manifest = dataclasses.replace(self._manifest, files=files, vocabulary=vocabulary)
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
