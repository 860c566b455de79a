from collections.abc import Callable
from typing import Any

import grpc
import pytest

from dragoman import AlignmentLink, DragomanError, InternalError, InvalidArgumentError, Suspicion, TextSpan
from dragoman.v1 import attention_pb2 as pb
from dragoman.v1 import translation_pb2
from dragoman.v1.translation_pb2 import DecodingOptions, TranslateRequest, TranslateResponse
from support.fake_attention import MODEL, align
from support.fake_server import FakeServer, status, upper

Call = Callable[..., Any]

PAIR = {"source": "en", "target": "fr"}


def test_a_pair_is_aligned(call: Call) -> None:
    alignment = call("align", "the cat", "un chat noir", **PAIR)

    assert (alignment.text, alignment.target_text, alignment.model) == ("the cat", "un chat noir", MODEL)
    assert alignment.word_links == alignment.token_links
    assert alignment.word_links[1:] == (AlignmentLink(1, 1, 0.5), AlignmentLink(1, 2, 0.5))
    assert alignment.pharaoh() == "0-0 1-1 1-2"
    assert alignment.word_pairs() == [("the", "un"), ("cat", "chat"), ("cat", "noir")]
    assert alignment.source_words == (TextSpan(0, 3), TextSpan(4, 7))
    assert [token.text for token in alignment.target_tokens] == ["un", "chat", "noir"]
    assert [token.logprob for token in alignment.target_tokens] == [-0.5] * 3
    assert not any(token.is_special for token in alignment.source_tokens + alignment.target_tokens)
    assert alignment.token_scores == ((0.5, 0.0), (0.0, 0.5), (0.0, 0.5))
    assert (alignment.method, alignment.layer, alignment.heads) == ("shifted", 1, (0, 1))
    assert repr(alignment) == "Alignment(text='the cat', target_text='un chat noir', num_word_links=3)"


def test_a_list_comes_back_in_order_over_several_calls(call: Call, server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(300)]
    targets = [None if number % 2 else f"x{number}" for number in range(300)]

    results = call("align", texts, targets, **PAIR)

    assert [each.text for each in results] == texts
    assert [each.target_text for each in results] == [
        target or text.upper() for text, target in zip(texts, targets, strict=True)
    ]
    assert [len(request.inputs) for request in server.align_requests] == [128, 128, 44]
    assert [each.text for each in call("align", texts[:2], **PAIR)] == texts[:2]


def test_what_was_asked_for_reaches_the_server(call: Call, server: FakeServer) -> None:
    options = {"method": "output_row", "layer": 0, "heads": [1, -1], "beam_size": 3, "model": "big", "priority": "bulk"}
    call("align", "a", [5, 2], **options, **PAIR)
    alignment = call("align", "a", **PAIR)

    first, second = server.align_requests
    assert first == pb.AlignRequest(
        inputs=[pb.AlignInput(text="a", target_token_ids=translation_pb2.TokenIds(ids=[5, 2]))],
        source_language_code="en",
        target_language_code="fr",
        model="big",
        options=DecodingOptions(beam_size=3),
        method=pb.ALIGNMENT_METHOD_OUTPUT_ROW,
        layer=0,
        heads=[1, -1],
        priority=translation_pb2.PRIORITY_BULK,
    )
    assert (second.HasField("layer"), second.HasField("options"), second.method) == (False, False, 0)
    assert alignment.target_text == "A"


def test_a_pair_at_fault_is_raised_or_returned(call: Call, server: FakeServer) -> None:
    def answer(request: pb.AlignRequest, context: grpc.ServicerContext) -> pb.AlignResponse:
        response = align(request, context)
        response.results[1].error.CopyFrom(status(grpc.StatusCode.INVALID_ARGUMENT, "The text is blank"))
        return response

    server.align_handler = answer
    first, second = call("align", ["a", "?"], ["b", "c"], errors="return", **PAIR)
    assert first.pharaoh() == "0-0"
    assert isinstance(second, InvalidArgumentError)
    with pytest.raises(InvalidArgumentError, match="input 1: The text is blank"):
        call("align", ["a", "?"], **PAIR)


def drop_result(response: pb.AlignResponse) -> None:
    del response.results[0]


def empty_result(response: pb.AlignResponse) -> None:
    response.results[0].Clear()


def drop_score(response: pb.AlignResponse) -> None:
    del response.results[0].alignment.token_scores[0]


def drop_span(response: pb.AlignResponse) -> None:
    del response.results[0].alignment.target_spans[0]


def drop_method(response: pb.AlignResponse) -> None:
    response.method = pb.ALIGNMENT_METHOD_UNSPECIFIED


@pytest.mark.parametrize("change", [drop_result, empty_result, drop_score, drop_span, drop_method])
def test_an_answer_that_makes_no_sense_is_an_error(
    call: Call, server: FakeServer, change: Callable[[pb.AlignResponse], None]
) -> None:
    def answer(request: pb.AlignRequest, context: grpc.ServicerContext) -> pb.AlignResponse:
        response = align(request, context)
        change(response)
        return response

    server.align_handler = answer
    with pytest.raises(InternalError):
        call("align", "a", "b", **PAIR)


@pytest.mark.parametrize(
    ("texts", "targets", "options"),
    [("a", "b", {"method": "best"}), ("a", "b", {"heads": 1}), (["a"], "b", {}), (["a"], ["b", "c"], {})],
)
def test_what_cannot_be_sent_is_refused(call: Call, texts: object, targets: object, options: dict[str, object]) -> None:
    with pytest.raises(DragomanError):
        call("align", texts, targets, **options, **PAIR)


def with_signals(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
    response = upper(request, context)
    if request.include_signals:
        signals = response.results[0].translation.segments[0].signals
        signals.source_coverage = 0.25
        signals.uncovered_spans.add(begin=1, end=3)
        signals.attention_entropy = 0.5
        signals.end_of_sentence_share = 0.75
        signals.repetition = 0.125
        signals.length_ratio = 2
        signals.suspicions.extend([translation_pb2.SUSPICION_UNCOVERED, 99])  # type: ignore[list-item]
    return response


def test_signals_come_when_they_are_asked_for(call: Call, server: FakeServer) -> None:
    server.handler = with_signals

    [segment] = call("translate", "text", include_signals=True, **PAIR).segments
    signals = segment.signals
    assert (signals.source_coverage, signals.attention_entropy, signals.end_of_sentence_share) == (0.25, 0.5, 0.75)
    assert (signals.repetition, signals.length_ratio) == (0.125, 2)
    assert signals.uncovered_spans == (TextSpan(1, 3),)
    assert signals.suspicions == (Suspicion.UNCOVERED, Suspicion.UNSPECIFIED)
    [segment] = call("translate", "text", **PAIR).segments
    assert segment.signals is None
