"""`vocabulary.bin`: what it says, and every fault for which it is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman_export.shortlist.links import Links
from dragoman_export.shortlist.tables import MAX_LINKS, Table, make_table
from dragoman_export.shortlist.writing import vocabulary_bytes
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import (
    MANIFEST_FILE,
    VOCABULARY_FILE,
    Manifest,
    Precision,
    ShortlistFacts,
    VocabularyFacts,
)
from dragoman_server.bundle.vocabulary import MAGIC, VocabularyTables
from dragoman_server.errors import BundleError
from support.bundles import edit_manifest, put, replace_file

NUM_SOURCES = 30
EN_FR, EN_DE = Direction("en", "fr"), Direction("en", "de")
# Rows of source tokens; the others have none.
ROWS = {3: (50, 40, 60), 7: (60, 11), 29: (12,)}


@pytest.fixture(scope="module")
def manifest(tiny_bundles: dict[Precision, Bundle]) -> Manifest:
    return tiny_bundles["fp32"].manifest


def table(
    manifest: Manifest,
    rows: Mapping[int, Sequence[int]] | None = None,
    frequent: Sequence[int] | None = None,
    direction: Direction = EN_FR,
) -> Table:
    rows = ROWS if rows is None else rows
    lengths = [len(rows.get(source, ())) for source in range(NUM_SOURCES)]
    links = [target for source in sorted(rows) for target in rows[source]]
    frequent = [manifest.eos_token_id, 10, 11] if frequent is None else frequent
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Table(direction, offsets, np.array(links, np.int64), np.array(frequent, np.int64))


def contents(
    manifest: Manifest, tables: Sequence[Table] | None = None, lists: Mapping[str, Sequence[int]] | None = None
) -> bytes:
    lists = {"fr": [manifest.eos_token_id, 20, 33]} if lists is None else lists
    arrays = {language: np.array(ids, np.int64) for language, ids in lists.items()}
    return vocabulary_bytes(manifest, NUM_SOURCES, arrays, [table(manifest)] if tables is None else tables)


def opened(manifest: Manifest, **parts: Any) -> VocabularyTables:
    return VocabularyTables.of(contents(manifest, **parts), manifest)


def with_facts(manifest: Manifest, directions: Sequence[Direction], languages: Sequence[str]) -> Manifest:
    facts = tuple(ShortlistFacts(direction, 100, 9, 0.5, None, 8.0, 9.0, 1.5) for direction in directions)
    return dataclasses.replace(manifest, vocabulary=VocabularyFacts(facts, tuple(languages)))


# -- what it says ------------------------------------------------------------------------------------------------------


def test_a_shortlist_has_the_rows_of_its_tokens_and_the_most_frequent(manifest: Manifest) -> None:
    tables, eos_id = opened(manifest), manifest.eos_token_id
    found = tables.shortlist([7, 5, 3, 7], EN_FR)
    assert found is not None
    assert found.dtype == np.int32
    assert found.tolist() == sorted({eos_id, 10, 11, 40, 50, 60})


def test_rows_are_cut_behind_the_best_tokens(manifest: Manifest) -> None:
    tables, eos_id = opened(manifest), manifest.eos_token_id
    found = tables.shortlist([3, 7], EN_FR, per_token=1)
    assert found is not None
    assert found.tolist() == sorted({eos_id, 10, 11, 50, 60})


@pytest.mark.parametrize("source_ids", [[], [0, 1, 2], [NUM_SOURCES, 10_000]])
def test_tokens_without_a_row_bring_none(manifest: Manifest, source_ids: list[int]) -> None:
    found = opened(manifest).shortlist(source_ids, EN_FR)
    assert found is not None
    assert found.tolist() == sorted({manifest.eos_token_id, 10, 11})


def test_each_direction_has_a_table_of_its_own_or_none(manifest: Manifest) -> None:
    other = table(manifest, {3: (77,)}, direction=EN_DE)
    tables = opened(manifest, tables=[table(manifest), other])
    assert tables.directions == {EN_FR, EN_DE}
    found = tables.shortlist([3], EN_DE)
    assert found is not None
    assert 77 in found
    assert 50 not in found
    assert opened(manifest).shortlist([3], EN_DE) is None


def test_the_list_of_a_language_is_the_same_array_each_time(manifest: Manifest) -> None:
    ids = [manifest.eos_token_id, 20, manifest.architecture.vocabulary_size - 1]
    tables = opened(manifest, tables=[], lists={"fr": ids, "de": [*reversed(ids)]})
    found = tables.language("fr")
    assert found is not None
    assert found.dtype == np.int32
    assert found.tolist() == sorted(ids)
    assert tables.language("fr") is found
    assert tables.language("de") is found  # they share it
    assert not found.flags.writeable
    assert tables.languages == {"fr", "de"}
    assert tables.language("es") is None


def test_large_vocabularies_have_ids_of_four_bytes(manifest: Manifest) -> None:
    architecture = dataclasses.replace(manifest.architecture, vocabulary_size=70_000)
    large = dataclasses.replace(manifest, architecture=architecture)
    rows = {3: (69_999, 5)}
    found = opened(large, tables=[table(large, rows)], lists={"fr": [large.eos_token_id, 69_999]})
    shortlist, language = found.shortlist([3], EN_FR, 1), found.language("fr")
    assert shortlist is not None
    assert language is not None
    assert 69_999 in shortlist
    assert 5 not in shortlist
    assert 69_999 in language
    assert len(contents(large)) - len(contents(manifest)) >= 2 * 9  # of three frequent ids and six links


def test_at_opus_mts_size_as_many_links_as_there_may_be_take_under_5_megabytes(manifest: Manifest) -> None:
    size, per_token = 58_101, 37
    assert size * per_token > MAX_LINKS
    architecture = dataclasses.replace(manifest.architecture, vocabulary_size=size)
    large = dataclasses.replace(manifest, architecture=architecture)
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(size), per_token)
    links = Links(sources, rng.integers(size, size=len(sources)), rng.random(len(sources)))
    made = make_table(EN_FR, links, np.arange(100), size, per_token)
    everything = vocabulary_bytes(large, size, {"fr": np.arange(size), "de": np.arange(9)}, [made])
    assert 4_000_000 < len(everything) < 5_000_000
    VocabularyTables.of(everything, dataclasses.replace(large, eos_token_id=0))


# -- faults ------------------------------------------------------------------------------------------------------------


def refused(contents: bytes, manifest: Manifest, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        VocabularyTables.of(contents, manifest)


@pytest.mark.parametrize("begin", [b"", b"\x00" * 8, MAGIC[:-1] + b"\x09"])
def test_another_beginning_is_refused(manifest: Manifest, begin: bytes) -> None:
    refused(begin + contents(manifest)[8:], manifest, "does not begin as")


def test_whatever_is_cut_off_is_refused(manifest: Manifest) -> None:
    whole = contents(manifest)
    for size in range(len(whole)):
        refused(whole[:size], manifest, "it does not begin|it is cut off|its head is damaged|bytes long; by its head")
    refused(whole + b"\0", manifest, f"it is {len(whole) + 1} bytes long; by its head it has {len(whole)}")


HeadEdit = Callable[[dict[str, Any]], object]


def with_head(whole: bytes, edit: HeadEdit) -> bytes:
    """The same with another head of the same length, so that all behind it stays in place."""
    length = int.from_bytes(whole[8:12], "little")
    values = json.loads(whole[12 : 12 + length])
    edit(values)
    head = json.dumps(values, separators=(",", ":")).encode()
    return whole[:12] + head.ljust(length) + whole[12 + length :]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (put("tokenizer", "0" * 64), "it is of another model: its digest is not that of this bundle's tokenizer"),
        (put("tokenizer", "0"), "its head is damaged"),
        (put("num_source_ids", 0), "its head is damaged"),
        (put("num_source_ids", 50), "by its head it has"),
        (put("num_lists", -1), "its head is damaged"),
        (put("num_target_ids", "400"), "its head is damaged"),
        (put("other", 1), "its head is damaged"),
        (put("languages", {}), "it has 1 lists, each of which must be that of a language"),
        (put("languages", {"fr": 1}), "it has 1 lists, each of which must be that of a language"),
        (put("languages", {"xx": 0}), "it has a list of xx, to which the model does not translate"),
        (put("tables", 0, "target", "es"), "it has a table of en-es, which the model does not translate"),
        (put("tables", 0, "num_links", 5), "by its head it has"),
        (put("tables", 0, "num_links", 1 << 28), "its head is damaged"),
    ],
)
def test_a_head_that_is_wrong_is_refused(manifest: Manifest, edit: HeadEdit, fault: str) -> None:
    refused(with_head(contents(manifest), edit), manifest, fault)


def test_a_head_that_is_no_json_or_has_a_key_twice_is_refused(manifest: Manifest) -> None:
    whole = contents(manifest)
    refused(whole.replace(b'{"tokenizer"', b'["tokenizer"'), manifest, "its head is damaged")
    refused(whole.replace(b'"num_lists"', b'"languages"'), manifest, "its head is damaged: .*twice")


def test_a_table_of_another_model_is_refused(manifest: Manifest) -> None:
    other = dataclasses.replace(manifest, files={**manifest.files, "tokenizer.model": "0" * 64})
    refused(contents(manifest), other, "it is of another model")
    larger = dataclasses.replace(manifest.architecture, vocabulary_size=8_000)
    refused(
        contents(manifest),
        dataclasses.replace(manifest, architecture=larger),
        "of a vocabulary of 316 tokens; the model has 8000",
    )


def test_two_tables_of_one_direction_are_refused(manifest: Manifest) -> None:
    refused(contents(manifest, [table(manifest)] * 2), manifest, "two tables of one direction")


def test_ids_beyond_the_vocabulary_are_refused(manifest: Manifest) -> None:
    size, eos_id = manifest.architecture.vocabulary_size, manifest.eos_token_id
    fault = f"the table of en-fr has the id {size}; the vocabulary has {size} tokens"
    refused(contents(manifest, [table(manifest, {3: (size,)})]), manifest, fault)
    refused(contents(manifest, [table(manifest, frequent=[eos_id, size])]), manifest, fault)


def test_a_bit_beyond_the_vocabulary_is_refused(manifest: Manifest) -> None:
    architecture = dataclasses.replace(manifest.architecture, vocabulary_size=397)
    smaller = dataclasses.replace(manifest, architecture=architecture)
    whole = bytearray(contents(smaller, [], {"fr": [smaller.eos_token_id]}))
    whole[-1] |= 1 << 6
    refused(bytes(whole), smaller, "the list of fr has ids beyond the vocabulary of 397 tokens")


def test_empty_lists_are_refused(manifest: Manifest) -> None:
    refused(contents(manifest, [], {"fr": []}), manifest, "the list of fr is empty")
    refused(
        contents(manifest, [table(manifest, frequent=[])]),
        manifest,
        "the list of the most frequent tokens of en-fr is empty",
    )


def test_lists_without_end_of_sentence_are_refused(manifest: Manifest) -> None:
    refused(contents(manifest, [], {"fr": [20]}), manifest, "the list of fr has no end-of-sentence")
    refused(
        contents(manifest, [table(manifest, frequent=[20])]), manifest, "most frequent tokens of en-fr have no end-of"
    )


@pytest.mark.parametrize(("source", "end"), [(0, 1), (4, 9), (5, 0), (NUM_SOURCES, 5)])
def test_rows_that_are_not_one_behind_the_other_are_refused(manifest: Manifest, source: int, end: int) -> None:
    made = table(manifest)
    made.offsets[source] = end
    refused(contents(manifest, [made]), manifest, "the rows of en-fr are not one behind the other")


def test_a_file_that_does_not_agree_with_the_manifest_is_refused(manifest: Manifest) -> None:
    whole = contents(manifest)
    VocabularyTables.of(whole, with_facts(manifest, [EN_FR], ["fr"]))
    for others in (with_facts(manifest, [EN_DE], ["fr"]), with_facts(manifest, [EN_FR], ["de"])):
        refused(whole, others, "it has other directions or languages than vocabulary in manifest.json")


# -- in a bundle -------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tiny_bundles: dict[Precision, Bundle], manifest: Manifest, tmp_path: Path) -> Path:
    """A bundle with a vocabulary.bin."""
    folder = shutil.copytree(tiny_bundles["fp32"].folder, tmp_path / "bundle")
    facts = dataclasses.asdict(with_facts(manifest, [EN_FR], ["fr"]))["vocabulary"]
    edit_manifest(folder, put("vocabulary", facts))
    replace_file(folder, VOCABULARY_FILE, contents(manifest))
    return folder


def test_a_bundle_has_its_lists(listed: Path, tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = Bundle.open(listed)
    assert bundle.vocabulary is not None
    assert bundle.vocabulary.directions == {EN_FR}
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
    assert tiny_bundles["fp32"].vocabulary is None


def refused_bundle(folder: Path, fault: str) -> None:
    with pytest.raises(BundleError, match=fault):
        Bundle.open(folder)


def test_a_damaged_file_is_refused_with_its_bundle(listed: Path) -> None:
    path = listed / VOCABULARY_FILE
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    refused_bundle(listed, f"{VOCABULARY_FILE}: it is damaged: its sha256 is not the one in manifest.json")
    replace_file(listed, VOCABULARY_FILE, bytes(damaged[:-1]))
    refused_bundle(listed, f"{VOCABULARY_FILE}: it is .* bytes long; by its head")
    path.unlink()
    refused_bundle(listed, f"{VOCABULARY_FILE}: it is missing or not a plain file")


def test_a_link_in_its_place_is_refused(listed: Path, tmp_path: Path) -> None:
    path = listed / VOCABULARY_FILE
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refused_bundle(listed, "it is missing or not a plain file")


def test_a_file_that_is_too_large_is_refused_unread(listed: Path) -> None:
    with (listed / VOCABULARY_FILE).open("r+b") as file:
        file.truncate(1 << 30)
    refused_bundle(listed, "it is 1073741824 bytes long; at most")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (put("vocabulary", None), "files is .*, must have no vocabulary.bin where vocabulary is null"),
        (put("vocabulary", "shortlists", 0, "direction", ["en", "es"]), "must be one of languages.directions"),
        (put("vocabulary", "shortlists", 0, "share_identical", 1.5), "vocabulary.shortlists.0..share_identical"),
        (put("vocabulary", "languages", ["en"]), "must be a target of languages.directions"),
        (put("vocabulary", "languages", ["fr", "fr"]), "must name each language once"),
        (put("vocabulary", "languages", ["de"]), "other directions or languages"),
        (put("vocabulary", "other", 1), "vocabulary has the unknown field 'other'"),
    ],
)
def test_facts_that_are_wrong_are_refused(listed: Path, edit: HeadEdit, fault: str) -> None:
    edit_manifest(listed, edit)
    refused_bundle(listed, fault)


def test_facts_without_a_file_are_refused(listed: Path) -> None:
    edit_manifest(listed, lambda values: values["files"].pop(VOCABULARY_FILE))
    refused_bundle(listed, f"{MANIFEST_FILE}: vocabulary is .*, must be null where files have no {VOCABULARY_FILE}")


def test_a_direction_is_named_once(listed: Path) -> None:
    edit_manifest(
        listed, lambda values: values["vocabulary"]["shortlists"].append(values["vocabulary"]["shortlists"][0])
    )
    refused_bundle(listed, "vocabulary.shortlists is .*, must name each direction once")
