import zipfile
from pathlib import Path

import pytest

from dragoman_export.text_files import CorpusFile
from dragoman_export.train.corpus import (
    TextPair,
    comparison_key,
    read_held_out,
    read_pairs,
    split_pairs,
)

LINE_SEPARATOR = "\u2028"  # which str.splitlines takes for the end of a line


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path, first: str = "en", second: str = "fr") -> list[TextPair]:
    return list(read_pairs(CorpusFile((first, second), path)))


def write_zip(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return path


def test_the_first_two_columns_of_a_file_are_read_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(f"Hi.\tSalut.\tCC-BY 2.0\r\n\n Go on. \tEn{LINE_SEPARATOR}avant !\n".encode())
    assert read(path) == [("Hi.", "Salut."), ("Go on.", f"En{LINE_SEPARATOR}avant !")]


def test_the_data_members_of_a_zip_are_read_as_files_are(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "pairs.zip", fra__txt=f"Hi.\tSa{LINE_SEPARATOR}lut.\r\n", _about__txt="no data", b__tsv="A\tB\n"
    )
    assert read(path) == [("Hi.", f"Sa{LINE_SEPARATOR}lut."), ("A", "B")]


def test_a_line_of_one_column_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("a\tb\nalone\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv, line 2: expected 2 tab-separated columns or more, found 1"):
        read(tmp_path / "pairs.tsv")
    with pytest.raises(ValueError, match=r"pairs\.zip:fra\.txt, line 1"):
        read(write_zip(tmp_path / "pairs.zip", fra__txt="alone"))


def test_a_zip_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.txt or \.tsv member"):
        read(write_zip(tmp_path / "pairs.zip", _about__txt="a\tb"))


def test_the_columns_of_a_file_of_several_languages_are_found_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text("en\tfr\tde\tes\nYes.\tOui.\tJa.\tSí.\n", encoding="utf-8")
    assert read(path, "en", "de") == [("Yes.", "Ja.")]
    assert read(path, "es", "fr") == [("Sí.", "Oui.")]
    # Languages that are no columns: the first line is a pair like all others.
    assert read(path, "en", "it") == [("en", "fr"), ("Yes.", "Oui.")]


def test_a_line_without_the_column_of_a_language_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text("en\tfr\tde\nYes.\tOui.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"phrases\.tsv, line 2: expected 3 tab-separated columns or more, found 2"):
        read(path, "en", "de")


def test_a_file_that_is_not_what_its_name_says_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes(b"a\tb\nna\xefve\tc\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv, line 2: not UTF-8"):
        read(tmp_path / "pairs.tsv")
    (tmp_path / "pairs.zip").write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"pairs\.zip is not a zip archive"):
        read(tmp_path / "pairs.zip")


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


def test_sentences_that_are_meant_for_training_are_never_set_aside() -> None:
    pairs = [(f"{number}!", "x") for number in range(200)]
    text = split_pairs(("en", "fr"), pairs, frozenset(), 0.5, for_training={str(number) for number in range(100)})
    assert text.development
    assert {first for first, _ in text.training} >= {f"{number}!" for number in range(100)}
