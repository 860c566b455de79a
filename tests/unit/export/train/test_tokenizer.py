import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dragoman_export.train.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, language_tag, train_tokenizer
from support.tiny_model import LANGUAGES, WORDS, tokenizer, tokenizer_model

TAGS = [language_tag(code) for code in LANGUAGES]
any_text = st.text(st.characters(exclude_categories=["Cs"]))  # half surrogate pairs are no text


def test_specials_have_the_ids_that_the_configuration_says() -> None:
    processor = tokenizer()
    assert (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()) == (
        PAD_ID,
        UNK_ID,
        BOS_ID,
        EOS_ID,
    )
    assert all(processor.is_control(processor.piece_to_id(tag)) for tag in TAGS)


@given(st.lists(st.sampled_from([*TAGS, "<s>", "</s>", "<pad>", "<unk>", " ", "cat", "<0x41>"]) | any_text))
@example(TAGS)
@example(["<unk>"])
def test_no_text_becomes_a_control_id_or_an_unknown(parts: list[str]) -> None:
    specials = {PAD_ID, UNK_ID, BOS_ID, EOS_ID, *(tokenizer().piece_to_id(tag) for tag in TAGS)}
    assert not specials & set(tokenizer().encode("".join(parts)))


@given(any_text)
@example("日本語 😀\U0010ffff")
@example("▁")
def test_every_text_comes_back_as_the_tokenizer_normalised_it(text: str) -> None:
    normalised = tokenizer().normalize(text).replace("▁", " ").strip(" ")
    assert tokenizer().decode(tokenizer().encode(text)).strip(" ") == normalised


@pytest.mark.parametrize("space", ["\u202f", "\u00a0", "\u3000", "\t", "  "])
def test_every_kind_of_space_is_an_ordinary_one(space: str) -> None:
    assert tokenizer().encode(f"cat{space}dog") == tokenizer().encode("cat dog")


def test_the_model_tells_nothing_of_the_machine_it_was_trained_on() -> None:
    for folder in (tempfile.gettempdir(), Path.cwd(), Path.home()):
        assert f"{folder}/".encode() not in tokenizer_model()


def test_a_text_too_small_for_the_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot train a tokenizer of 100 pieces on this text"):
        train_tokenizer(WORDS, 100, LANGUAGES)
