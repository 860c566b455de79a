"""Lists that take several calls, and what becomes of the others where one of them fails."""

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from dragoman import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    DragomanError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    RequestCancelledError,
    ResourceExhaustedError,
    Translation,
    UnavailableError,
)
from dragoman._requests import MAX_SEGMENTS_PER_CALL
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, Handler, abort, scored, upper

Call = Callable[..., Any]
LANGUAGES = {"source": "en", "target": "fr"}
# Three calls, in this order.
TEXTS = [f"text {number}" for number in range(300)]
RETRY_SECONDS = 0.2


def too_many_segments(context: grpc.ServicerContext) -> None:
    info = ErrorInfo(reason="TOO_MANY_SEGMENTS", domain="dragoman")
    violation = BadRequest.FieldViolation(field="inputs", description="have too many", reason="TOO_MANY_SEGMENTS")
    abort(context, grpc.StatusCode.INVALID_ARGUMENT, "inputs: too many", info, BadRequest(field_violations=[violation]))


def too_large(context: grpc.ServicerContext) -> None:
    abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 4)")


def too_many_inputs(context: grpc.ServicerContext) -> None:
    abort(context, grpc.StatusCode.INVALID_ARGUMENT, "inputs: too many", ErrorInfo(reason="TOO_MANY_INPUTS"))


def failing(fails: Callable[[TranslateRequest], bool], fail: Callable[..., None]) -> Handler:
    """A handler that fails some requests, before it answers the others."""

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if fails(request):
            fail(context)
        return upper(request, context)

    return answer


def anything(_: TranslateRequest) -> bool:
    return True


def begins_with(text: str) -> Callable[[TranslateRequest], bool]:
    return lambda request: request.inputs[0].text == text


def sizes(server: FakeServer) -> list[int]:
    return [len(request.inputs) for request in server.requests]


def texts_of(results: list[Translation | DragomanError]) -> list[str]:
    """The translation of each text, or the name of its error."""
    return [result.text if isinstance(result, Translation) else type(result).__name__ for result in results]


# -- how large calls are -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["Hi.\n" * 40, "Hi! " * 40, "Hi…\r\n" * 40, "好。" * 40, "One line\n" * 40, "¿Qué?\u2028" * 40]
)
def test_calls_are_limited_by_their_segments(server: FakeServer, call: Call, text: str) -> None:
    translations = call("translate", [text] * 128, **LANGUAGES)

    assert len(translations) == 128
    assert sum(sizes(server)) == 128
    assert all(size * 40 <= MAX_SEGMENTS_PER_CALL for size in sizes(server))
    assert max(sizes(server)) * 2 * 40 > MAX_SEGMENTS_PER_CALL


@pytest.mark.parametrize("text", ["A sentence", "A sentence.", "A sentence...", "A line\n", "A line.\r\n", ""])
def test_a_text_of_one_segment_counts_as_one(server: FakeServer, call: Call, text: str) -> None:
    call("translate", [text] * 256, **LANGUAGES)
    assert sizes(server) == [128, 128]


def test_a_text_of_more_segments_goes_alone(server: FakeServer, call: Call) -> None:
    call("translate", ["a", "Hi.\n" * 3000, "b"], **LANGUAGES)
    assert sizes(server) == [1, 1, 1]


@pytest.mark.parametrize("fail", [too_many_segments, too_large, too_many_inputs])
@pytest.mark.parametrize("most", [50, 1])
def test_a_call_with_too_much_is_split(server: FakeServer, call: Call, fail: Callable[..., None], most: int) -> None:
    server.handler = failing(lambda request: len(request.inputs) > most, fail)
    texts = TEXTS[:140]

    assert texts_of(call("translate", texts, **LANGUAGES)) == [text.upper() for text in texts]


