"""Ids and texts are those of the classes of `transformers` that these tokenizers stand for."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import BartTokenizer, M2M100Tokenizer, MBart50Tokenizer, NllbTokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from dragoman_server.text.tokenizer_files import TokenizerKind
from support.piece_tokenizers import (
    BEHIND,
    EOS_ID,
    PAD_ID,
    SENTENCES,
    train_pieces,
    write_byte_bpe,
    write_pieces,
    write_vocabulary,
)

TEXTS = [
    *SENTENCES,
    "",
    "  the   old\tdog",
    "line\nbreak \r\n and\ttab",
    "Кошка, 日本語 and नमस्ते مرحبا",
    "🙂 👩\u200d👩\u200d👧 flag 🇫🇷 👍🏽",
    "e\u0301 cafe\u0301 \u0301",
    "ｆｕｌｌ　ｗｉｄｔｈ ｶﾞ",
    "ﬁne ①½ ™ ﷺ",
    "x" * 3000,
    "sleeping" * 300,
    "unknown: \u1234\u1235 ꙮ 日 本",
    "a\u00a0b\u202fc\u2028d",
    "\ufeffbom a\u200bb soft\u00adhyphen",
    "NUL \x00 inside, bell \x07 rings",
    "naïve▁dog",
    "don't we're I'LL 1234567 3.14 ... !?",
    "x < 3 > 2 </ s> <2fr> [MASK] __ fr",
]


class Pair(NamedTuple):
    """The same tokenizer twice."""

    codec: TextCodec
    transformers: Any

    def expected(self, text: str) -> list[int]:
        ids: list[int] = self.transformers(text, add_special_tokens=False).input_ids
        return ids

    def expected_text(self, ids: list[int]) -> str:
        text: str = self.transformers.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def m2m(folder: Path) -> M2M100Tokenizer:
    """Its own vocabulary has no languages: they follow it in the order of the class. Folders name them as specials."""
    model = train_pieces("bpe")
    (folder / "own.json").write_text(json.dumps(write_pieces(folder, model, ())), encoding="utf-8")
    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    tokenizer = M2M100Tokenizer(
        str(folder / "own.json"), str(folder / "tokenizer.model"), additional_special_tokens=languages
    )
    write_vocabulary(folder, tokenizer.encoder | tokenizer.lang_token_to_id)
    return tokenizer


def nllb(folder: Path) -> NllbTokenizer:
    (folder / "sentencepiece.bpe.model").write_bytes(train_pieces("bpe"))
    return with_its_vocabulary(
        folder, NllbTokenizer.from_pretrained(str(folder), extra_special_tokens=[*BEHIND["nllb"][:-1]])
    )


def mbart(folder: Path) -> MBart50Tokenizer:
    (folder / "sentencepiece.bpe.model").write_bytes(train_pieces("unigram"))
    return with_its_vocabulary(folder, MBart50Tokenizer.from_pretrained(str(folder)))


def with_its_vocabulary(folder: Path, tokenizer: Any) -> Any:
    (folder / "sentencepiece.bpe.model").rename(folder / "tokenizer.model")
    write_vocabulary(folder, tokenizer.get_vocab())
    return tokenizer


def bart(folder: Path) -> BartTokenizer:
    write_byte_bpe(folder)
    return BartTokenizer.from_pretrained(str(folder))


CLASSES: dict[str, tuple[TokenizerKind, Callable[[Path], Any]]] = {
    "M2M-100": ("pieces", m2m),
    "NLLB-200": ("pieces", nllb),
    "mBART-50": ("pieces", mbart),
    "BART": ("byte_bpe", bart),
}
# Beside those that all have.
OWN_SPECIALS = {"M2M-100": "__fr__", "NLLB-200": "fra_Latn", "mBART-50": "fr_XX", "BART": "<mask>"}


@pytest.fixture(scope="module", params=CLASSES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(name: str, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("tokenizer")
    kind, write = CLASSES[name]
    transformers = write(folder)
    return Pair(load_tokenizer(kind, folder), transformers)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_pieces_are_those_of_transformers(pair: Pair, text: str) -> None:
    expected = pair.expected(text)
    assert pair.codec.encode(text) == pair.codec.encode_target(text) == expected
    assert pair.codec.pieces(expected) == pair.transformers.convert_ids_to_tokens(expected)


@pytest.mark.parametrize("text", ["trailing ", "line\n", " ", "\u3000\u00a0", "▁", "bell \x07"])
def test_white_space_behind_a_text_is_dropped_as_sentencepiece_does(name: str, pair: Pair, text: str) -> None:
    """The SentencePiece kinds of the library `tokenizers` keep one space."""
    expected = pair.expected(text)
    if name in ("NLLB-200", "mBART-50"):
        assert pair.transformers.convert_ids_to_tokens(expected.pop()) == "▁"
    assert pair.codec.encode(text) == expected


@pytest.mark.parametrize("text", ["ﬁ\u0301 cat", "cat …\u0301"])
def test_marks_behind_what_is_replaced_are_kept_as_sentencepiece_does(name: str, pair: Pair, text: str) -> None:
    """The library `tokenizers` normalises such a mark with the character before it, and loses it."""
    is_lost = name in ("NLLB-200", "mBART-50")
    assert (pair.codec.encode(text) != pair.expected(text)) is is_lost


def test_texts_are_those_of_transformers(name: str, pair: Pair) -> None:
    """With entries that have no text here and not there left out, and outer white space, which only BART keeps here."""
    rng = random.Random(0)
    size = pair.codec.vocabulary.size
    special_ids = {i for i in range(size) if pair.codec.is_control(i)}
    ids_of_text = [i for i in range(size) if i not in special_ids or i in pair.transformers.all_special_ids]
    assert len(ids_of_text) >= size - 1  # a made-up word
    for _ in range(300):
        ids = rng.choices(ids_of_text, k=rng.randint(0, 12))
        expected = pair.expected_text(ids)
        assert pair.codec.decode(ids) == (expected if name == "BART" else expected.strip())
    for text in TEXTS:
        ids = pair.expected(text)
        expected = pair.expected_text([PAD_ID, *ids, EOS_ID])
        assert pair.codec.decode([PAD_ID, *ids, EOS_ID]) == (expected if name == "BART" else expected.strip())


def test_the_specials_are_those_of_transformers(name: str, pair: Pair) -> None:
    tokenizer, vocabulary = pair.transformers, pair.codec.vocabulary
    assert vocabulary.end_of_sentence_id == tokenizer.eos_token_id == EOS_ID
    assert vocabulary.padding_id == tokenizer.pad_token_id == PAD_ID
    assert pair.codec.unknown_id == tokenizer.unk_token_id
    assert vocabulary.size == len(tokenizer)
    assert vocabulary.known_share == 1.0
    assert all(map(pair.codec.is_control, tokenizer.all_special_ids))
    assert pair.codec.is_control(tokenizer.convert_tokens_to_ids(OWN_SPECIALS[name]))


def test_a_special_in_a_text_is_text_here_and_not_there(name: str, pair: Pair) -> None:
    for special in ("</s>", "<pad>", "<unk>", OWN_SPECIALS[name]):
        for text in (special, f"the {special} cat", special * 3):
            ids = pair.codec.encode(text)
            assert pair.transformers.convert_tokens_to_ids(special) in pair.expected(text)
            assert not any(map(pair.codec.is_control, ids))
            assert pair.codec.decode(ids) == text
