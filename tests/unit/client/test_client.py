import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_health.v1.health_pb2 import HealthCheckResponse

from dragoman import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    DragomanError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from dragoman._calls import Attempt, Throttle
from dragoman._security import Security
from dragoman.v1 import translation_pb2
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import MODEL, FakeServer, abort, failed, translated, upper

Call = Callable[..., Any]


def test_a_text_gives_a_translation(server: FakeServer, call: Call) -> None:
    translation = call("translate", "good morning", source="en", target="fr")

    assert translation.text == "GOOD MORNING"
    assert translation.model == MODEL
    assert (translation.source_language, translation.target_language) == ("en", "fr")
    assert translation.token_ids == (7, 2)
    [request] = server.requests
    assert [source.text for source in request.inputs] == ["good morning"]
    assert (request.source_language_code, request.target_language_code) == ("en", "fr")
    assert request.model == ""
    assert not request.options.HasField("max_target_tokens")
    assert request.segmentation == translation_pb2.SEGMENTATION_UNSPECIFIED


OPTIONS: dict[str, Any] = {
    "max_target_tokens": 5,
    "min_target_tokens": 0,
    "max_length_ratio": 1.5,
    "beam_size": 4,
    "num_hypotheses": 2,
    "length_penalty": 0.0,
    "patience": 2.0,
    "temperature": 0.5,
    "top_k": 0,
    "top_p": 0.75,
    "seed": 2**64 - 1,
    "repetition_penalty": 1.25,
    "no_repeat_ngram_size": 3,
    "suppressed_words": ["house", "cat"],
}


def configs(
    server: FakeServer,
) -> list[TranslateRequest | translation_pb2.StreamTranslationRequest | translation_pb2.ExchangeConfig]:
    """What began each call."""
    exchanges = [request.config for request in server.exchange_requests if request.WhichOneof("message") == "config"]
    return [*server.requests, *server.stream_requests, *exchanges]


@pytest.mark.parametrize("method", ["translate", "stream", "exchange"])
def test_options_reach_the_server(server: FakeServer, call: Call, method: str) -> None:
    text = ["a"] if method == "exchange" else "a"
    others = {"segmentation": "sentence", "early_stopping": "never", "priority": "bulk", "vocabulary": "shortlist"}
    call(method, text, source="en", target="de", model="big", **others, **OPTIONS)

    [request] = configs(server)
    assert (request.source_language_code, request.target_language_code, request.model) == ("en", "de", "big")
    assert request.segmentation == translation_pb2.SEGMENTATION_SENTENCE
    assert request.priority == translation_pb2.PRIORITY_BULK
    options = translation_pb2.DecodingOptions(
        early_stopping=translation_pb2.EARLY_STOPPING_NEVER,
        vocabulary=translation_pb2.VOCABULARY_SHORTLIST,
        **OPTIONS,
    )
    assert request.options == options


@pytest.mark.parametrize("method", ["translate", "stream", "exchange"])
def test_options_that_are_none_are_left_to_the_server(server: FakeServer, call: Call, method: str) -> None:
    text = ["a"] if method == "exchange" else "a"
    nothing = dict.fromkeys([*OPTIONS, "early_stopping", "priority", "segmentation", "vocabulary"], None)
    call(method, text, source="en", target="de", **nothing)

    assert [request.options for request in configs(server)] == [translation_pb2.DecodingOptions()]


@pytest.mark.parametrize("method", ["translate", "stream", "exchange"])
def test_an_option_that_does_not_exist_is_a_type_error(call: Call, method: str) -> None:
    with pytest.raises(TypeError, match="there is no option 'beem_size'"):
        call(method, ["a"] if method == "exchange" else "a", source="en", target="fr", beem_size=4)


def test_a_target_prefix_goes_with_its_text(server: FakeServer, call: Call) -> None:
    call("translate", "a", source="en", target="fr", target_prefix="un")
    call("translate", ["a", "b"], source="en", target="fr", target_prefix=["", "deux"])
    call("stream", "a", source="en", target="fr", target_prefix="un")

    prefixes = [[source.target_prefix for source in request.inputs] for request in server.requests]
    assert prefixes == [["un"], ["", "deux"]]
    assert server.stream_requests[0].input.target_prefix == "un"


