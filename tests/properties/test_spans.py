"""Whatever the text: its tokens stand for parts of it, in order, and all letters belong to one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.text.tokenizer import MarianTokenizer, TextCodec, Tokenizer
from support.marian_tokenizer import write_tokenizer
from support.server_parts import train_tokenizer

# Characters that the rule expands, contracts, moves or drops, among those that it leaves alone.
_FRAGMENTS = st.sampled_from(
    [*"abé½ﬁ™Ⅳ…㎏日🙂´ĳﷺ\u0301\u200b\ufeff\u00a0\u2028\u2581 ", "  ", "ｶﾞ", "e\u0301", "각", "the ", "le chat"]
)
texts = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=3)), max_size=12).map("".join)


@pytest.fixture(scope="module", params=["sentencepiece", "marian"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "marian":
        write_tokenizer(folder)
        return MarianTokenizer(folder)
    train_tokenizer(folder / "tokenizer.model")
    return Tokenizer(folder / "tokenizer.model")


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
