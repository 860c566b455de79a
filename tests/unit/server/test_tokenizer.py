import time
from pathlib import Path

import pytest

from dragoman_server.errors import BundleError
from dragoman_server.text.tokenizer import Tokenizer
from support.server_parts import EOS_ID, SENTENCES


@pytest.mark.parametrize("text", [*SENTENCES, "日本語 🙂", "naïve", "NUL \x00 inside"])
def test_decoding_what_was_encoded_gives_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "<pad>", "<2fr>", "<0x41>", "a <2de> b"])
def test_text_that_spells_a_special_is_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(token_id > 6 for token_id in ids)  # the specials and language tags come first
    assert tokenizer.decode(ids) == text


def test_encoding_adds_no_specials(tokenizer: Tokenizer) -> None:
    assert EOS_ID not in tokenizer.encode("The cat.")
    assert tokenizer.encode("") == []


def test_specials_have_no_text_but_a_piece(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("cat"), EOS_ID]
    assert tokenizer.decode(ids) == "cat"
    assert tokenizer.pieces(ids)[-1] == "</s>"
    assert "".join(tokenizer.pieces(ids)[:-1]) == "▁cat"


def test_bytes_that_are_no_utf8_become_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("日")
    assert "\ufffd" in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("text", ["a" * 20_000, "_" * 20_000, "\ufdfa" * 20_000, "e" + "\u0301" * 20_000])
def test_texts_that_are_hard_to_tokenize_take_no_time(tokenizer: Tokenizer, text: str) -> None:
    started = time.thread_time()
    tokenizer.encode(text)
    assert time.thread_time() - started < 1.0


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_damaged_model_is_a_bundle_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.model"):
        Tokenizer(path)
