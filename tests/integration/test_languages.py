"""Language codes on the way through a real server: every answer says which languages of the model were meant."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from dragoman.v1 import attention_pb2, attention_pb2_grpc, translation_pb2_grpc
from dragoman.v1 import translation_pb2 as pb
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.process import server_process

INPUT = pb.TranslationInput(text="the old dog")
PAIR: dict[str, Any] = {"text": "the old dog", "target_text": "a small dog"}

Stubs = tuple[translation_pb2_grpc.TranslationServiceStub, attention_pb2_grpc.AttentionServiceStub]


@pytest.fixture(scope="module")
def stubs(tiny_bundles: dict[Precision, Bundle]) -> Iterator[Stubs]:
    with (
        server_process(tiny_bundles["fp32"].folder) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield translation_pb2_grpc.TranslationServiceStub(channel), attention_pb2_grpc.AttentionServiceStub(channel)


def translate(stubs: Stubs, **codes: Any) -> pb.TranslateResponse:
    return stubs[0].Translate(pb.TranslateRequest(inputs=[INPUT], **codes), timeout=30)


def stream(stubs: Stubs, **codes: Any) -> pb.StreamTranslationResponse:
    *deltas, last = stubs[0].StreamTranslation(pb.StreamTranslationRequest(input=INPUT, **codes), timeout=30)
    assert {delta.source_language_code for delta in deltas} <= {""}  # it stands with the translation
    return last


def exchange(stubs: Stubs, **codes: Any) -> pb.ExchangeTranslationsResponse:
    config = pb.ExchangeTranslationsRequest(config=pb.ExchangeConfig(**codes))
    text = pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(id="a", input=INPUT))
    (response,) = stubs[0].ExchangeTranslations(iter([config, text]), timeout=30)
    return response


def score(stubs: Stubs, **codes: Any) -> pb.ScoreResponse:
    return stubs[0].Score(pb.ScoreRequest(inputs=[pb.ScoreInput(**PAIR)], **codes), timeout=30)


def align(stubs: Stubs, **codes: Any) -> attention_pb2.AlignResponse:
    request = attention_pb2.AlignRequest(inputs=[attention_pb2.AlignInput(**PAIR)], **codes)
    return stubs[1].Align(request, timeout=30)


def attention(stubs: Stubs, **codes: Any) -> attention_pb2.AttentionHeader:
    first, *_ = stubs[1].GetAttention(attention_pb2.GetAttentionRequest(**PAIR, **codes), timeout=30)
    return first.header


METHODS = [translate, stream, exchange, score, align, attention]


@pytest.mark.parametrize("method", METHODS)
def test_every_answer_names_the_languages_of_the_model(stubs: Stubs, method: Callable[..., object]) -> None:
    answer: Any = method(stubs, source_language_code="EN-us", target_language_code="fr_CA")
    assert (answer.source_language_code, answer.target_language_code) == ("en", "fr")


@pytest.mark.parametrize("method", METHODS)
def test_a_code_that_is_none_is_an_invalid_argument_of_every_method(
    stubs: Stubs, method: Callable[..., object]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(stubs, source_language_code="e n", target_language_code="a-" * 100_000)
    error: grpc.Call = caught.value  # type: ignore[assignment]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status, found = Status(), BadRequest()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    assert any(detail.Unpack(found) for detail in status.details)
    path = "config." if method is exchange else ""
    assert [(v.field, v.reason, v.description) for v in found.field_violations] == [
        (
            f"{path}source_language_code",
            "INVALID_LANGUAGE_CODE",
            'is not a BCP 47 language tag, such as "en" or "pt-BR"',
        ),
        (
            f"{path}target_language_code",
            "INVALID_LANGUAGE_CODE",
            "has 200000 characters, may have at most 64",
        ),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_direction_that_the_model_lacks_is_not_found_though_it_has_both_languages(
    stubs: Stubs, method: Callable[..., object]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(stubs, source_language_code="en-US", target_language_code="en-GB")
    error: grpc.Call = caught.value  # type: ignore[assignment]
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "does not translate en-US-en-GB; it translates en-" in (error.details() or "")
