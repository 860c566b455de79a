"""Whatever the text: nothing of it is lost, and nothing is cut where it should not be."""

from collections.abc import Callable, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dragoman_server.text.segmentation import Segmentation, SegmentedText, segment
from dragoman_server.text.sentences import sentence_spans
from dragoman_server.text.verbatim import has_words

# Random characters hardly ever make sentences: mix them with what the rules look at.
_FRAGMENTS = st.sampled_from(
    [
        *".!?…。！？।؟ \n\r\t\u00a0\u2028\u200b\"'«»()",
        "\u202f",
        "   ",
        "Mr.",
        "etc. ",
        "12:30 ",
        "{name} ",
        "https://a.b/c ",
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
languages = st.sampled_from(["en", "de", "fr", "es-MX", "el", "ja", "ru", "xx", ""])


def by_word(text: str) -> Sequence[int]:
    return [0] * len(text.split())


def by_letter(text: str) -> Sequence[int]:
    return [0] * sum(not character.isspace() for character in text)


def without_dropped(text: str) -> str:
    return text.replace("\u200b", "").replace("a", "")


def by_letter_but_dropping(text: str) -> Sequence[int]:
    return by_letter(without_dropped(text))


encoders = st.sampled_from([by_word, by_letter, by_letter_but_dropping])


@st.composite
def segmented(draw: st.DrawFn) -> tuple[SegmentedText, Callable[[str], Sequence[int]]]:
    """A text that is cut somehow, for a target without spaces between sentences, and how it is encoded."""
    encode = draw(encoders)
    result = segment(draw(texts), encode, draw(segmentations), draw(limits), (draw(languages), "ja"))
    return result, encode


@settings(deadline=None)
@given(segmented())
def test_separators_and_segments_are_the_text(cut: tuple[SegmentedText, Callable[[str], Sequence[int]]]) -> None:
    result, _ = cut
    assert result.rejoin(result.source_texts()) == result.text


@settings(deadline=None)
@given(segmented())
def test_segments_are_in_order_not_empty_and_without_line_breaks(
    cut: tuple[SegmentedText, Callable[[str], Sequence[int]]],
) -> None:
    result, encode = cut
    end = 0
    for part, source in zip(result.segments, result.source_texts(), strict=True):
        assert end <= part.begin < part.end <= len(result.text)
        assert source == source.strip()
        assert len(source.splitlines()) == 1
        assert part.token_ids == tuple(encode(source)) != ()
        end = part.end


@settings(deadline=None)
@given(segmented())
@example((segment(".\na", by_letter_but_dropping, Segmentation.LINE, 0, ("en", "ja")), by_letter_but_dropping))
def test_separators_have_nothing_to_translate(cut: tuple[SegmentedText, Callable[[str], Sequence[int]]]) -> None:
    result, encode = cut
    for separator in result.separators():
        assert not has_words(without_dropped(separator) if encode is by_letter_but_dropping else separator)


@settings(deadline=None)
@given(
    st.lists(st.from_regex(r"\A[A-Z][a-z]{3,6} [a-z]{4,6}[.!?]\Z"), min_size=2, max_size=12),
    st.data(),
    st.sampled_from([Segmentation.SENTENCE, Segmentation.PACKED]),
    limits,
)
def test_whatever_white_space_is_between_sentences_comes_back(
    sentences: list[str], data: st.DataObject, segmentation: Segmentation, limit: int
) -> None:
    white_space = st.text(" \t\n\u00a0\u202f\u2003\u2028\u3000\x1f", min_size=1, max_size=4)
    separators = [data.draw(white_space) for _ in sentences[1:]]
    text = "".join(part for pair in zip(sentences, [*separators, ""], strict=True) for part in pair)
    result = segment(text, by_word, segmentation, limit, ("en", "fr"))
    translations = [source.upper() for source in result.source_texts()]
    assert result.rejoin(translations) == text.upper()
    assert all("  " not in source and set(source) & set("\t\u00a0\u3000") == set() for source in result.source_texts())


@settings(deadline=None)
@given(texts, limits, languages)
def test_a_segment_over_the_limit_is_a_single_sentence(text: str, limit: int, language: str) -> None:
    result = segment(text, by_letter, Segmentation.PACKED, limit, (language, "en"))
    for part, source in zip(result.segments, result.source_texts(), strict=True):
        assert len(part.token_ids) <= limit or len(list(sentence_spans(source, language))) == 1


@settings(deadline=None)
@given(texts, languages)
def test_sentences_are_stripped_and_leave_out_only_white_space(line: str, language: str) -> None:
    end = 0
    for begin, sentence_end in sentence_spans(line, language):
        assert line[end:begin].strip() == ""
        assert line[begin:sentence_end].strip() == line[begin:sentence_end] != ""
        end = sentence_end
    assert line[end:].strip() == ""