@pytest.mark.parametrize("fail", [too_many_segments, too_large])
def test_a_text_that_is_too_much_by_itself_has_an_error_of_its_own(
    server: FakeServer, call: Call, fail: Callable[..., None]
) -> None:
    server.handler = failing(lambda request: any(each.text == "text 7" for each in request.inputs), fail)

    results = call("translate", TEXTS[:20], **LANGUAGES, errors="return")
    assert [index for index, result in enumerate(results) if isinstance(result, DragomanError)] == [7]
    assert results[7].input_index == 7
    with pytest.raises(DragomanError, match=r"^input 7: ") as caught:
        call("translate", TEXTS[:20], **LANGUAGES)
    assert caught.value.input_index == 7
    with pytest.raises(DragomanError, match=r"^(inputs|SERVER): ") as caught:
        call("translate", "text 7", **LANGUAGES)
    assert caught.value.input_index is None


def test_errors_of_a_split_call_name_the_place_in_the_list(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if len(request.inputs) > 4:
            too_many_segments(context)
        response = upper(request, context)
        for place, source in enumerate(request.inputs):
            if source.text == "text 9":
                violation = BadRequest.FieldViolation(field=f"inputs[{place}].text", description="is long")
                error = response.results[place].error
                error.code, error.message = grpc.StatusCode.INVALID_ARGUMENT.value[0], "is long"
                error.details.add().Pack(BadRequest(field_violations=[violation]))
        return response

    server.handler = answer
    [error] = [
        result
        for result in call("translate", ["\ud83d", *TEXTS[:20]], **LANGUAGES, errors="return")[1:]
        if isinstance(result, DragomanError)
    ]
    assert error.input_index == 10
    assert [violation.field for violation in error.field_violations] == ["inputs[10].text"]


# -- a call that fails -------------------------------------------------------------------------------------------------


def fail_with(code: grpc.StatusCode) -> Callable[..., None]:
    return lambda context: context.abort(code, f"it is {code.name}")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (grpc.StatusCode.CANCELLED, RequestCancelledError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        # As of a replica that has another model.
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_call_that_fails_does_not_take_the_others_along(
    server: FakeServer, call: Call, code: grpc.StatusCode, error: type[DragomanError]
) -> None:
    server.handler = failing(begins_with("text 128"), fail_with(code))

    results = call("translate", TEXTS, **LANGUAGES, errors="return")
    expected = [text.upper() for text in TEXTS]
    expected[128:256] = [error.__name__] * 128
    assert texts_of(results) == expected
    assert [result.input_index for result in results[128:256]] == list(range(128, 256))
    assert len({id(result) for result in results}) == 300
    with pytest.raises(error, match=r'; (128|172) of 300 inputs were done: errors="return" returns them$'):
        call("translate", TEXTS, **LANGUAGES)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgumentError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, DragomanError),
        (grpc.StatusCode.UNIMPLEMENTED, DragomanError),
        (grpc.StatusCode.PERMISSION_DENIED, DragomanError),
        (grpc.StatusCode.UNAUTHENTICATED, DragomanError),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_concerns_all_texts_is_raised(
    server: FakeServer, call: Call, code: grpc.StatusCode, error: type[DragomanError]
) -> None:
    server.handler = failing(anything, fail_with(code))

    with pytest.raises(error, match=f"^it is {code.name}( |$)"):
        call("translate", TEXTS, **LANGUAGES, errors="return")
    assert len(server.requests) <= 2


def test_no_server_is_raised_before_any_has_answered(server: FakeServer, call: Call) -> None:
    server.handler = failing(anything, fail_with(grpc.StatusCode.UNAVAILABLE))

    with pytest.raises(UnavailableError, match=r"^it is UNAVAILABLE$"):
        call("translate", TEXTS * 10, **LANGUAGES, errors="return")
    # Two calls, each sent four times.
    assert len(server.requests) <= 8


def test_a_first_call_without_a_server_does_not_take_the_second_along(server: FakeServer, call: Call) -> None:
    server.handler = failing(begins_with("text 0"), fail_with(grpc.StatusCode.UNAVAILABLE))

    results = call("translate", TEXTS, **LANGUAGES, errors="return")
    assert texts_of(results) == ["UnavailableError"] * 128 + [text.upper() for text in TEXTS[128:]]


def test_the_timeout_is_that_of_each_call(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        time.sleep(0.5)
        assert context.time_remaining() > 0
        return upper(request, context)

    server.handler = answer
    # Together they take longer than one may.
    assert len(call("translate", TEXTS * 4, **LANGUAGES, timeout=2.0)) == 1200


def test_a_call_out_of_time_does_not_take_the_others_along(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if request.inputs[0].text == "text 128":
            return server.hang(request, context)
        return upper(request, context)

    server.handler = answer
    results = call("translate", TEXTS, **LANGUAGES, timeout=1.0, errors="return")
    expected = [text.upper() for text in TEXTS]
    expected[128:256] = ["DeadlineExceededError"] * 128
    assert texts_of(results) == expected
    assert str(results[130]) == "input 130: there was no answer within timeout=1 seconds"
    expected_message = (
        r"^there was no answer within timeout=1 seconds; 128 of 300 inputs were done: "
        r'errors="return" returns them$'
    )
    with pytest.raises(DeadlineExceededError, match=expected_message):
        call("translate", TEXTS, **LANGUAGES, timeout=1.0)


def test_the_same_holds_for_scores_and_alignments(server: FakeServer, call: Call) -> None:
    def fail_second(handler: Callable[..., Any]) -> Callable[..., Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if request.inputs[0].text == "text 128":
                context.abort(grpc.StatusCode.INTERNAL, "broken")
            return handler(request, context)

        return answer

    server.score_handler, server.align_handler = fail_second(scored), fail_second(server.align_handler)
    for method in ("score", "align"):
        results = call(method, TEXTS, TEXTS, **LANGUAGES, errors="return")
        failed = [index for index, result in enumerate(results) if isinstance(result, DragomanError)]
        assert failed == list(range(128, 256))


def test_an_answer_that_makes_no_sense_does_not_take_the_others_along(server: FakeServer, call: Call) -> None:
    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        response = upper(request, context)
        if request.inputs[0].text == "text 0":
            response.results[3].translation.segments.add()
        if request.inputs[0].text == "text 128":
            del response.results[-1]
        return response

    server.handler = answer
    results = call("translate", TEXTS, **LANGUAGES, errors="return")
    failed = [index for index, result in enumerate(results) if isinstance(result, InternalError)]
    assert failed == [3, *range(128, 256)]
    assert str(results[3]) == "input 3: The server sent a segment without a translation"
    assert str(results[200]) == "input 200: The server answered 128 inputs with 127 results"


def test_a_single_text_raises_in_any_case(server: FakeServer, call: Call) -> None:
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        call("translate", "\ud83d", **LANGUAGES, errors="return")
    server.handler = failing(anything, fail_with(grpc.StatusCode.INTERNAL))
    with pytest.raises(InternalError, match=r"^it is INTERNAL$"):
        call("translate", "a", **LANGUAGES, errors="return")


@pytest.mark.parametrize("method", ["translate", "score", "align"])
def test_errors_are_raised_or_returned(server: FakeServer, call: Call, method: str) -> None:
    others = [] if method == "translate" else [["b"]]
    with pytest.raises(InvalidArgumentError, match=r"^errors is 'ignore': use 'raise' or 'return'$"):
        call(method, ["a"], *others, **LANGUAGES, errors="ignore")
    assert server.requests == []


async def test_no_more_than_two_calls_of_a_list_are_under_way(server: FakeServer) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return upper(request, context)

    server.handler = answer
    with Client(server.address) as client:
        client.translate(TEXTS * 4, source="en", target="fr")
    async with AsyncClient(server.address) as async_client:
        await async_client.translate(TEXTS * 4, source="en", target="fr")
    assert most == 2
