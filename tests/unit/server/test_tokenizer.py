import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from dragoman_server.errors import BundleError
from dragoman_server.text.byte_bpe import ByteBpeTokenizer
from dragoman_server.text.byte_ids import ByteTokenizer
from dragoman_server.text.pair import PairTokenizer
from dragoman_server.text.tokenizer import MarianTokenizer, PieceTokenizer, Tokenizer, load_tokenizer, target_language
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind
from support.marian_tokenizer import EOS_ID as MARIAN_EOS_ID
from support.marian_tokenizer import UNK_ID, write_tokenizer
from support.patience import ends_soon
from support.piece_tokenizers import train_pieces, write_kind, write_pair, write_pieces, write_vocabulary
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


def spelt(tokenizer: Tokenizer | MarianTokenizer, text: str) -> list[tuple[str, str]]:
    """The part of the text that each piece stands for."""
    ids, spans = tokenizer.encode(text), tokenizer.spans(text)
    return [(piece, text[begin:end]) for piece, (begin, end) in zip(tokenizer.pieces(ids), spans, strict=True)]


@pytest.mark.parametrize(
    "text", [*SENTENCES, "  two\t spaces ", "ﬁne caf\u0301e", "…①", "a\u3000b", "日本語 🙂🙂", "½ \ufdfa"]
)
def test_spans_of_a_source_have_all_of_the_text_whatever_was_normalised(tokenizer: Tokenizer, text: str) -> None:
    spans = tokenizer.spans(text)
    covered = {place for begin, end in spans for place in range(begin, end)}
    assert all(text[place].isspace() for place in set(range(len(text))) - covered)
    assert spans == sorted(spans, key=lambda span: span[1])
    assert all(text[begin:end].strip() == text[begin:end] or text[begin:end].isspace() for begin, end in spans)


def test_what_several_pieces_stand_for_together_belongs_to_each(tokenizer: Tokenizer) -> None:
    assert [part for _, part in spelt(tokenizer, "🙂")] == ["", *["🙂"] * 4]
    assert [part for piece, part in spelt(tokenizer, "a…") if piece == "."] == ["…"] * 3
    assert {part for _, part in spelt(tokenizer, "\ufdfa")[1:]} == {"\ufdfa"}


@pytest.mark.parametrize(
    ("text", "of", "decoded"),
    [
        ("Add ½ cup.", "½", "1⁄2"),
        ("a½ cup", "½", "1⁄2"),
        ("a ﬁ ne", "ﬁ", "fi"),
        ("tea ™ cup", "™", "TM"),
        ("part Ⅳ is", "Ⅳ", "IV"),
        ("a ㎏ of", "㎏", "kg"),
        ("wait … what", "…", "..."),
        ("a ｶﾞ b", "ｶﾞ", "ガ"),
        ("a e\u0301 b", "e\u0301", "é"),
        ("\u00a0½ cup", "½", "1⁄2"),
    ],
)
def test_what_the_rule_expands_or_contracts_has_its_own_span(
    tokenizer: Tokenizer, text: str, of: str, decoded: str
) -> None:
    begin = text.index(of)
    span = (begin, begin + len(of))
    own = [
        token_id for token_id, other in zip(tokenizer.encode(text), tokenizer.spans(text), strict=True) if other == span
    ]
    assert tokenizer.decode(own) == decoded


def test_a_character_that_two_pieces_share_belongs_to_both(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["xf iy"] * 50), model_writer=model, model_type="bpe", vocab_size=12, minloglevel=2
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    assert spelt(Tokenizer(path), "xﬁy") == [("▁xf", "xﬁ"), ("iy", "ﬁy")]


@pytest.mark.parametrize(
    "text", ["Le  chat.", "\ufeffLe chat.", "  Le chat… ", "Le chat e\u0301tait là", "Le\u200bchat"]
)
def test_spans_of_a_target_text_point_into_it(tokenizer: Tokenizer, text: str) -> None:
    spans = tokenizer.target_text_spans(text)
    assert len(spans) == len(tokenizer.encode_target(text))
    # Each once: the bytes of a character have the same.
    parts = [text[begin:end] for begin, end in dict.fromkeys(spans)]
    dropped = re.compile(r"[\s\ufeff\u200b]")
    assert dropped.sub("", "".join(parts)) == dropped.sub("", text)


