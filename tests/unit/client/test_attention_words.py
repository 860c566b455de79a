from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dragoman import Client
from dragoman.attention.types import AttentionToken
from dragoman.attention.words import joined, words_of
from dragoman.types import TextSpan
from support.fake_server import FakeServer


def token(piece: str, begin: int, end: int, text: str = "", *, is_special: bool = False) -> AttentionToken:
    return AttentionToken(7, piece, text or piece, TextSpan(begin, end), is_special)


def special(piece: str, at: int = 0) -> AttentionToken:
    return token(piece, at, at, is_special=True)


TEXT = "I didn't  eat 😀, no."
TOKENS = [
    special("<2fr>"),
    token("▁I", 0, 1),
    token("▁did", 2, 5),
    token("n", 5, 6),
    token("'t", 6, 8),
    token("▁", 9, 10),  # white space goes with what follows
    token("eat", 10, 13),
    token("▁", 13, 14),
    token("<0xF0>", 14, 15),
    token("<0x9F>", 14, 15),
    token(",", 15, 16),
    token("▁no", 17, 19),
    token(".", 19, 20),
    special("</s>", 20),
]


def test_pieces_are_joined_to_the_words_they_stand_for() -> None:
    words = words_of(TEXT, TOKENS)

    assert [word.text for word in words] == ["<2fr>", "I", "didn't", "eat", "😀", ",", "no", ".", "</s>"]
    assert [len(word.tokens) for word in words] == [1, 1, 3, 2, 3, 1, 1, 1, 1]
    assert [word.text for word in words if word.is_special] == ["<2fr>", "</s>"]
    assert [each for word in words for each in word.tokens] == TOKENS


def test_words_that_share_a_piece_are_one() -> None:
    words = words_of("日本語が", [token("日本", 0, 2), token("語が", 2, 4)])
    assert [word.text for word in words] == ["日本", "語が"]
    assert [word.text for word in words_of("(a). b", [token("(a", 0, 2), token(").", 2, 4), token("b", 5, 6)])] == [
        "(a",
        ").",
        "b",
    ]
    assert [word.text for word in words_of("don't", [token("don't", 0, 5), token("'t", 3, 5)])] == ["don't"]


def test_a_text_without_words_keeps_its_tokens() -> None:
    [word] = words_of("  ", [token("▁", 0, 2)])
    assert (word.text, len(word.tokens)) == ("▁", 1)


def test_weights_are_summed_over_what_is_attended_to_and_averaged_over_what_attends() -> None:
    rows = words_of("ab c", [token("a", 0, 1), token("b", 1, 2), token("c", 3, 4)])
    columns = words_of("x yz", [token("x", 0, 1), token("y", 2, 3), token("z", 3, 4)])
    matrix = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [0.0, 1.0, 0.0]], np.float32)

    np.testing.assert_allclose(joined(matrix, rows, columns), [[0.4, 0.6], [0.0, 1.0]], atol=1e-6)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_rows_sum_to_what_they_did(row_lengths: list[int], column_lengths: list[int]) -> None:
    def words(lengths: list[int]) -> tuple[str, list[AttentionToken]]:
        text = " ".join("x" * length for length in lengths)
        return text, [token("x", i, i + 1) for i, character in enumerate(text) if character == "x"]

    rows, columns = words_of(*words(row_lengths)), words_of(*words(column_lengths))
    matrix = np.random.default_rng(1).random((2, 3, sum(row_lengths), sum(column_lengths))).astype(np.float32)
    matrix /= matrix.sum(axis=-1, keepdims=True)

    weights = joined(matrix, rows, columns)

    assert weights.shape == (2, 3, len(row_lengths), len(column_lengths))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_a_heat_map_has_words_unless_pieces_are_asked_for(server: FakeServer) -> None:
    with Client(server.address) as client:
        attention = client.attention("good cat", "chat x", source="en", target="fr")
    # The same with "good" in two pieces, in the place of two words.
    first, second = attention.source_tokens[1:3]
    pieces = (replace(first, text="go", span=TextSpan(0, 2)), replace(second, text="od", span=TextSpan(2, 4)))
    attention = replace(attention, source_tokens=(attention.source_tokens[0], *pieces, attention.source_tokens[3]))

    def header(text: str) -> list[str]:
        """The labels of the columns, which are read downwards."""
        lines = text.splitlines()[:-3]
        width = max(map(len, lines))
        columns = zip(*(line.ljust(width) for line in lines), strict=True)
        return [label for column in columns if (label := "".join(column).strip())]

    assert header(attention.to_text(colour=False)) == ["<2xx>", "good", "</s>"]
    assert header(attention.to_text(words=False, colour=False)) == ["<2xx>", "go", "od", "</s>"]
