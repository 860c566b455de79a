"""ByT5's kind of tokenizer, against `transformers` where it has the same."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis
from dragoman_server.service.results import GrowingText
from dragoman_server.text.byte_ids import ByteTokenizer
from dragoman_server.text.segmentation import Segmentation, segment

PAD_ID, EOS_ID, UNK_ID, FIRST_SENTINEL = 0, 1, 2, 259
CODEC = ByteTokenizer()


@pytest.fixture(scope="module")
def transformers() -> ByT5Tokenizer:
    return ByT5Tokenizer()


@given(text=st.text())
def test_every_text_is_its_bytes(text: str) -> None:
    ids = CODEC.encode(text)
    assert ids == CODEC.encode_target(text) == [3 + byte for byte in text.encode()]
    assert CODEC.decode(ids) == text
    assert [text[begin:end] for begin, end in CODEC.spans(text)] == [c for c in text for _ in c.encode()]
    assert CODEC.target_text_spans(text) == CODEC.target_spans(ids) == CODEC.spans(text)


@pytest.mark.parametrize("text", ["The old cat.", "é 猫 🙂\n\t", "naïve\u0301  ", "\x00\x7f\xa0", ""])
def test_ids_are_those_of_transformers(transformers: ByT5Tokenizer, text: str) -> None:
    assert [*CODEC.encode(text), EOS_ID] == transformers(text).input_ids


def test_texts_are_those_of_transformers(transformers: ByT5Tokenizer) -> None:
    """Of any ids: bytes that are no UTF-8 are dropped, and specials and sentinels."""
    rng = random.Random(0)
    for _ in range(500):
        ids = rng.choices([*range(FIRST_SENTINEL + 125), *range(3 + 0x80, FIRST_SENTINEL)], k=rng.randint(0, 12))
        assert CODEC.decode(ids) == transformers.decode(ids, skip_special_tokens=True)


def test_a_special_in_a_text_is_text_here_and_not_there(transformers: ByT5Tokenizer) -> None:
    for special in ("</s>", "<pad>", "<unk>", "<extra_id_0>"):
        ids = CODEC.encode(special)
        assert not any(map(CODEC.is_control, ids))
        assert CODEC.decode(ids) == special
        assert transformers(special, add_special_tokens=False).input_ids != ids


def test_the_specials_and_the_sentinels_are_control_symbols(transformers: ByT5Tokenizer) -> None:
    assert (transformers.pad_token_id, transformers.eos_token_id, transformers.unk_token_id) == (PAD_ID, EOS_ID, UNK_ID)
    vocabulary = CODEC.vocabulary
    assert (vocabulary.padding_id, vocabulary.end_of_sentence_id, CODEC.unknown_id) == (PAD_ID, EOS_ID, UNK_ID)
    assert vocabulary.size == FIRST_SENTINEL == transformers.convert_tokens_to_ids("<extra_id_0>")
    assert [i for i in range(384) if CODEC.is_control(i)] == [0, 1, 2, *range(FIRST_SENTINEL, 384)]
    assert [i for i in range(384) if CODEC.is_unspelt(i)] == [UNK_ID]


def test_pieces_are_readable_and_differ() -> None:
    assert CODEC.pieces([PAD_ID, *CODEC.encode("a é~"), EOS_ID, 300]) == [
        *("<pad>", "a", "\u2581", "<0xC3>", "<0xA9>", "~", "</s>", "<unk>")
    ]
    assert len(set(CODEC.pieces(range(FIRST_SENTINEL)))) == FIRST_SENTINEL


def test_bytes_that_are_dropped_stand_for_nothing() -> None:
    euro = CODEC.encode("€")
    ids = [euro[1], *CODEC.encode("a"), euro[0], euro[1], EOS_ID, *CODEC.encode("é"), 300, euro[0]]
    assert CODEC.decode(ids) == "aé"
    assert CODEC.target_spans(ids) == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (2, 2), (2, 2)]


@given(ids=st.lists(st.integers(0, 383), max_size=20))
def test_more_ids_never_change_what_came_before(ids: list[int]) -> None:
    text = CODEC.decode(ids)
    assert all(text.startswith(CODEC.decode(ids[:length])) for length in range(len(ids)))


@given(text=st.text(max_size=12))
def test_a_stream_never_has_half_of_a_character(text: str) -> None:
    ids = CODEC.encode(text)
    growing = GrowingText(["", ""], CODEC.decode)
    given_texts = [growing.grow([ids[:length]], [None]) for length in range(len(ids) + 1)]
    hypothesis = Hypothesis((*ids, EOS_ID), (-0.5,) * (len(ids) + 1), FinishReason.STOP)
    given_texts.append(growing.grow([ids], [Completion((hypothesis,), 0.0, 0.0, 0.0)]))
    assert "".join(given_texts) == text


def test_segments_are_as_long_as_their_bytes() -> None:
    text = "Кошка спит. Собака не спит. Птица поёт."
    first_two = "Кошка спит. Собака не спит."
    for num_tokens, expected in (
        (len(first_two.encode()), [first_two, "Птица поёт."]),
        (len(first_two.encode()) - 1, ["Кошка спит.", "Собака не спит.", "Птица поёт."]),
    ):
        found = segment(text, CODEC.encode, Segmentation.PACKED, num_tokens, ("ru", "en"))
        assert found.source_texts() == expected
        assert [len(s.token_ids) for s in found.segments] == [len(part.encode()) for part in expected]
