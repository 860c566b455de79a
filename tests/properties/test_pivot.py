"""Whatever the text and its translations: segments across two models leave nothing out and are in their places."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman_server.bundle.framing import Framing
from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis, Request
from dragoman_server.service.pivot import FirstLeg
from dragoman_server.service.plan import PlannedText
from dragoman_server.service.results import TranslatedText, translated_text
from dragoman_server.text.segmentation import Segmentation, SegmentedText, segment
from dragoman_server.text.tokenizer import TextCodec

EOS_ID = 0
FRAMING = Framing((), (EOS_ID,), (), (EOS_ID,))

# What decides where a text is cut, and what is translated of it.
_FRAGMENTS = st.sampled_from(
    [*".!?。！ \n\t\u3000", "   ", "12:30 ", "{name} ", "`a. B. c` ", "Ja. ", "Nein. ", "Ein Satz. ", "ein ", "句子。"]
)
texts = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=3)), max_size=20).map("".join)
translations = st.lists(_FRAGMENTS, max_size=6).map("".join)  # some are empty, blank, or without words
segmentations = st.sampled_from(Segmentation)
languages = st.sampled_from(["de", "en", "es", "zh", "ja"])


class Letters:
    """A codec that has an id for every character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) + 1 for character in text if not character.isspace()]

    def encode_without_a(self, text: str) -> list[int]:
        """Another model's, which drops a character."""
        return self.encode(text.replace("a", ""))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token_id - 1) for token_id in ids if token_id != EOS_ID)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.decode([token_id]) for token_id in ids]


LETTERS = Letters()
CODEC = cast(TextCodec, LETTERS)


@dataclass(frozen=True)
class Leg:
    """A text, and what a model made of each of its segments."""

    planned: PlannedText
    completions: Sequence[Completion]

    @property
    def segments(self) -> list[tuple[int, int]]:
        return [(source.begin, source.end) for source in self.planned.text.segments]


@dataclass(frozen=True)
class Both:
    first: Leg
    second: Leg
    result: TranslatedText


def leg(text: SegmentedText, first: FirstLeg | None, answers: Sequence[tuple[str, bool]]) -> Leg:
    """A leg with these translations of its segments, and whether each is cut off."""
    requests = [Request(FRAMING.frame(source.token_ids), 1000) for source in text.segments]
    completions = []
    for number, (answer, is_cut_off) in enumerate(answers):
        is_whole = not (answer and is_cut_off)
        ids = (*(ord(character) + 1 for character in answer), *[EOS_ID] * is_whole)
        reason = FinishReason.STOP if is_whole else FinishReason.LENGTH
        hypothesis = Hypothesis(ids, tuple(-1.0 - number - place for place in range(len(ids))), reason, 0.5)
        completions.append(Completion((hypothesis,), 0.5 * number, 0.25, 2.0))
    return Leg(PlannedText(text, FRAMING, requests, first=first), completions)


@st.composite
def across(draw: st.DrawFn) -> Both:
    source, pivot, target = draw(languages), draw(languages), draw(languages)
    encode: Callable[[str], list[int]] = draw(st.sampled_from([LETTERS.encode, LETTERS.encode_without_a]))
    return translated_twice(
        draw(texts),
        (encode, draw(segmentations), source, pivot),
        (LETTERS.encode, draw(segmentations), pivot, target),
        lambda _: (draw(translations), draw(st.booleans())),
    )


Cut = tuple[Callable[[str], list[int]], Segmentation, str, str]


def translated_twice(text: str, first: Cut, second: Cut, answer: Callable[[str], tuple[str, bool]]) -> Both:
    """A text through two models, each of which has its own tokens, segmentation and languages."""

    def cut(text: str, how: Cut) -> SegmentedText:
        encode, segmentation, *pair = how
        return segment(text, encode, segmentation, 12, (pair[0], pair[1]))

    whole = cut(text, first)
    one = leg(whole, None, [*map(answer, whole.source_texts())])
    halfway = FirstLeg.of(whole, one.planned.requests, one.completions, CODEC)
    again = cut(halfway.text, second)
    two = leg(again, halfway, [*map(answer, again.source_texts())])
    return Both(one, two, translated_text(two.planned, two.completions, CODEC))