@pytest.mark.parametrize(("text", "prefix"), [("a", ["un"]), (["a"], "u"), (["a", "b"], ["un"])])
def test_target_prefixes_are_as_many_as_texts(call: Call, text: object, prefix: object) -> None:
    with pytest.raises(InvalidArgumentError, match="target_prefix must be a"):
        call("translate", text, source="en", target="fr", target_prefix=prefix)


def test_a_list_gives_a_list_in_order(call: Call) -> None:
    translations = call("translate", ["a", "", "c"], source="en", target="fr")

    assert [translation.text for translation in translations] == ["A", "", "C"]


def test_an_empty_list_needs_no_call(server: FakeServer, call: Call) -> None:
    assert call("translate", [], source="en", target="fr") == []
    assert server.requests == []


def test_a_long_list_goes_out_in_several_calls_and_comes_back_in_order(server: FakeServer, call: Call) -> None:
    first_calls = threading.Barrier(2, timeout=10)

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        # Passes only with two calls under way at a time; then the later one answers first.
        if request.inputs[0].text in ("text 0", "text 128"):
            first_calls.wait()
        if request.inputs[0].text == "text 0":
            time.sleep(0.02)
        return upper(request, context)

    server.handler = answer
    texts = [f"text {number}" for number in range(300)]

    translations = call("translate", texts, source="en", target="fr")

    assert [translation.text for translation in translations] == [text.upper() for text in texts]
    assert sorted(len(request.inputs) for request in server.requests) == [44, 128, 128]


def test_long_texts_are_spread_over_calls_by_their_bytes(server: FakeServer, call: Call) -> None:
    call("translate", ["é" * 300_000] * 3, source="fr", target="en")

    assert [len(request.inputs) for request in server.requests] == [1, 1, 1]


def test_the_first_failed_input_of_a_list_is_raised(server: FakeServer, call: Call) -> None:
    violation = BadRequest.FieldViolation(field="inputs[2].text", description="900 tokens")

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        response = upper(request, context)
        if request.inputs[0].text == "text 128":
            response.results[2].CopyFrom(
                failed(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "The text is too long",
                    ErrorInfo(reason="TEXT_TOO_LONG", domain="dragoman"),
                    BadRequest(field_violations=[violation]),
                )
            )
        return response

    server.handler = answer
    texts = [f"text {number}" for number in range(140)]

    with pytest.raises(InvalidArgumentError) as caught:
        call("translate", texts, source="en", target="fr")

    assert str(caught.value) == "input 130: The text is too long"
    assert caught.value.reason == "TEXT_TOO_LONG"
    assert caught.value.input_index == 130
    # The server speaks of its own call; the caller knows only the list.
    assert [violation.field for violation in caught.value.field_violations] == ["inputs[130].text"]

    results = call("translate", texts, source="en", target="fr", errors="return")

    assert isinstance(results[130], InvalidArgumentError)
    assert [result.text for result in results if not isinstance(result, DragomanError)] == [
        text.upper() for text in texts if text != "text 130"
    ]


def test_a_failed_single_text_is_raised(server: FakeServer, call: Call) -> None:
    server.handler = lambda request, context: TranslateResponse(
        results=[failed(grpc.StatusCode.NOT_FOUND, "No such pair")]
    )

    with pytest.raises(NotFoundError, match=r"^No such pair$") as caught:
        call("translate", "a", source="en", target="xx")
    assert caught.value.input_index is None


