"""Which vocabularies of models in Marian's own format are read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman_export.families.marian_native import read_marian_native
from dragoman_server.errors import BundleError
from support.marian_native import (
    EOS_ID,
    PAIR,
    UNK_ID,
    VOCABULARY,
    edit_arrays,
    entries_of,
    marian_sentencepiece,
    refused,
    set_decoder,
    set_options,
    write_native,
)
from support.piece_tokenizers import SENTENCES


def set_vocabulary(folder: Path, text: str) -> None:
    (folder / VOCABULARY).write_text(text, encoding="utf-8")


def set_num_embeddings(folder: Path, number: int) -> None:
    def edit(arrays: dict[str, Any]) -> None:
        arrays["Wemb"] = np.zeros((number, 64), np.float32)
        arrays["decoder_ff_logit_out_b"] = np.zeros((1, number), np.float32)

    edit_arrays(folder, edit)
    set_options(folder)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no entry for </s>, <unk>"),
        ("</s>: 0\n", "has no entry for <unk>"),
        ("</s>: 0\n<unk>: x\n", "has '<unk>' with 'x', not an id"),
        ("</s>: 0\n<unk>: -1\n", "has '<unk>' with -1, not an id"),
        ("</s>: 0\n<unk>: 0\n", "has one id for several pieces"),
        ("</s>: 0\n<unk>: 1\na:\n  b: 1\n", "line 3 is 'a:', which is neither a scalar nor a list of scalars"),
        ("</s>: 0\n<unk>: 500\n", "has <unk> beyond the 65 embeddings"),
        ('</s>: 0\n<unk>: 1\n">>fra<<": 500\n', "has the language >>fra<< at 500, but there are 65 embeddings"),
        ("</s>: 0\n<unk>: 1\n<pad>: 2\n<s>: 3\n<mask>: 4\n", "has all of <pad>, <s>, <mask>; one of them must be free"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(folder: Path, text: str, fault: str) -> None:
    assert len((folder / VOCABULARY).read_text(encoding="utf-8").splitlines()) == 65
    set_vocabulary(folder, text)
    refused(folder, f"{VOCABULARY}:? {fault}")


def test_entries_beyond_the_embeddings_are_left_out_as_marian_does(folder: Path) -> None:
    text = (folder / VOCABULARY).read_text(encoding="utf-8")
    set_vocabulary(folder, text + '"▁more": 65\n')
    assert b"more" not in read_marian_native(folder, "model", PAIR).companion_files["vocab.json"]


def test_an_entry_for_padding_does_not_stand_in_the_way(folder: Path) -> None:
    text = (folder / VOCABULARY).read_text(encoding="utf-8")
    lines = text.splitlines()
    lines[5] = '"<pad>": 5'
    set_vocabulary(folder, "\n".join(lines))
    checkpoint = read_marian_native(folder, "model", PAIR)
    codec, config = checkpoint.open_tokenizer(), checkpoint.config
    assert (config.tokenizer, config.pad_token_id, config.bos_token_id) == ("pieces_pair", 5, 65)
    assert codec.pieces([65]) == ["<s>"]
    assert codec.is_control(65)


def test_a_list_of_lines_is_a_vocabulary(folder: Path) -> None:
    entries = entries_of(folder / VOCABULARY)
    expected = read_marian_native(folder, "model", PAIR).companion_files["vocab.json"]
    (folder / "opus.vocab").write_text("\n".join(entries) + "\n", encoding="utf-8")
    set_decoder(folder, vocabs=["opus.vocab"] * 2)
    assert read_marian_native(folder, "model", PAIR).companion_files["vocab.json"] == expected
    (folder / "opus.vocab").write_text("\n".join([*entries, entries[-1]]), encoding="utf-8")
    refused(folder, "opus.vocab has an entry twice, or an empty line")


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_list_needs_a_model_that_cuts_texts_up(folder: Path, side: str) -> None:
    (folder / f"{side}.spm").unlink()
    refused(folder, f"has no {side}.spm, .*; BPE of subword-nmt is not supported", FileNotFoundError)


def test_a_factored_vocabulary_is_refused(folder: Path) -> None:
    (folder / "vocab.fsv").touch()
    set_decoder(folder, vocabs=["vocab.fsv"] * 2)
    refused(folder, "vocab.fsv is a factored vocabulary, which is not supported")


def test_end_of_sentence_must_be_the_same_on_both_sides(tmp_path: Path) -> None:
    native = write_native(tmp_path, "two lists", tied_embeddings_all=False)
    path = native.vocabularies[1]
    text = path.read_text(encoding="utf-8").replace('"</s>": 0\n"<unk>": 1', '"<unk>": 0\n"</s>": 1')
    path.write_text(text, encoding="utf-8")
    refused(tmp_path, "src.vocab.yml has </s> at 0, but opus.*trg.vocab.yml at 1; they must be the same")


def test_a_damaged_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    (tmp_path / "vocab.spm").write_bytes(b"no model")
    refused(tmp_path, "vocab.spm cannot be loaded as a SentencePiece model", BundleError)


def test_a_sentencepiece_model_without_end_of_sentence_is_refused(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES, 260, [], eos_id=-1, unk_id=0)
    (tmp_path / "vocab.spm").write_bytes(model)
    refused(tmp_path, "vocab.spm has no </s>")


def test_more_embeddings_than_entries_are_refused(tmp_path: Path) -> None:
    write_native(tmp_path)
    set_num_embeddings(tmp_path, 600)
    refused(tmp_path, "vocab.yml has 65 entries, but there are 600 embeddings")


def test_specials_of_a_sentencepiece_model_may_have_other_names(tmp_path: Path) -> None:
    native = write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES, 260, [], eos_piece="[eos]", unk_piece="[unk]")
    (tmp_path / "vocab.spm").write_bytes(model)
    codec = read_marian_native(native.folder, "model", PAIR).open_tokenizer()
    assert codec.pieces([EOS_ID, UNK_ID]) == ["</s>", "<unk>"]


def test_bytes_of_control_characters_are_suppressed_as_marian_does(tmp_path: Path) -> None:
    write_native(tmp_path, "one model")
    model = marian_sentencepiece(SENTENCES[:2], 320, [], byte_fallback=True)
    (tmp_path / "vocab.spm").write_bytes(model)
    set_num_embeddings(tmp_path, 320)
    generation = read_marian_native(tmp_path, "model", PAIR).config.generation
    codec = read_marian_native(tmp_path, "model", PAIR).open_tokenizer()
    names = codec.pieces(generation.suppressed_token_ids)
    assert names == ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(32))]