def translated_alone(leg: Leg) -> TranslatedText:
    """What the model of a leg answers to a caller of its own."""
    alone = PlannedText(leg.planned.text, leg.planned.framing, leg.planned.requests)
    return translated_text(alone, leg.completions, CODEC)


@settings(deadline=None)
@given(across())
def test_the_text_is_that_of_the_second_translation_of_the_first(both: Both) -> None:
    assert both.second.planned.text.text == translated_alone(both.first).text
    assert both.result.text == translated_alone(both.second).text


@settings(deadline=None)
@given(across())
def test_segments_are_in_order_and_what_is_between_them_comes_back(both: Both) -> None:
    """With nothing between two segments, a space may be between their translations."""
    text, end, pattern = both.first.planned.text.text, 0, ""
    for part in both.result.segments:
        assert end <= part.begin < part.end <= len(text)
        pattern += (re.escape(text[end : part.begin]) or " ?") + re.escape(part.candidates[0].text)
        end = part.end
    assert re.fullmatch(pattern + re.escape(text[end:]), both.result.text)


@settings(deadline=None)
@given(across())
def test_every_segment_of_the_first_model_is_in_one_segment(both: Both) -> None:
    left = [*both.first.segments]
    requests, completions = [*both.first.planned.requests], [*both.first.completions]
    for part in both.result.segments:
        num_tokens, is_cut_off = 0, False
        while left and left[0][1] <= part.end:
            assert part.begin <= left.pop(0)[0]
            num_tokens += len(requests.pop(0).source_ids)
            is_cut_off |= completions.pop(0).hypotheses[0].finish_reason is FinishReason.LENGTH
        assert part.num_source_tokens == num_tokens
        if is_cut_off:
            assert part.candidates[0].hypothesis.finish_reason is FinishReason.LENGTH
    assert left == []
    assert both.result.num_source_tokens == sum(len(request.source_ids) for request in both.first.planned.requests)


@settings(deadline=None)
@given(across())
def test_every_token_of_the_second_model_is_in_one_segment_with_its_log_prob(both: Both) -> None:
    parts = [part.candidates[0] for part in both.result.segments]
    hypotheses = [completion.hypotheses[0] for completion in both.second.completions]
    chained = itertools.chain.from_iterable
    token_ids = [*chained(h.token_ids for h in hypotheses)]
    assert [*chained(part.hypothesis.token_ids for part in parts)] == token_ids
    assert [*chained(part.pieces for part in parts)] == CODEC.pieces(token_ids)
    logprobs = [*chained(h.token_logprobs for h in hypotheses)]
    assert [*chained(part.hypothesis.token_logprobs for part in parts)] == logprobs
    for hypothesis in (part.hypothesis for part in parts):
        assert hypothesis.score == hypothesis.sum_logprob / max(len(hypothesis.token_ids), 1) ** 0.5
        num_left = len(hypothesis.token_ids)
        while num_left:
            own = hypotheses.pop(0)
            num_left -= len(own.token_ids)
            if own.finish_reason is FinishReason.LENGTH:
                assert hypothesis.finish_reason is FinishReason.LENGTH


@settings(deadline=None)
@given(across())
def test_segments_are_as_small_as_they_can_be(both: Both) -> None:
    """As many as there are parts of the middle text that neither model's segments connect."""
    first = both.second.planned.first
    assert first is not None
    spans = [*first.spans, *both.second.segments]
    groups = [{index} for index in range(len(spans))]
    for (i, (begin, end)), (j, (other_begin, other_end)) in itertools.combinations(enumerate(spans), 2):
        # What is empty belongs to what it stands within.
        if begin < other_end and other_begin < end and groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for index in groups[j]:
                groups[index] = groups[i]
    assert len(both.result.segments) == len({id(group) for group in groups})


@settings(deadline=None)
@given(across())
def test_times_are_the_sums_of_both(both: Both) -> None:
    first, second, whole = translated_alone(both.first), translated_alone(both.second), both.result
    assert whole.queue_seconds == first.queue_seconds + second.queue_seconds
    assert whole.encode_seconds == first.encode_seconds + second.encode_seconds
    assert whole.decode_seconds == first.decode_seconds + second.decode_seconds