def test_a_failed_call_is_raised_with_its_details(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        info = ErrorInfo(reason="MODEL_NOT_FOUND", domain="dragoman", metadata={"model": "big"})
        abort(context, grpc.StatusCode.NOT_FOUND, "There is no model big", info)
        return TranslateResponse()

    server.handler = answer

    with pytest.raises(NotFoundError) as caught:
        call("translate", ["a"], source="en", target="fr", model="big", errors="return")

    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.metadata == {"model": "big"}
    assert caught.value.message == "There is no model big"


@pytest.mark.parametrize(
    "response",
    [
        TranslateResponse(),
        TranslateResponse(results=[translated("a"), translated("b")]),
        TranslateResponse(results=[translation_pb2.TranslationResult()]),
        TranslateResponse(
            results=[
                translation_pb2.TranslationResult(
                    translation=translation_pb2.Translation(segments=[translation_pb2.Segment()])
                )
            ]
        ),
    ],
    ids=["too few results", "too many results", "empty result", "segment without hypothesis"],
)
def test_an_answer_that_makes_no_sense_is_an_internal_error(
    server: FakeServer, call: Call, response: TranslateResponse
) -> None:
    server.handler = lambda request, context: response

    with pytest.raises(InternalError):
        call("translate", "a", source="en", target="fr")


@pytest.mark.parametrize(
    "options",
    [
        {"max_target_tokens": -1},
        {"max_target_tokens": 2**32},
        {"beam_size": 1.5},
        {"temperature": "hot"},
        {"suppressed_words": "house"},
        {"suppressed_words": ["\ud800"]},
        {"segmentation": "word"},
        {"early_stopping": True},
        {"priority": "high"},
        {"vocabulary": "small"},
    ],
    ids=str,
)
def test_options_that_cannot_be_sent_are_invalid(server: FakeServer, call: Call, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        call("translate", "a", source="en", target="fr", **options)
    assert server.requests == []


def test_a_number_that_cannot_be_sent_is_named_with_its_limits(server: FakeServer, call: Call) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call("translate", "a", source="en", target="fr", top_k=-1)
    assert str(caught.value) == "top_k is -1, must be from 0 to 4294967295"
    assert server.requests == []


def test_a_lone_surrogate_is_invalid(server: FakeServer, call: Call) -> None:
    with pytest.raises(InvalidArgumentError, match=r"input 1: .*surrogate"):
        call("translate", ["fine", "broken \ud800"], source="en", target="fr")
    assert server.requests == []


def test_the_deadline_is_the_timeout_of_the_call(server: FakeServer, call: Call) -> None:
    server.handler = server.hang

    with pytest.raises(DeadlineExceededError, match=r"^there was no answer within timeout=0\.1 seconds$") as caught:
        call("translate", "a", source="en", target="fr", timeout=0.1)
    assert isinstance(caught.value, TimeoutError)


def test_the_deadline_is_else_that_of_the_client(server: FakeServer) -> None:
    remaining: list[float] = []

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        remaining.append(context.time_remaining() or 0.0)
        return upper(request, context)

    server.handler = answer
    with Client(server.address) as client:
        client.translate("a", source="en", target="fr")
    with Client(server.address, timeout=600.0) as client:
        client.translate("a", source="en", target="fr")

    assert 20.0 < remaining[0] < 35.0
    assert 590.0 < remaining[1] < 605.0


def test_unavailable_is_tried_again(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if len(server.requests) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return upper(request, context)

    server.handler = answer

    assert call("translate", "a", source="en", target="fr").text == "A"
    assert len(server.requests) == 3


async def test_many_calls_lost_at_once_are_all_tried_again(server: FakeServer) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if server.requests.count(request) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "this replica is gone")
        return upper(request, context)

    server.handler = answer
    texts = [f"a{number}" for number in range(64)]
    async with AsyncClient(server.address) as client:
        answers = await asyncio.gather(*(client.translate(text, source="en", target="fr") for text in texts))
    assert [answer.text for answer in answers] == [text.upper() for text in texts]
    assert len(server.requests) == 128


def test_unavailable_is_raised_after_four_attempts(server: FakeServer, call: Call) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")

    with pytest.raises(UnavailableError, match="stopping"):
        call("translate", "a", source="en", target="fr")
    assert len(server.requests) == 4


@pytest.mark.parametrize("details", ["stopping", "Channel closed!"])
def test_calls_that_a_stopping_server_cancels_are_tried_again(server: FakeServer, call: Call, details: str) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if len(server.requests) < 3:
            context.abort(grpc.StatusCode.CANCELLED, details)
        return upper(request, context)

    server.handler = answer
    assert call("translate", "a", source="en", target="fr").text == "A"
    assert len(server.requests) == 3


def test_the_loss_of_a_connection_is_never_an_internal_error(server: FakeServer, call: Call) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.UNKNOWN, "Stream removed")

    with pytest.raises(UnavailableError, match=r"the connection to the server was lost \(Stream removed\)"):
        call("translate", "a", source="en", target="fr")
    assert len(server.requests) == 4


def test_a_client_whose_calls_nearly_all_fail_stops_trying_again() -> None:
    throttle = Throttle()
    assert [throttle.lose() for _ in range(100)] == [True] * 99 + [False]
    assert not Attempt("a:1", 30.0, throttle, Security()).pause(UnavailableError("stopping"))
    for _ in range(40):
        throttle.answer()
    assert Attempt("a:1", 30.0, throttle, Security()).pause(UnavailableError("stopping"))


def test_other_errors_are_not_tried_again(server: FakeServer, call: Call) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "broken")

    with pytest.raises(InternalError, match="broken"):
        call("translate", "a", source="en", target="fr")
    assert len(server.requests) == 1


