"""Translations through a third language."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from dragoman import Pivot, Translation
from dragoman.v1 import translation_pb2 as pb
from support import fake_server
from support.fake_server import FakeServer

Call = Callable[..., Any]
LANGUAGES = {"source": "de", "target": "es"}
PIVOT = pb.Pivot(language_code="en", model="opus-mt-de-en@0123456789ab", vocabulary=pb.VOCABULARY_LANGUAGE)


def translation_of(call: Call, method: str) -> Translation:
    match method:
        case "stream":
            translation = call("stream", "a", **LANGUAGES)[1].result
        case "exchange":
            translation = call("exchange", ["a"], **LANGUAGES)[0][1]
        case "list":
            translation = call("translate", ["a", "b"], **LANGUAGES)[1]
        case _:
            translation = call(method, "a", **LANGUAGES)
    assert isinstance(translation, Translation)
    return translation


METHODS = ["translate", "list", "stream", "exchange"]


@pytest.mark.parametrize("method", METHODS)
def test_a_translation_names_its_pivot(server: FakeServer, call: Call, method: str) -> None:
    def translate(request: pb.TranslateRequest, context: grpc.ServicerContext) -> pb.TranslateResponse:
        response = fake_server.upper(request, context)
        response.pivot.CopyFrom(PIVOT)
        return response

    def stream(
        request: pb.StreamTranslationRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamTranslationResponse]:
        for response in fake_server.upper_stream(request, context):
            if response.HasField("translation"):
                response.pivot.CopyFrom(PIVOT)
            yield response

    def exchange(
        requests: Iterator[pb.ExchangeTranslationsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExchangeTranslationsResponse]:
        for response in fake_server.upper_exchange(requests, context):
            response.pivot.CopyFrom(PIVOT)
            yield response

    server.handler, server.stream_handler, server.exchange_handler = translate, stream, exchange
    translation = translation_of(call, method)

    assert translation.pivot == Pivot("en", "opus-mt-de-en@0123456789ab", "language")
    assert translation.model == fake_server.MODEL
    assert repr(translation).endswith(
        "pivot=Pivot(language='en', model='opus-mt-de-en@0123456789ab', vocabulary='language'))"
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_translation_by_one_model_has_none(call: Call, method: str) -> None:
    translation = translation_of(call, method)
    assert translation.pivot is None
    assert "pivot" not in repr(translation)
