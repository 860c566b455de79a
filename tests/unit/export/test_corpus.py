import dataclasses
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.corpus import (
    BatchOptions,
    Direction,
    Example,
    TokenRows,
    batch_arrays,
    comparison_key,
    plan_epoch,
    read_held_out,
    read_pairs,
    split_pairs,
)

LINE_SEPARATOR = "\u2028"  # which str.splitlines takes for the end of a line


# -- reading -----------------------------------------------------------------------------------------------------------


def write_zip(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return path


def test_the_first_two_columns_of_a_file_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(f"Hi.\tSalut.\tCC-BY 2.0\r\n\n Go on. \tEn{LINE_SEPARATOR}avant !\n".encode())
    assert list(read_pairs(path)) == [("Hi.", "Salut."), ("Go on.", f"En{LINE_SEPARATOR}avant !")]


def test_the_data_members_of_a_zip_are_read_as_files_are(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "pairs.zip", fra__txt=f"Hi.\tSa{LINE_SEPARATOR}lut.\r\n", _about__txt="no data", b__tsv="A\tB\n"
    )
    assert list(read_pairs(path)) == [("Hi.", f"Sa{LINE_SEPARATOR}lut."), ("A", "B")]


def test_a_line_of_one_column_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("a\tb\nalone\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv, line 2: expected two tab-separated columns"):
        list(read_pairs(tmp_path / "pairs.tsv"))
    with pytest.raises(ValueError, match=r"pairs\.zip:fra\.txt, line 1"):
        list(read_pairs(write_zip(tmp_path / "pairs.zip", fra__txt="alone")))


def test_a_zip_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.txt or \.tsv member"):
        list(read_pairs(write_zip(tmp_path / "pairs.zip", _about__txt="a\tb")))


# -- the test set stays out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    ["how are you", "How are you?", "HOW  ARE\u00a0YOU?!", "“How are you?”", "how – are you …", "Ｈow are you"],
)
def test_sentences_that_differ_in_case_punctuation_and_spacing_are_the_same(variant: str) -> None:
    assert comparison_key(variant) == "how are you"


def test_sentences_of_other_words_or_accents_are_not_the_same() -> None:
    assert len({comparison_key(text) for text in ("Ou ?", "Où ?", "Ou bien ?", "Oubien ?")}) == 4


def test_held_out_lines_are_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "test.en").write_text(f"How are you?\n\n...\nOne{LINE_SEPARATOR}two.\n", encoding="utf-8")
    assert read_held_out([tmp_path / "test.en"]) == {"how are you", "one two"}


def test_pairs_are_left_out_when_either_side_is_held_out() -> None:
    pairs = [("How are YOU", "a"), ("b", "Ça va ?!"), ("c", "c"), ("c", "c"), ("", "d"), ("d", "")]
    text = split_pairs(("en", "fr"), pairs, frozenset({"how are you", "ça va"}), development_share=0.0)
    assert text.training == (("c", "c"),)
    assert text.development == ()
    assert text.num_held_out == 2


def test_all_translations_of_a_sentence_fall_on_one_side_of_the_split() -> None:
    pairs = [(f"{sentence}{mark}", f"{sentence} {mark}") for mark in ".?!" for sentence in map(str, range(500))]
    text = split_pairs(("en", "fr"), pairs, frozenset(), development_share=0.3)
    training, development = ({comparison_key(first) for first, _ in side} for side in (text.training, text.development))
    assert not training & development
    assert len(text.training) + len(text.development) == len(pairs)
    assert 100 < len(development) < 200  # of 500, at a share of 0.3


# -- batches -----------------------------------------------------------------------------------------------------------

TokenLists = list[tuple[int, int]]  # lengths of the two sides of each pair


def make_direction(lengths: TokenLists) -> Direction:
    source = TokenRows.of([100 * row + i for i in range(length)] for row, (length, _) in enumerate(lengths))
    target = TokenRows.of([100 * row + i for i in range(length)] for row, (_, length) in enumerate(lengths))
    return Direction("en", "fr", (4,), source, target)


lengths_of_pairs = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=40)
batch_options = st.builds(
    BatchOptions,
    batch_tokens=st.integers(10, 200),
    join_share=st.sampled_from([0.0, 0.3, 1.0]),
    max_tokens=st.integers(16, 60),
)


