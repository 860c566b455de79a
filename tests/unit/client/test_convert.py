from typing import get_args

import pytest

from dragoman import FinishReason, Segmentation, TextSpan, Token, TranslateOptions, Translation, Vocabulary
from dragoman._convert import translations
from dragoman._lists import Batch
from dragoman._requests import translate_inputs
from dragoman.v1 import translation_pb2
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse


def translate_one(hypothesis: translation_pb2.Hypothesis) -> Translation:
    segment = translation_pb2.Segment(
        source_span=translation_pb2.TextSpan(begin=2, end=9),
        hypotheses=[hypothesis],
        source_tokens=6,
    )
    message = translation_pb2.Translation(text="Chat", segments=[segment])
    message.stats.queue_time.FromNanoseconds(1_500_000_000)
    message.stats.encode_time.FromMilliseconds(2)
    message.stats.decode_time.FromMicroseconds(30)
    message.stats.source_tokens = 6
    message.stats.target_tokens = 2
    request = TranslateRequest(
        inputs=[translation_pb2.TranslationInput(text="Cat")],
        source_language_code="en",
        target_language_code="fr",
    )
    response = TranslateResponse(results=[translation_pb2.TranslationResult(translation=message)], model="default@1")
    [result] = translations(Batch(request, [0]), response)
    assert isinstance(result, Translation)
    return result


def test_every_field_of_a_translation_is_converted() -> None:
    result = translate_one(
        translation_pb2.Hypothesis(
            text="Chat",
            tokens=[
                translation_pb2.Token(id=11, piece="▁Chat", logprob=-0.25),
                translation_pb2.Token(id=2, piece="</s>", logprob=-0.5),
            ],
            sum_logprob=-0.75,
            score=-0.375,
            finish_reason=translation_pb2.FINISH_REASON_STOP,
        )
    )

    assert result.text == "Chat"
    assert (result.model, result.source_language, result.target_language) == (
        "default@1",
        "en",
        "fr",
    )
    [segment] = result.segments
    assert segment.source_span == TextSpan(2, 9)
    assert segment.source_tokens == 6
    [best] = segment.hypotheses
    assert best.text == "Chat"
    assert best.tokens == (Token(11, "▁Chat", -0.25), Token(2, "</s>", -0.5))
    assert (best.sum_logprob, best.score) == (-0.75, -0.375)
    assert best.finish_reason is FinishReason.STOP
    assert result.stats.queue_seconds == 1.5
    assert result.stats.encode_seconds == pytest.approx(0.002)
    assert result.stats.decode_seconds == pytest.approx(0.00003)
    assert (result.stats.source_tokens, result.stats.target_tokens) == (6, 2)


def test_every_finish_reason_of_the_proto_is_known() -> None:
    reasons = {
        name: translate_one(translation_pb2.Hypothesis(finish_reason=value)).finish_reason
        for name, value in translation_pb2.FinishReason.items()
    }
    assert reasons == {f"FINISH_REASON_{reason.name}": reason for reason in FinishReason}


def test_a_finish_reason_of_the_future_is_unspecified() -> None:
    hypothesis = translation_pb2.Hypothesis.FromString(b"\x28\x63")  # finish_reason = 99
    assert hypothesis.finish_reason == 99
    assert translate_one(hypothesis).finish_reason is FinishReason.UNSPECIFIED


@pytest.mark.parametrize("segmentation", [None, *get_args(Segmentation)])
def test_every_segmentation_can_be_asked_for(segmentation: Segmentation | None) -> None:
    options: TranslateOptions = {"segmentation": segmentation}
    [batch] = translate_inputs(["a"], None, source="en", target="fr", options=options).batches
    name = translation_pb2.Segmentation.Name(batch.request.segmentation)
    assert name == f"SEGMENTATION_{str(segmentation or 'unspecified').upper()}"


def translated_over(vocabulary: int) -> Vocabulary | None:
    """What the SDK says where the server sends this number."""
    message = translation_pb2.Translation.FromString(bytes([0x20, vocabulary]))
    response = TranslateResponse(results=[translation_pb2.TranslationResult(translation=message)])
    request = TranslateRequest(inputs=[translation_pb2.TranslationInput(text="Cat")])
    [result] = translations(Batch(request, [0]), response)
    assert isinstance(result, Translation)
    return result.vocabulary


def test_a_translation_says_what_it_was_chosen_from() -> None:
    names = {name: translated_over(value) for name, value in translation_pb2.Vocabulary.items()}
    known = {f"VOCABULARY_{name.upper()}": name for name in get_args(Vocabulary)}
    assert names == known | {"VOCABULARY_UNSPECIFIED": None}
    assert translated_over(99) is None


def test_every_suspicion_of_the_proto_is_known() -> None:
    for name, value in translation_pb2.Suspicion.items():
        message = translation_pb2.Segment(hypotheses=[translation_pb2.Hypothesis()])
        message.signals.suspicions.append(value)
        response = TranslateResponse(results=[{"translation": {"segments": [message]}}])  # type: ignore[list-item]
        [result] = translations(Batch(TranslateRequest(inputs=[{}]), [0]), response)  # type: ignore[list-item]
        assert isinstance(result, Translation)
        assert result.segments[0].signals is not None
        [suspicion] = result.segments[0].signals.suspicions
        assert name == f"SUSPICION_{suspicion.name}"
