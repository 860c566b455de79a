from collections.abc import Callable
from typing import Any

import grpc
import pytest

from dragoman import InternalError, InvalidArgumentError, Score, Token
from dragoman.v1.translation_pb2 import PRIORITY_INTERACTIVE, ScoreRequest, ScoreResponse, ScoreResult
from support.fake_server import MODEL, FakeServer, failed, scored

Call = Callable[..., Any]
LANGUAGES = {"source": "en", "target": "fr"}


def test_a_target_has_a_score(server: FakeServer, call: Call) -> None:
    score = call("score", "one", "un", **LANGUAGES)

    assert score == Score((Token(0, "p0", -0.5), Token(1, "p1", -0.5)), -1.0, -0.5, MODEL, "en", "fr")
    assert score.token_ids == (0, 1)
    [request] = server.score_requests
    assert (request.inputs[0].text, request.inputs[0].target_text) == ("one", "un")
    assert (request.source_language_code, request.target_language_code) == ("en", "fr")
    assert not request.HasField("length_penalty")


def test_token_ids_are_sent_as_they_are(server: FakeServer, call: Call) -> None:
    assert call("score", "one", (7, 9, 2), **LANGUAGES).token_ids == (7, 9, 2)
    call("score", "one", [], **LANGUAGES)

    assert [request.inputs[0].WhichOneof("target") for request in server.score_requests] == ["target_token_ids"] * 2


def test_a_list_gives_a_list(server: FakeServer, call: Call) -> None:
    scores = call(
        "score", ["one", "two"], ["un", [5]], **LANGUAGES, model="big", length_penalty=0.0, priority="interactive"
    )

    assert [score.token_ids for score in scores] == [(0, 1), (5,)]
    [request] = server.score_requests
    assert (request.model, request.length_penalty, request.priority) == ("big", 0.0, PRIORITY_INTERACTIVE)


def test_a_long_list_goes_out_in_several_calls(server: FakeServer, call: Call) -> None:
    scores = call("score", ["a"] * 300, [[number] for number in range(300)], **LANGUAGES)

    assert [score.token_ids for score in scores] == [(number,) for number in range(300)]
    assert sorted(len(request.inputs) for request in server.score_requests) == [44, 128, 128]


def test_a_failed_pair_is_raised_or_returned(server: FakeServer, call: Call) -> None:
    def answer(request: ScoreRequest, context: grpc.ServicerContext) -> ScoreResponse:
        response = scored(request, context)
        response.results[-1].error.CopyFrom(failed(grpc.StatusCode.INVALID_ARGUMENT, "Two lines").error)
        return response

    server.score_handler = answer
    with pytest.raises(InvalidArgumentError, match="input 1: Two lines"):
        call("score", ["a", "b"], ["c", "d"], **LANGUAGES)
    first, second = call("score", ["a", "b"], ["c", "d"], **LANGUAGES, errors="return")
    assert isinstance(first, Score)
    assert isinstance(second, InvalidArgumentError)
    with pytest.raises(InvalidArgumentError, match=r"^Two lines$"):
        call("score", "a", "b", **LANGUAGES)


@pytest.mark.parametrize("response", [ScoreResponse(), ScoreResponse(results=[ScoreResult()])])
def test_an_answer_that_makes_no_sense_is_an_internal_error(
    server: FakeServer, call: Call, response: ScoreResponse
) -> None:
    server.score_handler = lambda request, context: response
    with pytest.raises(InternalError):
        call("score", "a", "b", **LANGUAGES)


@pytest.mark.parametrize(
    ("text", "target", "options", "named"),
    [
        (["a", "b"], ["c"], {}, "target_text must be a list as long as that of the texts, which has 2"),
        (["a"], "c", {}, "target_text must be a list"),
        ("a", [-1], {}, "ids is"),
        ("a", ["c"], {}, "ids is"),
        ("a\ud800", "c", {}, "surrogate"),
        ("a", "c\ud800", {}, "surrogate"),
        ("a", "c", {"length_penalty": "high"}, "length_penalty is 'high'"),
        ("a", "c", {"priority": "high"}, "priority is 'high'"),
    ],
)
def test_what_cannot_be_sent_is_invalid(
    server: FakeServer, call: Call, text: Any, target: Any, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        call("score", text, target, **LANGUAGES, **options)
    assert server.score_requests == []


def test_an_option_that_does_not_exist_is_a_type_error(call: Call) -> None:
    with pytest.raises(TypeError, match="there is no option 'beam_size'"):
        call("score", "a", "b", **LANGUAGES, beam_size=4)