@given(st.lists(lengths_of_pairs, min_size=1, max_size=3), batch_options, st.integers(0, 5))
def test_an_epoch_shows_every_pair_once_and_keeps_to_its_budgets(
    corpus: list[TokenLists], options: BatchOptions, epoch: int
) -> None:
    directions = [make_direction(lengths) for lengths in corpus]
    shown = []
    for batch in plan_epoch(directions, options, seed=1, epoch=epoch):
        width = max(max(example.source_length, example.target_length) for example in batch)
        assert len(batch) == 1 or len(batch) * width <= options.batch_tokens
        for example in batch:
            pairs = [corpus[example.direction][row] for row in example.rows]
            assert example.source_length == sum(source for source, _ in pairs) + 2  # language tag, end of sentence
            assert example.target_length == sum(target for _, target in pairs) + 1  # end of sentence
            assert max(example.source_length, example.target_length) <= options.max_tokens
            shown += [(example.direction, row) for row in example.rows]
    fitting = [
        (index, row)
        for index, lengths in enumerate(corpus)
        for row, (source, target) in enumerate(lengths)
        if source + 2 <= options.max_tokens and target + 1 <= options.max_tokens
    ]
    assert sorted(shown) == fitting


CORPUS = [make_direction([(1 + row % 7, 1 + row % 5) for row in range(200)])]


def test_an_epoch_depends_on_the_seed_and_on_its_number_alone() -> None:
    plan = plan_epoch(CORPUS, BatchOptions(), seed=1, epoch=3)
    assert plan == plan_epoch(CORPUS, BatchOptions(), seed=1, epoch=3)
    assert plan != plan_epoch(CORPUS, BatchOptions(), seed=1, epoch=4)
    assert plan != plan_epoch(CORPUS, BatchOptions(), seed=2, epoch=3)


@pytest.mark.parametrize(("weight", "counts"), [(0.0, {0}), (0.5, {0, 1}), (1.0, {1}), (2.5, {2, 3})])
def test_a_weight_says_how_often_pairs_are_shown(weight: float, counts: set[int]) -> None:
    direction = dataclasses.replace(CORPUS[0], weight=weight)
    plan = plan_epoch([direction], BatchOptions(), seed=1, epoch=0)
    shown = Counter(row for batch in plan for example in batch for row in example.rows)
    assert shown.total() == 200 * weight
    assert {shown[row] for row in range(200)} == counts


def test_the_share_to_be_joined_makes_long_examples_of_neighbours() -> None:
    def joined_rows(share: float) -> list[int]:
        plan = plan_epoch(CORPUS, BatchOptions(join_share=share), seed=1, epoch=0)
        return [row for batch in plan for example in batch if len(example.rows) > 1 for row in example.rows]

    assert joined_rows(0.0) == []
    assert 60 <= len(joined_rows(0.3)) < 120  # of 200; the last group may reach beyond the share
    plan = plan_epoch(CORPUS, BatchOptions(join_share=1.0), seed=1, epoch=0)
    assert max(example.source_length for batch in plan for example in batch) > 50


def test_batches_hold_examples_of_similar_length() -> None:
    for batch in plan_epoch(CORPUS, BatchOptions(batch_tokens=100, join_share=0.0), seed=1, epoch=0):
        widths = [max(example.source_length, example.target_length) for example in batch]
        assert max(widths) - min(widths) <= 1


def test_a_batch_is_padded_and_shifted_by_one_between_decoder_input_and_labels() -> None:
    direction = Direction("en", "fr", (4,), TokenRows.of([[10, 11], [12]]), TokenRows.of([[20], [21, 22]]))
    batch = [Example(0, (1,), 3, 3), Example(0, (0, 1), 5, 4)]
    source, target, labels = batch_arrays(batch, [direction], pad_id=0, bos_id=2, eos_id=3)
    assert source.tolist() == [[4, 12, 3, 0, 0], [4, 10, 11, 12, 3]]
    assert target.tolist() == [[2, 21, 22, 0], [2, 20, 21, 22]]
    assert labels.tolist() == [[21, 22, 3, 0], [20, 21, 22, 3]]
    assert {array.dtype for array in (source, target, labels)} == {np.dtype(np.int64)}


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_token_rows_give_back_what_was_put_in(rows: list[list[int]]) -> None:
    packed = TokenRows.of(rows)
    assert [packed[i].tolist() for i in range(len(packed))] == rows
    assert packed.lengths.tolist() == [len(row) for row in rows]
