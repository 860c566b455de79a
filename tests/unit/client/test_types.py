import dataclasses

import pytest

from dragoman import FinishReason, Hypothesis, RequestStats, Score, Segment, TextSpan, Token, Translation

STATS = RequestStats(0.0, 0.0, 0.0, 0, 0)


def hypothesis(text: str, *logprobs: float, reason: FinishReason = FinishReason.STOP) -> Hypothesis:
    tokens = tuple(Token(index, f"p{index}", value) for index, value in enumerate(logprobs))
    total = sum(logprobs)
    return Hypothesis(text, tokens, total, total / len(logprobs), reason)


def translation(text: str, *segments: tuple[Hypothesis, ...]) -> Translation:
    return Translation(
        text=text,
        segments=tuple(Segment(TextSpan(0, 1), hypotheses, 3) for hypotheses in segments),
        model="default@0",
        source_language="en",
        target_language="fr",
        stats=STATS,
    )


def test_a_single_segment_speaks_for_the_text() -> None:
    best, second = hypothesis("un", -1.0, -2.0), hypothesis("une", -3.0, -4.0)
    result = translation("un\n", (best, second))

    assert result.hypotheses == (best, second)
    assert result.tokens == best.tokens
    assert result.token_ids == best.token_ids == (0, 1)
    assert result.sum_logprob == -3.0
    assert result.score == -1.5
    assert result.finish_reason is FinishReason.STOP


def test_several_segments_add_up() -> None:
    first, second = hypothesis("un", -1.0, -2.0), hypothesis("deux", -4.0)
    result = translation("un\ndeux", (first, hypothesis("une", -9.0)), (second,))

    assert result.tokens == first.tokens + second.tokens
    assert result.sum_logprob == -7.0
    assert result.score == pytest.approx(-7.0 / 3)
    assert result.hypotheses == (Hypothesis("un\ndeux", result.tokens, -7.0, result.score, FinishReason.STOP),)


def test_blank_text_has_an_empty_hypothesis() -> None:
    result = translation("  \n")

    assert result.hypotheses == (Hypothesis("  \n", (), 0.0, 0.0, FinishReason.STOP),)
    assert result.tokens == ()
    assert result.score == result.sum_logprob == 0.0


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ((FinishReason.STOP, FinishReason.STOP), FinishReason.STOP),
        ((FinishReason.STOP, FinishReason.LENGTH), FinishReason.LENGTH),
        ((FinishReason.UNSPECIFIED, FinishReason.LENGTH), FinishReason.LENGTH),
        ((FinishReason.UNSPECIFIED, FinishReason.STOP), FinishReason.UNSPECIFIED),
    ],
)
def test_a_segment_cut_off_makes_the_text_cut_off(reasons: tuple[FinishReason, ...], expected: FinishReason) -> None:
    segments = [(hypothesis("un", -1.0, reason=reason),) for reason in reasons]
    assert translation("un un", *segments).finish_reason is expected


def test_values_are_immutable() -> None:
    result = translation("un", (hypothesis("un", -1.0),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "deux"  # type: ignore[misc]


LONG = translation("Il fait beau. " * 200, *[(hypothesis("Il fait beau.", *[-0.5] * 30),)] * 200)


def test_a_translation_prints_as_its_text() -> None:
    assert str(LONG) == f"{LONG}" == LONG.text
    assert str(LONG.segments[0]) == str(LONG.segments[0].hypotheses[0]) == "Il fait beau."


def test_a_value_that_holds_many_others_is_shown_in_a_line() -> None:
    result = translation("Un chat.", (hypothesis("Un chat.", -1.0, -2.0),))
    assert repr(result) == "Translation(text='Un chat.', score=-1.5, num_segments=1, model='default@0')"
    assert repr(result.hypotheses[0]) == "Hypothesis(text='Un chat.', score=-1.5, num_tokens=2)"
    assert repr(result.segments[0]) == (
        "Segment(source_span=TextSpan(begin=0, end=1), text='Un chat.', num_hypotheses=1)"
    )
    score = Score(result.tokens, -3.0, -1.5, "default@0", "en", "fr")
    assert repr(score) == str(score) == "Score(score=-1.5, sum_logprob=-3.0, num_tokens=2)"


def test_a_long_text_is_clipped_where_it_is_shown() -> None:
    assert len(repr(LONG)) < 200
    assert "\n" not in repr(translation("a\n" * 100))
    assert "..." in repr(LONG)


def test_values_are_equal_by_all_they_hold() -> None:
    one, same, other = (translation("un", (hypothesis("un", logprob),)) for logprob in (-1.0, -1.0, -2.0))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
