"""Lists of any size are what sets say they are, after they were written and read."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.shortlist.links import Links
from dragoman_export.shortlist.tables import make_table, most_frequent
from dragoman_export.shortlist.writing import vocabulary_bytes
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Manifest, Precision
from dragoman_server.bundle.vocabulary import VocabularyTables

EN_FR = Direction("en", "fr")
EOS_ID = 0
Draw = Callable[[st.SearchStrategy[int]], int]


@pytest.fixture(scope="module")
def manifest(tiny_bundles: dict[Precision, Bundle]) -> Manifest:
    return dataclasses.replace(tiny_bundles["fp32"].manifest, eos_token_id=EOS_ID)


def sized(manifest: Manifest, size: int) -> Manifest:
    return dataclasses.replace(manifest, architecture=dataclasses.replace(manifest.architecture, vocabulary_size=size))


@given(st.data())
def test_a_shortlist_is_the_union_of_rows(manifest: Manifest, data: st.DataObject) -> None:
    num_sources, size = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 7, 8, 9, 300, 70_000]))
    targets = st.integers(0, size - 1)
    rows = data.draw(
        st.dictionaries(st.integers(0, num_sources - 1), st.lists(targets, max_size=12, unique=True), max_size=8)
    )
    frequent = {EOS_ID, *data.draw(st.lists(targets, max_size=5))}
    longest = data.draw(st.integers(1, 14))
    # The best of a row has the largest weight.
    links = Links.summed(
        [
            Links(np.full(len(row), source), np.array(row, np.int64), -np.arange(len(row), dtype=np.float64))
            for source, row in rows.items()
        ]
    )
    table = make_table(EN_FR, links, np.array(sorted(frequent)), num_sources, longest)
    model = sized(manifest, size)
    tables = VocabularyTables.of(vocabulary_bytes(model, num_sources, {}, [table]), model)
    source_ids = data.draw(st.lists(st.integers(0, num_sources + 3), max_size=10))
    per_token = data.draw(st.none() | st.integers(1, 14))
    expected = set(frequent)
    for source in source_ids:
        kept = [target for target in rows.get(source, ()) if target not in frequent][:longest]
        expected.update(kept[:per_token])
    found = tables.shortlist(source_ids, EN_FR, per_token)
    assert found is not None
    assert found.tolist() == sorted(expected)


@given(st.data())
def test_the_lists_of_languages_are_their_ids(manifest: Manifest, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    ids = st.sets(st.integers(0, size - 1)).map(lambda found: found | {EOS_ID})
    lists = data.draw(st.dictionaries(st.sampled_from(["fr", "de"]), ids))
    model = sized(manifest, size)
    arrays = {language: np.array(sorted(of), np.int64) for language, of in lists.items()}
    tables = VocabularyTables.of(vocabulary_bytes(model, 5, arrays, []), model)
    assert tables.languages == lists.keys()
    for language, of in lists.items():
        found = tables.language(language)
        assert found is not None
        assert found.tolist() == sorted(of)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 40))
def test_the_most_frequent_tokens_are_no_rarer_than_the_others(counts: list[int], number: int) -> None:
    found = most_frequent(np.array(counts), number, EOS_ID).tolist()
    assert found == sorted(set(found))
    assert EOS_ID in found
    chosen = [counts[token] for token in found if token != EOS_ID]
    others = [counts[token] for token in range(len(counts)) if token not in found]
    assert len(found) <= number + 1
    assert all(chosen)
    assert min(chosen, default=9) >= max(others, default=0) or len(found) < number
    assert not (len(found) < number and any(others))


@given(st.data())
def test_a_file_that_is_damaged_anywhere_is_refused_or_has_lists_of_the_vocabulary(
    manifest: Manifest, data: st.DataObject
) -> None:
    model = sized(manifest, size := 300)
    ids = np.arange(1, 9)
    table = make_table(EN_FR, Links(ids, ids, ids.astype(np.float64)), np.array([EOS_ID, 20]), 12, 5)
    whole = bytearray(vocabulary_bytes(model, 12, {"fr": np.array([EOS_ID, 7, 299])}, [table]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        tables = VocabularyTables.of(bytes(whole), model)
    except ValueError:
        return
    found = [tables.language(code) for code in tables.languages]
    found += [tables.shortlist(range(14), direction) for direction in tables.directions]
    assert found
    for of in found:
        assert of is not None
        assert {EOS_ID} <= {*of.tolist()} <= {*range(size)}
