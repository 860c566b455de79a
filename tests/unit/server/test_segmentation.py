import pytest

from dragoman_server.text.segmentation import Segmentation, SegmentedText, segment


def words(text: str) -> list[int]:
    """A tokenizer that needs no model: a token per word."""
    return [len(word) for word in text.split()]


def cut(text: str, segmentation: Segmentation = Segmentation.AUTO, segment_tokens: int = 6) -> SegmentedText:
    return segment(text, words, segmentation, segment_tokens)


def test_the_numbers_are_those_of_the_api() -> None:
    from dragoman.v1 import translation_pb2

    api = {name.removeprefix("SEGMENTATION_"): number for name, number in translation_pb2.Segmentation.items()}
    ours = {member.name: int(member) for member in Segmentation}
    assert ours == {"AUTO": api.pop("UNSPECIFIED"), **api}


@pytest.mark.parametrize("text", ["", " ", "\n", " \t\r\n\u3000\u2028 "])
@pytest.mark.parametrize("segmentation", Segmentation)
def test_blank_text_has_no_segments_and_is_kept(text: str, segmentation: Segmentation) -> None:
    result = cut(text, segmentation)
    assert result.segments == ()
    assert result.rejoin([]) == text


@pytest.mark.parametrize(
    "line_break", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
)
@pytest.mark.parametrize("segmentation", Segmentation)
def test_every_line_break_cuts(line_break: str, segmentation: Segmentation) -> None:
    result = cut(f"  one two{line_break}{line_break}\tthree ", segmentation)
    assert result.source_texts() == ["one two", "three"]
    assert result.separators() == ["  ", f"{line_break}{line_break}\t", " "]
    assert result.rejoin(["eins zwei", "drei"]) == f"  eins zwei{line_break}{line_break}\tdrei "


def test_spans_count_code_points() -> None:
    result = cut("🙂🙂 a\nb\u0301")
    assert [(s.begin, s.end) for s in result.segments] == [(0, 4), (5, 7)]


def test_a_short_line_is_one_segment() -> None:
    assert cut("One two. Three four. Five six.").source_texts() == ["One two. Three four. Five six."]


def test_a_long_line_is_split_into_packs_of_sentences() -> None:
    result = cut("One two. Three four.  Five six. Seven eight nine. Ten.")
    assert result.source_texts() == ["One two. Three four.  Five six.", "Seven eight nine. Ten."]
    assert result.separators() == ["", " ", ""]
    assert [len(s.token_ids) for s in result.segments] == [6, 4]


def test_a_long_sentence_stays_whole_and_alone() -> None:
    text = "One. Two three four five six seven eight. Nine."
    assert cut(text).source_texts() == ["One.", "Two three four five six seven eight.", "Nine."]


def test_packs_are_measured_as_they_will_be_encoded() -> None:
    def letters(text: str) -> list[int]:  # without a space between them, marks count twice
        return [0] * (len(text) + text.count("。") - text.endswith("。"))

    result = segment("ab。cd。ef。", letters, Segmentation.AUTO, 6)
    assert all(len(s.token_ids) <= 6 for s in result.segments)
    assert result.source_texts() == ["ab。", "cd。", "ef。"]


def test_lines_stay_whole_when_asked_for() -> None:
    text = "One two. Three four. Five six. Seven."
    assert cut(text, Segmentation.LINE).source_texts() == [text]


def test_sentences_are_apart_when_asked_for() -> None:
    assert cut("One. Two. Three.", Segmentation.SENTENCE).source_texts() == ["One.", "Two.", "Three."]


@pytest.mark.parametrize("segmentation", Segmentation)
def test_what_the_tokenizer_drops_is_kept_as_a_separator(segmentation: Segmentation) -> None:
    def visible(text: str) -> list[int]:
        return words(text.replace("\u200b", ""))

    result = segment("one\n\u200b\ntwo", visible, segmentation, 6)
    assert result.source_texts() == ["one", "two"]
    assert result.separators() == ["", "\n\u200b\n", ""]


def test_there_must_be_a_translation_for_every_segment() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        cut("one\ntwo").rejoin(["eins"])
