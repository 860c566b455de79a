"""Which languages an answer is said to be of: those of the model, which need not be those of the call."""

from collections.abc import Callable
from typing import Any

import pytest

from support import fake_attention, fake_server
from support.fake_server import FakeServer

Call = Callable[..., Any]
LANGUAGES = {"source": "en-US", "target": "fr-FR"}


def result_of(call: Call, method: str) -> Any:
    match method:
        case "stream":
            return call("stream", "a", **LANGUAGES)[1].result
        case "exchange":
            return call("exchange", ["a"], **LANGUAGES)[0][1]
        case "score":
            return call("score", "a", "b", **LANGUAGES)
        case "alignment of attention":
            return call("attention", "a", "b", **LANGUAGES).alignment()
        case _:
            return call(method, "a", **LANGUAGES)


METHODS = ["translate", "stream", "exchange", "score", "attention", "align", "alignment of attention"]


@pytest.mark.parametrize("method", METHODS)
def test_languages_are_those_of_the_model(call: Call, method: str) -> None:
    result = result_of(call, method)
    assert (result.source_language, result.target_language) == ("en", "fr")


@pytest.mark.parametrize("method", METHODS)
def test_languages_are_those_of_the_call_where_the_server_does_not_tell(
    call: Call, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fake_server, fake_attention):
        monkeypatch.setattr(module, "languages", lambda source, target: {})
    result = result_of(call, method)
    assert (result.source_language, result.target_language) == ("en-US", "fr-FR")


def test_every_text_of_a_list_has_them(server: FakeServer, call: Call) -> None:
    results = call("translate", ["a"] * 300, **LANGUAGES)
    assert {(result.source_language, result.target_language) for result in results} == {("en", "fr")}
    assert {request.source_language_code for request in server.requests} == {"en-US"}
