"""Byte-level BPE; `test_tokenizers_of_transformers.py` compares it with `transformers`."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.errors import BundleError
from dragoman_server.text.byte_bpe import ByteBpeTokenizer
from dragoman_server.text.tokenizer import load_tokenizer
from support.piece_tokenizers import EOS_ID, UNK_ID, write_byte_bpe, write_vocabulary


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> ByteBpeTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_bpe(folder)
    return ByteBpeTokenizer(folder)


def test_every_byte_of_a_character_has_all_of_it(codec: ByteBpeTokenizer) -> None:
    text = "a 🙂 b"
    ids, spans = codec.encode(text), codec.spans(text)
    assert [text[begin:end] for begin, end in spans].count("🙂") == 4
    assert [codec.is_unspelt(token_id) for token_id in ids].count(True) == 4
    assert codec.target_spans(ids) == spans


def test_a_piece_with_the_space_before_it_stands_for_the_word(codec: ByteBpeTokenizer) -> None:
    text = "The cat \n dort"
    assert codec.pieces(codec.encode(text))[1].startswith("Ġ")
    parts = [text[begin:end] for begin, end in codec.spans(text)]
    assert all(part == part.strip() or part.isspace() for part in parts)
    assert "".join(parts).replace(" ", "").replace("\n", "") == "Thecatdort"


def test_control_ids_have_a_piece_and_no_text(codec: ByteBpeTokenizer) -> None:
    filler = codec.vocabulary.size - 2
    ids = [EOS_ID, *codec.encode("cat"), UNK_ID, filler, 10_000, *codec.encode(" dort"), EOS_ID]
    assert codec.decode(ids) == "cat dort"
    pieces, spans = codec.pieces(ids), codec.target_spans(ids)
    assert [piece for piece, (begin, end) in zip(pieces, spans, strict=True) if begin == end] == [
        "</s>",
        "<unk>",
        "madeupword0000",
        "<unk>",
        "</s>",
    ]
    assert [codec.is_control(token_id) for token_id in ids] == [begin == end for begin, end in spans]


def test_bytes_that_are_no_utf8_become_replacement_characters(codec: ByteBpeTokenizer) -> None:
    ids = codec.encode("🙂")
    broken = [*ids[:-1], *ids[:1], *codec.encode("a")]
    assert codec.decode(broken) == "\ufffd\ufffda"
    assert codec.target_spans(broken) == [(0, 1)] * 3 + [(1, 2), (2, 3)]


def test_merges_that_would_spell_a_special_do_not(tmp_path: Path) -> None:
    vocabulary = write_byte_bpe(tmp_path)
    with (tmp_path / "merges.txt").open("a", encoding="utf-8") as merges:
        for pair in ("< /", "</ s", "</s >", "< mas", "m a", "ma s", "mas k", "<mas k", "<mask >"):
            merges.write(f"{pair}\n")
            for piece in (*pair.split(), pair.replace(" ", "")):
                vocabulary.setdefault(piece, len(vocabulary))
    write_vocabulary(tmp_path, vocabulary)
    codec = ByteBpeTokenizer(tmp_path)
    for special in ("</s>", "<mask>"):
        assert codec.is_control(vocabulary[special])
        for text in (special, f"a {special} b", special * 3, f"a{special}b"):
            ids = codec.encode(text)
            assert not any(map(codec.is_control, ids))
            assert codec.decode(ids) == text


def test_the_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: ByteBpeTokenizer
) -> None:
    write_byte_bpe(tmp_path)
    assert load_tokenizer("byte_bpe", tmp_path).vocabulary == codec.vocabulary
    monkeypatch.delitem(sys.modules, "dragoman_server.text.byte_bpe")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BundleError, match=r"vocab\.json needs the package 'tokenizers', .*: pip install tokenizers"):
        load_tokenizer("byte_bpe", tmp_path)


def test_windows_line_ends_and_no_version_make_no_difference(tmp_path: Path, codec: ByteBpeTokenizer) -> None:
    write_byte_bpe(tmp_path)
    path = tmp_path / "merges.txt"
    _, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_bytes("\r\n".join(lines).encode())
    text = "The old cat is sleeping, мой кот"
    assert ByteBpeTokenizer(tmp_path).encode(text) == codec.encode(text)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("xq zq", "has 'xq' in line .*, which is no piece of text in vocab.json"),
        ("< Ġ", "has '<Ġ' in line .*, which is no piece of text in vocab.json"),
        ("猫 猫", "has '猫' in line .*, which is no piece of text in vocab.json"),
        ("a", "has 'a' in line .*, which is not two pieces"),
        ("a b c", "has 'a b c' in line .*, which is not two pieces"),
        ("a  b", "has 'a b' in line .*, which is not two pieces"),
        (" ", "has ' ' in line .*, which is not two pieces"),
        ("\x00" * 1000, "has '.*, which is not two pieces"),
    ],
)
def test_a_merge_that_is_none_is_a_bundle_error(tmp_path: Path, line: str, fault: str) -> None:
    write_byte_bpe(tmp_path, ("猫", "猫猫"))
    with (tmp_path / "merges.txt").open("a", encoding="utf-8") as merges:
        merges.write(f"{line}\n")
    with pytest.raises(BundleError, match=rf"merges\.txt {fault}"):
        ByteBpeTokenizer(tmp_path)


def test_a_vocabulary_that_cannot_spell_every_text_is_a_bundle_error(tmp_path: Path) -> None:
    vocabulary = write_byte_bpe(tmp_path)
    write_vocabulary(tmp_path, {"Ġ#" if piece == "Ġ" else piece: token_id for piece, token_id in vocabulary.items()})
    with pytest.raises(BundleError, match=r"vocab\.json has no entry for 'Ġ', the byte 0x20"):
        ByteBpeTokenizer(tmp_path)


@given(seed=st.integers(0, 2**32))
def test_files_that_are_damaged_anywhere_are_refused_or_work(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nor does the library end by a panic, which is no Exception."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("damaged")
    write_byte_bpe(folder)
    path = folder / rng.choice(["vocab.json", "merges.txt"])
    contents = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(contents))
        match rng.randrange(3):
            case 0:
                contents[place] = rng.randrange(256)
            case 1:
                del contents[place : place + rng.randint(1, 20)]
            case _:
                contents[place:place] = contents[rng.randrange(len(contents)) :][: rng.randint(1, 20)]
    path.write_bytes(contents)
    fault = ""
    try:
        codec = ByteBpeTokenizer(folder)
    except BundleError as error:
        fault = str(error)
    assert not fault or path.name in fault
    assert "\n" not in fault
    if not fault:
        text = "The old cat, кот 🙂"
        assert codec.decode(codec.encode(text)) == text
