"""Whatever the text: its tokens stand for parts of it, in order, and all letters belong to one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES
from support.piece_tokenizers import write_byte_bpe, write_kind

# Characters that the rule expands, contracts, moves or drops, among those that it leaves alone.
_FRAGMENTS = st.sampled_from(
    [*"abé½ﬁ™Ⅳ…㎏日🙂´ĳﷺ\u0301\u200b\ufeff\u00a0\u2028\u2581 ", "  ", "ｶﾞ", "e\u0301", "각", "the ", "le chat"]
)
_SPECIALS = st.sampled_from(["<s>", "</s>", "<pad>", "<unk>", "<mask>", "fra_Latn", ">>fra<<", "madeupword0000"])
texts = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=3)), max_size=12).map("".join)


@pytest.fixture(scope="module", params=TOKENIZER_FILES)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_kind(request.param, folder)
    return load_tokenizer(request.param, folder)


@settings(deadline=None)
@given(text=texts)
def test_tokens_stand_for_parts_of_the_text_in_order(codec: TextCodec, text: str) -> None:
    for ids, spans in (
        (codec.encode(text), codec.spans(text)),
        (codec.encode_target(text), codec.target_text_spans(text)),
    ):
        assert len(ids) == len(spans)
        assert spans == sorted(spans)
        assert [end for _, end in spans] == sorted(end for _, end in spans)
        covered: set[int] = set()
        for begin, end in spans:
            assert 0 <= begin <= end <= len(text)
            part = text[begin:end]
            assert part == part.strip() or part.isspace()
            covered.update(range(begin, end))
        assert not any(text[place].isalpha() for place in set(range(len(text))) - covered)


@settings(deadline=None)
@given(data=st.data())
def test_tokens_of_a_target_stand_for_parts_of_its_text_in_order(codec: TextCodec, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, codec.vocabulary.size - 1), max_size=12))
    text, spans = codec.decode(ids), codec.target_spans(ids)
    assert len(spans) == len(ids)
    assert [end for _, end in spans] == sorted(end for _, end in spans)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)
    assert all(begin == end for token_id, (begin, end) in zip(ids, spans, strict=True) if codec.is_control(token_id))
    covered = {place for begin, end in spans for place in range(begin, end)}
    assert not any(text[place].isalpha() for place in set(range(len(text))) - covered)


@settings(deadline=None)
@given(text=st.lists(st.one_of(_SPECIALS, _FRAGMENTS), max_size=12).map("".join))
def test_no_text_becomes_a_control_symbol(codec: TextCodec, text: str) -> None:
    for ids in (codec.encode(text), codec.encode_target(text)):
        assert not any(codec.is_control(token_id) for token_id in ids if token_id != codec.unknown_id)


@pytest.fixture(scope="module")
def byte_bpe(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("byte_bpe")
    write_byte_bpe(folder)
    return load_tokenizer("byte_bpe", folder)


@settings(deadline=None)
@given(text=texts)
def test_byte_level_bpe_spells_every_text(byte_bpe: TextCodec, text: str) -> None:
    ids = byte_bpe.encode(text)
    assert byte_bpe.decode(ids) == text
    assert byte_bpe.target_spans(ids) == byte_bpe.spans(text)
    assert byte_bpe.unknown_id not in ids


@settings(deadline=None)
@given(data=st.data())
def test_byte_level_bpe_decodes_any_ids(byte_bpe: TextCodec, data: st.DataObject) -> None:
    """Whatever bytes follow each other: what is a character by itself has a span of its own."""
    ids = data.draw(st.lists(st.integers(0, byte_bpe.vocabulary.size - 1), max_size=12))
    text, spans = byte_bpe.decode(ids), byte_bpe.target_spans(ids)
    for token_id, (begin, end) in zip(ids, spans, strict=True):
        own = byte_bpe.decode([token_id])
        if "\ufffd" not in own and own.strip():
            assert text[begin:end] == own.strip()