def test_which_ids_the_vocabulary_has_no_word_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The 日")
    assert [tokenizer.is_unspelt(token_id) for token_id in ids][-3:] == [True] * 3
    assert not any(map(tokenizer.is_unspelt, tokenizer.encode("The old cat.")))
    assert tokenizer.is_unspelt(tokenizer.unknown_id)


def test_spans_of_a_target_point_into_its_text(tokenizer: Tokenizer) -> None:
    ids = [4, *tokenizer.encode("The  cat 🙂 sleeps."), EOS_ID]
    text, spans = tokenizer.decode(ids), tokenizer.target_spans(ids)
    assert (spans[0], spans[-1]) == ((0, 0), (len(text), len(text)))
    covered = {place for begin, end in spans for place in range(begin, end)}
    assert {text[place] for place in set(range(len(text))) - covered} <= {" "}
    assert [text[begin:end] for begin, end in spans].count("🙂") == 4
    assert tokenizer.target_spans([EOS_ID]) == [(0, 0)]
    assert tokenizer.target_spans([]) == []


def test_which_ids_are_no_text(tokenizer: Tokenizer) -> None:
    ids = [4, *tokenizer.encode("The cat 🙂"), EOS_ID]
    assert [tokenizer.is_control(token_id) for token_id in ids] == [True, *[False] * (len(ids) - 2), True]


@pytest.mark.parametrize("text", ["a" * 60_000, "_" * 60_000, "\ufdfa" * 60_000, "e" + "\u0301" * 60_000])
def test_texts_that_are_hard_to_tokenize_take_no_time(tokenizer: Tokenizer, text: str) -> None:
    with ends_soon():
        tokenizer.encode(text)


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_damaged_model_is_a_bundle_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.model"):
        Tokenizer(path)


@pytest.mark.parametrize(
    ("kind", "loaded"),
    [
        ("sentencepiece", Tokenizer),
        ("marian", MarianTokenizer),
        ("pieces", PieceTokenizer),
        ("pieces_pair", PairTokenizer),
        ("byte_bpe", ByteBpeTokenizer),
        ("bytes", ByteTokenizer),
    ],
)
def test_the_kind_decides_what_is_loaded(tmp_path: Path, kind: TokenizerKind, loaded: type) -> None:
    write_kind(kind, tmp_path)
    assert type(load_tokenizer(kind, tmp_path)) is loaded


