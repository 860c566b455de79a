"""Whatever the text: nothing of it is lost, and nothing is cut where it should not be."""

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.text.segmentation import Segmentation, segment
from dragoman_server.text.sentences import sentence_spans

# Random characters hardly ever make sentences: mix them with what the rules look at.
_FRAGMENTS = st.sampled_from(
    [
        *".!?…。！？।؟ \n\r\t\u00a0\u2028\u200b\"'«»()",
        "Mr.",
        "z.B.",
        "3.",
        "No. 5",
        "... ",
        "? ",
        "The ",
        "the ",
        "«\u202f",
        "\u202f»",
    ]
)
texts = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=5)), max_size=40).map("".join)
segmentations = st.sampled_from(Segmentation)
limits = st.integers(-1, 12)


def by_word(text: str) -> Sequence[int]:
    return [0] * len(text.split())


def by_letter(text: str) -> Sequence[int]:
    return [0] * sum(not character.isspace() for character in text)


def by_letter_but_dropping(text: str) -> Sequence[int]:
    return by_letter(text.replace("\u200b", "").replace("a", ""))


encoders = st.sampled_from([by_word, by_letter, by_letter_but_dropping])


@settings(deadline=None)
@given(texts, encoders, segmentations, limits)
def test_separators_and_segments_are_the_text(
    text: str, encode: Callable[[str], Sequence[int]], segmentation: Segmentation, limit: int
) -> None:
    result = segment(text, encode, segmentation, limit)
    assert result.rejoin(result.source_texts()) == text


@settings(deadline=None)
@given(texts, encoders, segmentations, limits)
def test_segments_are_in_order_not_empty_and_without_line_breaks(
    text: str, encode: Callable[[str], Sequence[int]], segmentation: Segmentation, limit: int
) -> None:
    result = segment(text, encode, segmentation, limit)
    end = 0
    for part, source in zip(result.segments, result.source_texts(), strict=True):
        assert end <= part.begin < part.end <= len(text)
        assert source == source.strip()
        assert len(source.splitlines()) == 1
        assert part.token_ids == tuple(encode(source)) != ()
        end = part.end


@settings(deadline=None)
@given(texts, encoders, segmentations, limits)
def test_separators_have_nothing_to_translate(
    text: str, encode: Callable[[str], Sequence[int]], segmentation: Segmentation, limit: int
) -> None:
    for separator in segment(text, encode, segmentation, limit).separators():
        assert len(encode(separator)) == 0


@settings(deadline=None)
@given(texts, limits)
def test_a_segment_over_the_limit_is_a_single_sentence(text: str, limit: int) -> None:
    result = segment(text, by_letter, Segmentation.PACKED, limit)
    for part, source in zip(result.segments, result.source_texts(), strict=True):
        assert len(part.token_ids) <= limit or len(list(sentence_spans(source))) == 1


@settings(deadline=None)
@given(texts)
def test_sentences_are_stripped_and_leave_out_only_white_space(line: str) -> None:
    end = 0
    for begin, sentence_end in sentence_spans(line):
        assert line[end:begin].strip() == ""
        assert line[begin:sentence_end].strip() == line[begin:sentence_end] != ""
        end = sentence_end
    assert line[end:].strip() == ""