def test_health_says_whether_the_server_is_ready(server: FakeServer, call: Call) -> None:
    server.set_serving(is_serving=True)
    assert call("health") is True
    server.set_serving(is_serving=False)
    assert call("health") is False


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with FakeServer() as stopped:
        return stopped.address


async def test_no_server_is_named_with_its_address(nowhere: str) -> None:
    expected = rf"^no server can be reached: is dragoman-server running at {nowhere}\?$"
    with Client(nowhere) as client:
        with pytest.raises(UnavailableError, match=expected):
            client.translate("a", source="en", target="fr")
        with pytest.raises(UnavailableError, match=expected):
            client.translate(["a"] * 1000, source="en", target="fr", errors="return")
        with pytest.raises(UnavailableError, match=expected):
            next(client.stream("a", source="en", target="fr"))
        with pytest.raises(UnavailableError, match=expected):
            next(client.exchange(["a"], source="en", target="fr"))
        with pytest.raises(UnavailableError, match=expected):
            client.health()
    async with AsyncClient(nowhere) as client:
        with pytest.raises(UnavailableError, match=expected):
            await client.translate("a", source="en", target="fr")
        with pytest.raises(UnavailableError, match=expected):
            await client.translate(["a"] * 1000, source="en", target="fr", errors="return")
        with pytest.raises(UnavailableError, match=expected):
            await anext(client.stream("a", source="en", target="fr"))
        with pytest.raises(UnavailableError, match=expected):
            await anext(client.exchange(["a"], source="en", target="fr"))
        with pytest.raises(UnavailableError, match=expected):
            await client.health()


@pytest.mark.parametrize("address", ["no-such-host.invalid:50051", "unix:/no/such/socket"])
def test_a_server_that_does_not_exist_is_named_likewise(address: str) -> None:
    with Client(address) as client, pytest.raises(UnavailableError, match=f"is dragoman-server running at {address}"):
        client.translate("a", source="en", target="fr")


async def test_health_of_a_model() -> None:
    with FakeServer() as server, Client(server.address) as client:
        server.health.set("de-en@1", HealthCheckResponse.SERVING)
        server.health.set("en-de", HealthCheckResponse.NOT_SERVING)
        assert (client.health("de-en@1"), client.health("en-de"), client.health()) == (True, False, True)
        with pytest.raises(NotFoundError):
            client.health("other")
        with pytest.raises(InvalidArgumentError):
            client.health("\ud800")
        async with AsyncClient(server.address) as other:
            assert await other.health("de-en@1")
            with pytest.raises(NotFoundError):
                await other.health("other")


async def test_health_of_a_server_that_does_not_answer_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        expected = rf"no answer within timeout=0\.2 seconds: is dragoman-server running at {address}\?"
        with Client(address) as client, pytest.raises(UnavailableError, match=expected):
            client.health(timeout=0.2)
        async with AsyncClient(address) as client:
            with pytest.raises(UnavailableError, match=expected):
                await client.health(timeout=0.2)