@pytest.mark.parametrize("kind", TOKENIZER_FILES)
def test_threads_do_not_disturb_each_other(tmp_path: Path, kind: TokenizerKind) -> None:
    write_kind(kind, tmp_path)
    codec = load_tokenizer(kind, tmp_path)
    texts = [f"{text} {number} 日本" for number in range(20) for text in SENTENCES]

    def work(text: str) -> tuple[Any, ...]:
        ids = codec.encode(text)
        return ids, codec.spans(text), codec.decode(ids), codec.target_spans(ids)

    expected = [work(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: [work(text) for text in texts], range(8)):
            assert found == expected


def test_the_library_of_byte_level_bpe_is_loaded_with_the_first_model_of_this_kind() -> None:
    code = (
        "import sys, dragoman_server.app\nfrom dragoman_server.bundle.bundle import Bundle, embedded_bundle\n"
        "Bundle.open(embedded_bundle())\nassert 'tokenizers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- Marian: `tests/golden/test_marian.py` compares it with `transformers` ---------------------------------------------


@pytest.fixture(scope="module")
def marian_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    write_tokenizer(folder, targets=("fra", "deu"))
    return folder


@pytest.fixture(scope="module")
def marian(marian_folder: Path) -> MarianTokenizer:
    return MarianTokenizer(marian_folder)


def test_marian_ids_are_those_of_the_vocabulary(marian: MarianTokenizer, marian_folder: Path) -> None:
    vocabulary = json.loads((marian_folder / "vocab.json").read_text(encoding="utf-8"))
    ids = marian.encode("the old dog")
    pieces = marian.pieces(ids)
    assert "".join(pieces) == "▁the▁old▁dog"
    assert ids == [vocabulary[piece] for piece in pieces]
    assert marian.encode("") == marian.encode(" ") == []


def test_marian_has_no_id_for_unknown_characters_and_no_text_for_control_ids(marian: MarianTokenizer) -> None:
    assert UNK_ID in marian.encode("the 日本")
    assert marian.decode([*marian.encode("the日本 dog"), MARIAN_EOS_ID]) == "the dog"
    assert marian.pieces([UNK_ID, MARIAN_EOS_ID]) == ["<unk>", "</s>"]


def test_ids_beyond_marians_vocabulary_are_unknown(marian: MarianTokenizer) -> None:
    assert marian.pieces([10_000]) == ["<unk>"]
    assert marian.decode([*marian.encode("dog"), 10_000]) == "dog"


def test_spans_of_marians_source_and_target(marian: MarianTokenizer) -> None:
    assert [part for _, part in spelt(marian, " the 日本 dog")][-1] == "dog"
    assert "日本" in [part for _, part in spelt(marian, " the 日本 dog")]
    ids = [UNK_ID, *marian.encode("the"), UNK_ID, *marian.encode("dog"), MARIAN_EOS_ID]
    text, spans = marian.decode(ids), marian.target_spans(ids)
    assert text == "the dog"
    assert [text[begin:end] for begin, end in spans] == ["", "the", "", "dog", ""]
    assert marian.target_spans([MARIAN_EOS_ID]) == [(0, 0)]
    assert [marian.is_control(token_id) for token_id in ids] == [True, False, True, False, True]


def test_spans_of_a_text_in_marians_target_language(marian: MarianTokenizer) -> None:
    text = "  le  日本 chat e\u0301 "
    ids, spans = marian.encode_target(text), marian.target_text_spans(text)
    parts = [text[begin:end] for begin, end in spans]
    assert len(ids) == len(spans)
    assert parts[-1].endswith("e\u0301")
    assert "日本" in [part for token_id, part in zip(ids, parts, strict=True) if marian.is_unspelt(token_id)]


CONTROLS = ["</s>", "<unk>", "<pad>", ">>fra<<"]


@pytest.mark.parametrize("control", CONTROLS)
def test_text_that_spells_a_control_symbol_of_marians_is_text(
    control: str, marian: MarianTokenizer, marian_folder: Path
) -> None:
    control_ids = {json.loads((marian_folder / "vocab.json").read_text())[piece] for piece in CONTROLS} - {UNK_ID}
    for text in (control, f"{control} the dog", f"the {control} dog", control * 3):
        assert not control_ids & set(marian.encode(text))


@pytest.mark.parametrize("control", CONTROLS)
def test_nor_does_it_become_a_control_id_where_it_is_one_unknown_piece(control: str, tmp_path: Path) -> None:
    """Where a source model knows no Latin letters, all of `</s>` is one piece, spelt as the vocabulary's entry is."""
    vocabulary = write_tokenizer(tmp_path, targets=("fra",), source_words=["собака", "кот", "птица", "дерево"])
    ids = MarianTokenizer(tmp_path).encode(control)
    assert vocabulary["▁"] == ids[0]
    assert ids[1:] == [UNK_ID]


def test_the_language_of_a_target_token() -> None:
    assert [target_language(piece) for piece in (">>fra<<", ">>zh_Hans<<", ">>", ">><<", "▁>>fra<<", "fra")] == [
        "fra",
        "zh_Hans",
        None,
        None,
        None,
        None,
    ]


# -- one model and a vocabulary: `test_tokenizers_of_transformers.py` compares it with `transformers` ------------------


@pytest.mark.parametrize("control", ["</s>", "<unk>", "<pad>", "<mask>", "fra_Latn"])
def test_a_control_symbol_that_is_one_unknown_piece_is_unknown(control: str, tmp_path: Path) -> None:
    vocabulary = write_pieces(tmp_path, train_pieces("unigram", ("собака", "кот", "птица", "дерево"), 30))
    ids = PieceTokenizer(tmp_path).encode(control)
    assert ids == [vocabulary["▁"], vocabulary["<unk>"]]


def test_a_special_that_the_model_takes_for_a_piece_is_unknown_too(tmp_path: Path) -> None:
    vocabulary = write_pieces(tmp_path, train_pieces("unigram", user_defined_symbols=["<mask>"]), ())
    ids = PieceTokenizer(tmp_path).encode("a <mask>")
    assert vocabulary["<mask>"] not in ids
    assert vocabulary["<unk>"] in ids


def test_a_character_that_the_vocabulary_alone_knows_has_its_id(tmp_path: Path) -> None:
    vocabulary = write_pieces(tmp_path, train_pieces("bpe"), ("fra_Latn", "ꙮ"))
    codec = PieceTokenizer(tmp_path)
    ids = codec.encode("ꙮ")
    assert vocabulary["ꙮ"] in ids
    assert not any(map(codec.is_control, ids))
    assert codec.decode(ids) == "ꙮ"


def test_bytes_of_a_model_that_has_them(tmp_path: Path) -> None:
    vocabulary = write_pieces(tmp_path, train_pieces("unigram", vocabulary_size=500, byte_fallback=True))
    codec = PieceTokenizer(tmp_path)
    text = "the 🙂 cat"
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    assert [codec.is_unspelt(token_id) for token_id in ids].count(True) == 4
    assert [text[begin:end] for begin, end in codec.spans(text)].count("🙂") == 4
    assert [text[begin:end] for begin, end in codec.target_spans(ids)].count("🙂") == 4
    assert vocabulary["<0x41>"] not in codec.encode("<0x41>")


# -- a model and a vocabulary each for source and target ---------------------------------------------------------------


def test_source_and_target_have_ids_of_their_own(tmp_path: Path) -> None:
    source, target = write_pair(tmp_path)
    codec = PairTokenizer(tmp_path)
    assert (codec.source_vocabulary.size, codec.vocabulary.size) == (len(source), len(target))
    text = "The old cat"
    for ids, pieces, vocabulary in (
        (codec.encode(text), codec.source_pieces(codec.encode(text)), source),
        (codec.encode_target(text), codec.pieces(codec.encode_target(text)), target),
    ):
        assert "".join(pieces) == "▁The▁old▁cat"
        assert ids == [vocabulary[piece] for piece in pieces]
    assert codec.encode(text) != codec.encode_target(text)
    assert codec.decode(codec.encode_target(text)) == text
    assert codec.decode(codec.encode(text)) != text


def test_an_id_may_be_a_control_symbol_on_one_side_alone(tmp_path: Path) -> None:
    source, target = write_pair(tmp_path)
    codec = PairTokenizer(tmp_path)
    tag = source[">>fra<<"]
    assert (codec.is_source_control(tag), codec.is_control(tag)) == (True, False)
    assert codec.is_control(target["<pad>"])
    assert codec.is_unspelt(source["<unk>"])
    assert codec.unknown_id == target["<unk>"]
    assert (codec.source_vocabulary.padding_id, codec.vocabulary.padding_id) == (source["<pad>"], target["<pad>"])


def test_what_a_vocabulary_has_beyond_the_pieces_of_its_model(tmp_path: Path) -> None:
    _, target = write_pair(tmp_path, ("ꙮ", "ꙮꙂ", "madeupword0", "<pad>"))
    codec = PairTokenizer(tmp_path)
    ids = {piece: target[piece] for piece in ("ꙮ", "ꙮꙂ", "madeupword0")}
    assert [codec.is_control(token_id) for token_id in ids.values()] == [False, False, True]
    assert codec.encode_target("cat ꙮꙂ")[-1] == ids["ꙮꙂ"]
    assert codec.decode([*codec.encode_target("cat"), *ids.values()]) == "catꙮꙮꙂ"


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("vocabulary", "fault"),
    [
        ({"<unk>": 0, "<pad>": 1}, "has no entry for </s>"),
        ({"<unk>": 0, "</s>": 0}, "has one id for several pieces"),
        ([], "is not an object of pieces and their ids"),
    ],
)
def test_what_is_no_vocabulary_of_a_pair_is_a_bundle_error(
    tmp_path: Path, side: str, vocabulary: Any, fault: str
) -> None:
    write_pair(tmp_path)
    write_vocabulary(tmp_path, vocabulary, f"{side}_vocab.json")
    with pytest.raises(BundleError, match=rf"{side}_vocab\.json {fault}"):
        PairTokenizer(tmp_path)


def test_a_vocabulary_of_a_pair_need_not_have_padding(tmp_path: Path) -> None:
    write_pair(tmp_path, ())
    assert PairTokenizer(tmp_path).source_vocabulary.padding_id is None


# -- damaged files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TOKENIZER_FILES.items() for name in names])
@pytest.mark.parametrize("content", [None, b"", b"\xff nonsense", b"[" * 100_000])
def test_a_damaged_file_is_a_bundle_error(
    tmp_path: Path, kind: TokenizerKind, name: str, content: bytes | None
) -> None:
    write_kind(kind, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    if (name, content) == ("merges.txt", b""):
        load_tokenizer(kind, tmp_path)  # whose pieces are bytes
    else:
        with pytest.raises(BundleError, match=name):
            load_tokenizer(kind, tmp_path)


@pytest.mark.parametrize("kind", ["sentencepiece", "marian", "pieces", "pieces_pair"])
def test_a_piece_that_is_no_utf8_is_a_bundle_error(tmp_path: Path, kind: TokenizerKind) -> None:
    write_kind(kind, tmp_path)
    path = tmp_path / TOKENIZER_FILES[kind][0]
    path.write_bytes(path.read_bytes().replace("▁".encode(), b"\xe2\x96\xff", 1))
    with pytest.raises(BundleError, match=rf"{path.name} cannot be loaded as a SentencePiece model: .* codec"):
        load_tokenizer(kind, tmp_path)


FAIRSEQ = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


@pytest.mark.parametrize("kind", ["marian", "pieces", "byte_bpe"])
@pytest.mark.parametrize(
    ("vocabulary", "fault"),
    [
        ([], "not an object of pieces and their ids"),
        (FAIRSEQ | {"a": "3"}, "not an object of pieces and their ids"),
        (FAIRSEQ | {"a": True}, "not an object of pieces and their ids"),
        (FAIRSEQ | {"a": -1}, "not an object of pieces and their ids"),
        (FAIRSEQ | {"a": 2}, "one id for several pieces"),
        ({"<unk>": 1}, "no entry for </s>, <pad>"),
    ],
)
def test_what_is_no_vocabulary_is_a_bundle_error(
    tmp_path: Path, kind: TokenizerKind, vocabulary: Any, fault: str
) -> None:
    write_kind(kind, tmp_path)
    write_vocabulary(tmp_path, vocabulary)
    with pytest.raises(BundleError, match=rf"vocab\.json has {fault}|vocab\.json is {fault}"):
        load_tokenizer(kind, tmp_path)


@pytest.mark.parametrize("kind", ["pieces", "byte_bpe"])
@pytest.mark.parametrize("token_id", [5, 10**9, 10**30])
def test_a_vocabulary_that_skips_an_id_is_a_bundle_error(tmp_path: Path, kind: TokenizerKind, token_id: int) -> None:
    write_kind(kind, tmp_path)
    write_vocabulary(tmp_path, FAIRSEQ | {"a": token_id})
    with pytest.raises(BundleError, match=r"vocab\.json has 5 pieces, but none with id 4"):
        load_tokenizer(kind, tmp_path)
