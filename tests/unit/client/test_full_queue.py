"""Calls that find the queue of the server full, and wait for room."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dragoman import AsyncClient, Client, DeadlineExceededError, RequestCancelledError, ResourceExhaustedError
from dragoman.v1.translation_pb2 import TranslateRequest, TranslateResponse
from support.fake_server import FakeServer, Handler, abort, full_queue, upper

Call = Callable[..., Any]
LANGUAGES = {"source": "en", "target": "fr"}
RETRY_SECONDS = 0.2


def queue_full(context: grpc.ServicerContext, seconds: float = RETRY_SECONDS) -> None:
    abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", *full_queue(seconds))


def refusing(seconds: float) -> Handler:
    """The handler that has no room for so many seconds, whenever it is asked."""

    def answer(_: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        queue_full(context, seconds)
        return TranslateResponse()

    return answer


@pytest.mark.parametrize("method", ["translate", "score", "align", "attention", "stream"])
def test_a_call_that_finds_the_queue_full_is_sent_again_after_the_time_said(
    server: FakeServer, call: Call, method: str
) -> None:
    times: list[float] = []

    def full_twice(handler: Callable[..., Any]) -> Callable[..., Any]:
        def answer(request: object, context: grpc.ServicerContext) -> Any:
            times.append(time.monotonic())
            if len(times) < 3:
                queue_full(context)
            return handler(request, context)

        return answer

    server.handler, server.score_handler = full_twice(server.handler), full_twice(server.score_handler)
    server.align_handler, server.attention_handler = (
        full_twice(server.align_handler),
        full_twice(server.attention_handler),
    )
    server.stream_handler = full_twice(server.stream_handler)
    result = call(method, "a", *(["b"] if method == "score" else []), **LANGUAGES)

    assert result
    first, second, third = times
    assert second - first > RETRY_SECONDS
    assert third - second > RETRY_SECONDS


def test_calls_of_a_list_are_sent_again_likewise(server: FakeServer, call: Call) -> None:
    refused: list[TranslateRequest] = []

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        if request.inputs[0].text == "text 128" and not refused:
            refused.append(request)
            queue_full(context)
        return upper(request, context)

    server.handler = answer
    texts = [f"text {number}" for number in range(300)]
    assert [result.text for result in call("translate", texts, **LANGUAGES)] == [text.upper() for text in texts]
    assert sorted(len(request.inputs) for request in server.requests) == [44, 128, 128, 128]


@pytest.mark.parametrize("seconds", [0.0, RETRY_SECONDS])
def test_a_queue_that_stays_full_is_told_within_the_timeout(server: FakeServer, call: Call, seconds: float) -> None:
    server.handler = refusing(seconds)

    # The last attempt may get no answer at all in the time that is left.
    with pytest.raises((ResourceExhaustedError, DeadlineExceededError)):
        call("translate", "a", **LANGUAGES, timeout=0.5)
    assert 2 <= len(server.requests) <= 11  # none sooner than after 0.05 s
    results = call("translate", ["a", "b"], **LANGUAGES, timeout=0.5, errors="return")
    assert [result.input_index for result in results] == [0, 1]


def test_a_queue_that_is_full_for_longer_than_the_timeout_is_told_at_once(server: FakeServer, call: Call) -> None:
    server.handler = refusing(60.0)

    with pytest.raises(ResourceExhaustedError) as caught:
        call("translate", "a", **LANGUAGES)
    assert caught.value.retry_after == 60.0
    assert len(server.requests) == 1


def test_a_call_without_room_and_without_a_time_is_not_sent_again(server: FakeServer, call: Call) -> None:
    server.handler = lambda request, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    with pytest.raises(ResourceExhaustedError, match="quota"):
        call("translate", ["a", "b"], **LANGUAGES)
    assert len(server.requests) == 1


@pytest.mark.parametrize("text", ["a", ["a"] * 300], ids=["text", "list"])
def test_closing_the_client_ends_the_wait_for_room(server: FakeServer, text: Any) -> None:
    refused = full_for_long(server)
    client = Client(server.address)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.translate, text, source="en", target="fr")
        assert refused.wait(10)
        client.close()
        with pytest.raises(RequestCancelledError, match="closed during the call"):
            waiting.result(timeout=10)


@pytest.mark.parametrize("text", ["a", ["a"] * 300], ids=["text", "list"])
async def test_closing_the_async_client_ends_the_wait_for_room(server: FakeServer, text: Any) -> None:
    refused = full_for_long(server)
    client = AsyncClient(server.address)
    waiting = asyncio.create_task(client.translate(text, source="en", target="fr"))
    assert await asyncio.to_thread(refused.wait, 10)
    await client.close()
    with pytest.raises(RequestCancelledError, match="closed during the call"):
        await waiting


def full_for_long(server: FakeServer) -> threading.Event:
    """Lets the server refuse all calls for a long time; what is set then."""
    refused = threading.Event()

    def answer(request: TranslateRequest, context: grpc.ServicerContext) -> TranslateResponse:
        refused.set()
        queue_full(context, 20.0)
        return TranslateResponse()

    server.handler = answer
    return refused
