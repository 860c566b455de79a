"""Words, links between tokens and links between words."""

import unicodedata
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dragoman.attention.alignment import (
    AlignmentMethod,
    Link,
    Span,
    align,
    pharaoh,
    rows,
    word_links,
    words,
)

# Letters, marks, punctuation, white space and what only formats, of writing with spaces and without.
TEXTS = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("aé'’-.,!¿«» \n\u3000\u0301\u0308\u200b\u200d\ufe0f日本語のカー々〇。、ก็ำเ๒😀👩🏽한국"),
    ),
    max_size=30,
)


def strings(text: str) -> list[str]:
    return [text[begin:end] for begin, end in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \t\n\u3000", []),
        ("The cat sat.", ["The", "cat", "sat", "."]),
        ("don't l’homme porte-avions 3.5", ["don't", "l’homme", "porte-avions", "3.5"]),
        ("«Oui», dit-il…", ["«", "Oui", "»", ",", "dit-il", "…"]),
        ("¿Qué?!", ["¿", "Qué", "?", "!"]),
        ("... -- ok", [".", ".", ".", "-", "-", "ok"]),
        ("Мама мыла раму.", ["Мама", "мыла", "раму", "."]),
        ("한국어 문장", ["한국어", "문장"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("日本語の文。", ["日", "本", "語", "の", "文", "。"]),
        ("「はい」と2026年、IBMは", ["「", "は", "い", "」", "と", "2026", "年", "、", "IBM", "は"]),
        ("人々は二〇〇九年", ["人", "々", "は", "二", "〇", "〇", "九", "年"]),
        ("กินข้าว ๒๕", ["กิ", "น", "ข้", "า", "ว", "๒๕"]),
        ("ខ្ញុំ", ["ខ្", "ញុំ"]),
        ("e\u0301te\u0301 か\u3099", ["e\u0301te\u0301", "か\u3099"]),
        ("\u0301 a", ["\u0301", "a"]),
        ("👩🏽‍🚀 ❤️", ["👩🏽‍🚀", "❤️"]),
        ("!\u0301a", ["!\u0301", "a"]),
        ("don\u00adt\u200b", ["don\u00adt\u200b"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert strings(text) == expected


@given(TEXTS)
def test_every_character_that_is_not_white_space_is_in_exactly_one_word(text: str) -> None:
    covered = [i for begin, end in words(text) for i in range(begin, end)]
    assert covered == [i for i, c in enumerate(text) if not c.isspace()]
    assert all(begin < end for begin, end in words(text))


@given(TEXTS)
def test_a_mark_stays_with_its_letter(text: str) -> None:
    for begin, _ in words(text):
        if unicodedata.category(text[begin])[0] == "M":
            assert begin == 0 or text[begin - 1].isspace()


@given(st.text("猫がいる日本カナ漢字กขค\u3099\u0e34"))
def test_without_spaces_every_letter_is_a_word(text: str) -> None:
    for word in strings(text):
        assert all(unicodedata.category(c) == "Mn" for c in word[1:])


@given(st.lists(st.text("abcé한Ж'-", min_size=1).map(lambda word: f"x{word}x"), max_size=8))
def test_with_spaces_they_part_words(expected: list[str]) -> None:
    assert strings(" ".join(expected)) == expected


@given(arrays(np.float32, (2, 5, 3)))
def test_shifted_rows_are_those_of_the_step_after(cross: np.ndarray) -> None:
    np.testing.assert_array_equal(rows(cross, "output_row"), cross)
    shifted = rows(cross, "shifted")
    np.testing.assert_array_equal(shifted[:, :4], cross[:, 1:])
    np.testing.assert_array_equal(shifted[:, 4], cross[:, 4])


def test_tokens_that_are_not_of_the_text_are_left_out_before_the_largest_weight_is_looked_for() -> None:
    cross = np.array([[0.6, 0.1, 0.3, 0.0], [0.0, 0.2, 0.1, 0.7], [0.1, 0.2, 0.3, 0.4]], np.float32)
    links = align(cross, [False, True, True, False], [True, True, False])
    assert [(link.source, link.target) for link in links] == [(1, 0), (0, 1)]
    assert [link.score for link in links] == pytest.approx([0.3, 0.2])


@given(st.data(), st.integers(1, 6), st.integers(1, 6))
def test_every_target_token_has_a_link_with_its_largest_weight(data: st.DataObject, targets: int, sources: int) -> None:
    cross = data.draw(arrays(np.float32, (targets, sources), elements=st.floats(0, 1, width=32)))
    source_is_text = data.draw(st.lists(st.booleans(), min_size=sources, max_size=sources).filter(any))
    target_is_text = data.draw(st.lists(st.booleans(), min_size=targets, max_size=targets))
    columns = np.flatnonzero(source_is_text)
    links = align(cross, source_is_text, target_is_text)
    assert [link.target for link in links] == list(range(sum(target_is_text)))
    for link, row in zip(links, np.flatnonzero(target_is_text), strict=True):
        assert link.score == cross[row, columns[link.source]] == cross[row, columns].max()


def test_a_source_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="source has no token of the text"):
        align(np.ones((1, 2), np.float32), [False, False], [True])


def test_the_best_link_of_a_words_pieces_is_that_of_the_word() -> None:
    source_words, target_words = words("unbelievable cats"), words("incroyables chats")
    source_spans = [(0, 2), (2, 12), (12, 17)]  # un|believable| cats
    target_spans = [(0, 2), (2, 10), (10, 11), (11, 17)]  # in|croyable|s| chats
    links = [Link(0, 0, 0.5), Link(1, 1, 0.9), Link(2, 2, 0.4), Link(2, 3, 0.8)]
    found = word_links(links, source_spans, target_spans, source_words, target_words)
    assert found == [Link(0, 0, 0.9), Link(1, 1, 0.8)]
    assert pharaoh(found) == "0-0 1-1"


def test_in_writing_without_spaces_a_piece_is_several_words() -> None:
    """`日本|の|猫` with ` Japanese| cats`, in both directions."""
    japanese, english = words("日本の猫"), words("Japanese cats")
    japanese_spans, english_spans = [(0, 2), (2, 3), (3, 4)], [(0, 8), (8, 13)]
    found = word_links([Link(0, 0, 0.5), Link(2, 1, 0.5)], japanese_spans, english_spans, japanese, english)
    assert pharaoh(found) == "0-0 1-0 3-1"
    links = [Link(0, 0, 0.5), Link(0, 1, 0.2), Link(1, 2, 0.5)]
    assert pharaoh(word_links(links, english_spans, japanese_spans, english, japanese)) == "0-0 0-1 0-2 1-3"


def test_a_token_of_white_space_or_nothing_goes_with_the_word_after_it() -> None:
    source_words = target_words = [(0, 1), (2, 3)]
    links = [Link(0, 0, 0.3), Link(1, 1, 0.6), Link(2, 2, 0.2)]
    found = word_links(links, [(0, 1), (1, 2), (3, 3)], [(0, 1), (1, 2), (2, 3)], source_words, target_words)
    assert found == [Link(0, 0, 0.3), Link(1, 1, 0.6)]


def test_a_word_without_tokens_has_the_links_of_its_neighbour() -> None:
    target_words = words("a b c d")
    found = word_links([Link(1, 0, 0.5)], [(0, 1), (2, 3)], [(2, 3)], words("x y"), target_words)
    assert found == [Link(1, target, 0.5) for target in range(4)]


def test_without_words_there_are_no_links() -> None:
    assert word_links([Link(0, 0, 1.0)], [(0, 1)], [(0, 1)], [], words("a")) == []
    assert word_links([Link(0, 0, 1.0)], [(0, 1)], [(0, 1)], words("a"), []) == []
    assert word_links([], [], [], words("a"), words("b")) == []


@given(st.data(), TEXTS.filter(str.strip), TEXTS.filter(str.strip))
def test_every_target_word_has_a_link(data: st.DataObject, source: str, target: str) -> None:
    def spans(text: str) -> list[Span]:
        places = st.integers(0, len(text))
        return data.draw(st.lists(st.tuples(places, places).map(lambda s: (min(s), max(s))), min_size=1, max_size=6))

    source_spans, target_spans = spans(source), spans(target)
    sources = st.integers(0, len(source_spans) - 1)
    links = [Link(data.draw(sources), t, data.draw(st.floats(0, 1))) for t in range(len(target_spans))]
    source_words, target_words = words(source), words(target)
    found = word_links(links, source_spans, target_spans, source_words, target_words)
    assert {link.target for link in found} == set(range(len(target_words)))
    assert all(0 <= link.source < len(source_words) for link in found)
    assert found == sorted(found, key=lambda link: (link.target, link.source))
    assert len(set(found)) == len(found)
    assert {link.score for link in found} <= {link.score for link in links}


def test_the_methods_are_those_that_a_manifest_may_name() -> None:
    from dragoman_server.bundle import manifest

    assert get_args(AlignmentMethod) == get_args(manifest.AlignmentMethod)
