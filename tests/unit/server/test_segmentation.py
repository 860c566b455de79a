import pytest

from dragoman_server.text.segmentation import Segmentation, SegmentedText, lines, segment


def words(text: str) -> list[int]:
    """A tokenizer that needs no model: a token per word."""
    return [len(word) for word in text.split()]


def cut(
    text: str, segmentation: Segmentation = Segmentation.PACKED, segment_tokens: int = 6, target: str = "fr"
) -> SegmentedText:
    return segment(text, words, segmentation, segment_tokens, ("en", target))


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


@pytest.mark.parametrize("segmentation", [Segmentation.SENTENCE, Segmentation.PACKED])
@pytest.mark.parametrize(
    "separator", ["\t", " \t", "\t\t", "  ", "   ", "\u00a0", "\u202f", "\u3000", " \u00a0", "\x1f", "\n"]
)
def test_white_space_between_sentences_comes_back(separator: str, segmentation: Segmentation) -> None:
    sentences = ["One two.", "Three four!", "Five six?"] * 10
    result = cut(separator.join(sentences), segmentation, segment_tokens=100)
    assert result.source_texts() == sentences
    assert result.separators()[1:-1] == [separator] * 29


@pytest.mark.parametrize("segmentation", [Segmentation.SENTENCE, Segmentation.PACKED])
@pytest.mark.parametrize("gap", ["\t", " \t ", "   ", "\u00a0 \u00a0"])
def test_wide_gaps_cut_wherever_they_are_in_a_line(gap: str, segmentation: Segmentation) -> None:
    result = cut(f"Name{gap}the price", segmentation)
    assert result.source_texts() == ["Name", "the price"]
    assert result.separators() == ["", gap, ""]


@pytest.mark.parametrize("segmentation", Segmentation)
def test_a_narrow_gap_in_a_sentence_is_the_models(segmentation: Segmentation) -> None:
    assert cut("Name  the\u00a0price", segmentation).source_texts() == ["Name  the\u00a0price"]


def test_lines_stay_whole_when_asked_for_whatever_stands_in_them() -> None:
    text = "One two. Three four.\tFive six.    Seven."
    assert cut(text, Segmentation.LINE).source_texts() == [text]


def test_spans_count_code_points() -> None:
    result = cut("🙂🙂 a\nb\u0301")
    assert [(s.begin, s.end) for s in result.segments] == [(0, 4), (5, 7)]


def test_a_short_line_is_one_segment() -> None:
    assert cut("One two. Three four. Five six.").source_texts() == ["One two. Three four. Five six."]


def test_a_long_line_is_split_into_packs_of_sentences() -> None:
    result = cut("One two. Three four. Five six. Seven eight nine. Ten.")
    assert result.source_texts() == ["One two. Three four. Five six.", "Seven eight nine. Ten."]
    assert result.separators() == ["", " ", ""]
    assert [len(s.token_ids) for s in result.segments] == [6, 4]


def test_a_long_sentence_stays_whole_and_alone() -> None:
    text = "One. Two three four five six seven eight. Nine."
    assert cut(text).source_texts() == ["One.", "Two three four five six seven eight.", "Nine."]


def test_packs_are_measured_as_they_will_be_encoded() -> None:
    def letters(text: str) -> list[int]:  # without a space between them, marks count twice
        return [0] * (len(text) + text.count("。") - text.endswith("。"))

    result = segment("ab。cd。ef。", letters, Segmentation.PACKED, 6, ("ja", "en"))
    assert all(len(s.token_ids) <= 6 for s in result.segments)
    assert result.source_texts() == ["ab。", "cd。", "ef。"]


def test_sentences_are_apart_when_asked_for() -> None:
    assert cut("One. Two. Three.", Segmentation.SENTENCE).source_texts() == ["One.", "Two.", "Three."]


def test_sentences_end_as_they_do_in_the_language_of_the_source() -> None:
    text = "Das kostet 3 Mio. Euro."
    assert segment(text, words, Segmentation.SENTENCE, 6, ("de", "en")).source_texts() == [text]
    assert len(segment(text, words, Segmentation.SENTENCE, 6, ("en", "de")).segments) == 2


@pytest.mark.parametrize(("target", "joined"), [("fr", "Un. Deux."), ("zh-Hant", "Un.Deux."), ("JA", "Un.Deux.")])
def test_sentences_without_a_space_get_one_in_languages_that_have_it(target: str, joined: str) -> None:
    result = cut("一。二。", Segmentation.SENTENCE, target=target)
    assert result.source_texts() == ["一。", "二。"]
    assert result.rejoin(["Un.", "Deux."]) == joined


@pytest.mark.parametrize("segmentation", Segmentation)
def test_what_the_tokenizer_drops_is_kept_as_a_separator(segmentation: Segmentation) -> None:
    def visible(text: str) -> list[int]:
        return words(text.replace("\u0640", ""))

    result = segment("one\n\u0640\ntwo", visible, segmentation, 6, ("en", "fr"))
    assert result.source_texts() == ["one", "two"]
    assert result.separators() == ["", "\n\u0640\n", ""]


@pytest.mark.parametrize("segmentation", Segmentation)
@pytest.mark.parametrize("line", ["12:30", "•", "---", "🙂 🙂", "1,234.56", "½", "{name}", "https://example.com/a?b=c"])
def test_a_line_without_words_is_kept_as_it_is(line: str, segmentation: Segmentation) -> None:
    result = cut(f"one\n {line}\ntwo", segmentation)
    assert result.source_texts() == ["one", "two"]
    assert result.separators() == ["", f"\n {line}\n", ""]


def test_so_is_a_sentence_without_words() -> None:
    result = cut("One. 12:30! Two.", Segmentation.SENTENCE)
    assert result.source_texts() == ["One.", "Two."]
    assert result.separators() == ["", " 12:30! ", ""]


def test_but_not_where_every_line_is_asked_for() -> None:
    result = lines("12:30\n \n One. Two.", words)
    assert result.source_texts() == ["12:30", "One. Two."]
    assert [segment.token_ids for segment in result.segments] == [(5,), (4, 4)]


def test_there_must_be_a_translation_for_every_segment() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        cut("one\ntwo").rejoin(["eins"])
