"""Shortlists of other toolkits: Marian's, as text and binary, and CTranslate2's vmap.txt."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dragoman_export.shortlist.imports import Imported, read_shortlist
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision

NUM_FREQUENT = 4


@pytest.fixture(scope="module")
def bundle(tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    return tiny_bundles["fp32"]


def read(bundle: Bundle, path: Path, contents: bytes | str) -> Imported:
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return read_shortlist(path, bundle.manifest, bundle.tokenizer, NUM_FREQUENT)


def pieces(bundle: Bundle, found: Imported) -> dict[tuple[str, str], float]:
    sources = bundle.tokenizer.source_pieces(found.links.sources.tolist())
    targets = bundle.tokenizer.pieces(found.links.targets.tolist())
    return dict(zip(zip(sources, targets, strict=True), found.links.weights.tolist(), strict=True))


def refused(bundle: Bundle, path: Path, contents: bytes | str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(bundle, path, contents)


# -- Marian, text ------------------------------------------------------------------------------------------------------

LEXICAL = "▁cat ▁dog 0.25\n▁bird ▁dog 0.75\n▁cat ▁tree 1e-3\n▁cat NULL 0.5\nNULL ▁cat 0.5\n▁other-piece ▁dog 0.1\n"
OF_LEXICAL = {("▁dog", "▁cat"): 0.25, ("▁dog", "▁bird"): 0.75, ("▁tree", "▁cat"): 1e-3}


@pytest.mark.parametrize("compress", [str.encode, lambda text: gzip.compress(text.encode())])
def test_marians_text_has_target_source_and_probability(bundle: Bundle, tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    found = read(bundle, tmp_path / "lex", compress(LEXICAL))
    assert pieces(bundle, found) == OF_LEXICAL
    assert found.frequent.tolist() == [0, 1, 2, 3]


def test_of_a_pair_that_is_there_twice_the_last_counts(bundle: Bundle, tmp_path: Path) -> None:
    found = read(bundle, tmp_path / "lex", "▁cat ▁dog 0.25\n▁cat ▁dog 0.5\n")
    assert pieces(bundle, found) == {("▁dog", "▁cat"): 0.5}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("▁cat ▁dog 0.25\n▁cat ▁dog\n", "lex: line 2 is '▁cat ▁dog', not a target piece"),
        ("▁cat ▁dog nan\n", "line 1 is"),
        ("▁cat ▁dog -1\n", "line 1 is"),
        ("", "line 1 is ''"),
        ("ab cd 0.25\n▁cat ▁dog 0.25\nef gh 0.5", "it has 3 pairs of tokens, and the model has those of 1"),
        ("▁cat NULL 0.5\n", "it has 0 pairs"),
    ],
)
def test_text_that_is_no_lexical_shortlist_of_the_model_is_refused(
    bundle: Bundle, tmp_path: Path, text: str, fault: str
) -> None:
    refused(bundle, tmp_path / "lex", text, fault)


def test_files_that_are_neither_text_nor_binary_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    refused(bundle, tmp_path / "lex", b"\xff\xfe\x00", "it is neither text nor a binary shortlist of Marian's")
    refused(bundle, tmp_path / "lex", gzip.compress(LEXICAL.encode())[:-9], "is damaged")
    refused(bundle, tmp_path / "lex", b"\x1f\x8b\x00\x00\x00", "is damaged")


# -- Marian, binary ----------------------------------------------------------------------------------------------------


def checksum(words: Sequence[int]) -> int:
    """boost's hash_combine over 64-bit words, as in marian-dev's src/common/hash.h."""
    seed = 0
    for word in words:
        seed = (seed ^ (word + 0x9E3779B9 + (seed << 6) + (seed >> 2))) % (1 << 64)
    return seed


def binary(rows: Sequence[Sequence[int]], first_num: int = 3, offsets: Sequence[int] | None = None) -> bytes:
    ids = [token_id for row in rows for token_id in row]
    if offsets is None:
        offsets = [0, *np.cumsum([len(row) for row in rows]).tolist()]
    checked = struct.pack("<4Q", first_num, 100, len(offsets), len(ids))
    checked += struct.pack(f"<{len(offsets)}Q{len(ids)}I", *offsets, *ids)
    words = struct.unpack(f"<{len(checked) // 8}Q", checked[: len(checked) // 8 * 8])
    return struct.pack("<2Q", 0xF11A48D5013417F5, checksum(words)) + checked


def test_marians_binary_has_ids_and_what_is_in_every_list(bundle: Bundle, tmp_path: Path) -> None:
    found = read(bundle, tmp_path / "lex.bin", binary([[], [5, 9], [7], [5, 6, 7]]))
    assert found.links.sources.tolist() == [1, 1, 2, 3, 3, 3]
    assert found.links.targets.tolist() == [5, 9, 7, 5, 6, 7]
    assert found.frequent.tolist() == [0, 1, 2]


def test_a_binary_shortlist_that_is_damaged_or_of_another_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path, whole = tmp_path / "lex.bin", binary([[5], [9]])
    for size in (9, 47, 48, len(whole) - 1):
        refused(bundle, path, whole[:size], "cut off in its header|bytes long; by its header it has")
    changed = bytearray(whole)
    changed[20] ^= 1
    refused(bundle, path, bytes(changed), "it is damaged: its checksum is another")
    refused(bundle, path, binary([[316]]), "it has the target id 316; the model has 316 tokens")
    refused(bundle, path, binary([[5]] * 317), "it has rows of 317 source tokens; the model has 316")
    for offsets in ([0, 2, 1], [1, 2], [0, 1], [0]):
        refused(bundle, path, binary([[5, 9]], offsets=offsets), "its rows are not one behind the other")


# -- CTranslate2 -------------------------------------------------------------------------------------------------------


def test_a_vmap_has_rows_of_source_tokens_the_best_first(bundle: Bundle, tmp_path: Path) -> None:
    text = "\t▁the ▁a\n▁dog\t▁cat ▁bird\n▁tree\t▁tree\n▁old ▁dog\t▁house\n"
    found = read(bundle, tmp_path / "vmap.txt", text)
    rows = pieces(bundle, found)
    # The row of two tokens is that of the one with the shorter row.
    assert rows.keys() == {("▁dog", "▁cat"), ("▁dog", "▁bird"), ("▁tree", "▁tree"), ("▁old", "▁house")}
    assert rows["▁dog", "▁cat"] > rows["▁dog", "▁bird"]
    assert bundle.tokenizer.pieces(found.frequent.tolist()) == ["▁the", "▁a"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("▁dog\t▁cat\t▁bird\n", "line 1 is .*, not source pieces, a tab and target pieces"),
        ("xx\tyy zz\n", "it has 2 pairs of tokens, and the model has those of 0: it is of another vocabulary"),
    ],
)
def test_a_vmap_that_is_none_of_the_model_is_refused(bundle: Bundle, tmp_path: Path, text: str, fault: str) -> None:
    refused(bundle, tmp_path / "vmap.txt", text, fault)
