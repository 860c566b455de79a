"""Bundles with lists of tokens."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dragoman_export.shortlist.tables import Table
from dragoman_export.shortlist.writing import vocabulary_bytes
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import (
    MANIFEST_FILE,
    VOCABULARY_FILE,
    FileName,
    Manifest,
    ShortlistFacts,
    VocabularyFacts,
)
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES

Links = Mapping[int, Sequence[int]]  # source token -> its likely target tokens, the best first


def contents(
    manifest: Manifest,
    languages: Mapping[str, Iterable[int]],
    shortlists: Mapping[tuple[str, str], Links],
    frequent: Iterable[int] = (),
) -> bytes:
    """What `vocabulary.bin` has; end-of-sentence is in every list."""
    size, eos_id = manifest.architecture.vocabulary_size, manifest.eos_token_id
    tables = []
    for direction, links in shortlists.items():
        rows = [links.get(token_id, ()) for token_id in range(size)]
        offsets = np.concatenate(([0], np.cumsum([*map(len, rows)])))
        targets = np.array([token_id for row in rows for token_id in row], np.int64)
        tables.append(Table(Direction(*direction), offsets, targets, np.array(sorted({eos_id, *frequent}), np.int64)))
    lists = {code: np.array(sorted({eos_id, *ids}), np.int64) for code, ids in languages.items()}
    return vocabulary_bytes(manifest, size, lists, tables)


def facts(languages: Iterable[str], directions: Iterable[tuple[str, str]]) -> VocabularyFacts:
    """What a manifest says of them."""
    shortlists = [
        ShortlistFacts(
            Direction(*direction),
            per_token=100,
            num_sentences=1000,
            share_identical=0.9875,
            bleu_difference=-0.0625,
            mean_length=312.5,
            p95_length=640.0,
            speed_ratio=1.75,
        )
        for direction in directions
    ]
    return VocabularyFacts(tuple(shortlists), tuple(languages))


def with_lists(
    bundle: Bundle,
    languages: Mapping[str, Iterable[int]] | None = None,
    shortlists: Mapping[tuple[str, str], Links] | None = None,
    frequent: Iterable[int] = (),
) -> Bundle:
    """The bundle with lists, which are in no file."""
    languages, shortlists = languages or {}, shortlists or {}
    digests: dict[FileName, str] = dict.fromkeys(TOKENIZER_FILES[bundle.manifest.tokenizer], "0" * 64)
    manifest = replace(bundle.manifest, files=digests, vocabulary=facts(languages, shortlists))
    tables = VocabularyTables.of(contents(manifest, languages, shortlists, frequent), manifest)
    made = replace(bundle, manifest=manifest)
    vars(made)["vocabulary"] = tables
    return made


def add_lists(
    bundle: Bundle,
    languages: Mapping[str, Iterable[int]] | None = None,
    shortlists: Mapping[tuple[str, str], Links] | None = None,
    frequent: Iterable[int] = (),
) -> None:
    """Writes lists into the folder of a bundle, and says so in its manifest."""
    languages, shortlists = languages or {}, shortlists or {}
    written = contents(bundle.manifest, languages, shortlists, frequent)
    (bundle.folder / VOCABULARY_FILE).write_bytes(written)
    manifest = replace(
        bundle.manifest,
        files=bundle.manifest.files | {VOCABULARY_FILE: hashlib.sha256(written).hexdigest()},
        vocabulary=facts(languages, shortlists),
    )
    (bundle.folder / MANIFEST_FILE).write_text(manifest.to_json())
