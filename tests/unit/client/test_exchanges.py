"""Exchanges in which something goes wrong, or takes its time."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from dragoman import (
    AsyncClient,
    Client,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    RequestCancelledError,
    ResourceExhaustedError,
)
from dragoman._exchange import MAX_SEGMENTS_IN_FLIGHT
from dragoman.v1 import translation_pb2 as pb
from support.fake_server import FakeServer, abort, failed, full_queue, translated, upper_exchange

Call = Callable[..., Any]
Responses = Iterator[pb.ExchangeTranslationsResponse]
LANGUAGES = {"source": "en", "target": "fr"}
RETRY_SECONDS = 0.2


def full(name: str, seconds: float = RETRY_SECONDS) -> pb.ExchangeTranslationsResponse:
    """The result of a text that finds the queue full."""
    refused = failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", *full_queue(seconds))
    return pb.ExchangeTranslationsResponse(id=name, result=refused)


def answered(request: pb.ExchangeTranslationsRequest) -> pb.ExchangeTranslationsResponse:
    return pb.ExchangeTranslationsResponse(id=request.input.id, result=translated(request.input.input.text))


# -- a full queue ------------------------------------------------------------------------------------------------------


def test_texts_that_find_the_queue_full_are_sent_again_after_the_time_said(server: FakeServer, call: Call) -> None:
    times: dict[str, list[float]] = {}

    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        for request in requests:
            seen = times.setdefault(request.input.id, [])
            seen.append(time.monotonic())
            yield full(request.input.id) if len(seen) < 3 and int(request.input.id) % 2 else answered(request)

    server.exchange_handler = answer
    results = call("exchange", [f"text {number}" for number in range(20)], **LANGUAGES)

    assert {index: result.text for index, result in results} == {number: f"TEXT {number}" for number in range(20)}
    assert len(results) == 20
    for name, seen in times.items():
        assert len(seen) == (3 if int(name) % 2 else 1)
        assert all(later - earlier > RETRY_SECONDS for earlier, later in pairwise(seen))


def test_a_text_is_sent_again_while_the_next_is_long_in_coming(server: FakeServer) -> None:
    is_answered = threading.Event()

    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        yield full(next(requests).input.id)
        for request in requests:
            yield answered(request)

    def texts() -> Iterator[str]:
        yield "a"
        assert is_answered.wait(20)
        yield "b"

    server.exchange_handler = answer
    with Client(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        assert next(results)[0] == 0
        is_answered.set()
        assert next(results)[0] == 1


async def test_a_text_is_sent_again_while_the_next_is_long_in_coming_async(server: FakeServer) -> None:
    is_answered = asyncio.Event()

    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        yield full(next(requests).input.id)
        for request in requests:
            yield answered(request)

    async def texts() -> AsyncIterator[str]:
        yield "a"
        await is_answered.wait()
        yield "b"

    server.exchange_handler = answer
    async with AsyncClient(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        assert (await anext(results))[0] == 0
        is_answered.set()
        assert (await anext(results))[0] == 1


def test_a_text_that_finds_no_room_before_the_timeout_has_its_error_as_result(server: FakeServer, call: Call) -> None:
    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        for request in requests:
            yield full(request.input.id, 60.0) if request.input.input.text == "b" else answered(request)

    server.exchange_handler = answer
    results = dict(call("exchange", ["a", "b", "c"], **LANGUAGES, timeout=30))

    assert (results[0].text, results[2].text) == ("A", "C")
    assert isinstance(results[1], ResourceExhaustedError)
    assert results[1].input_index == 1


@pytest.mark.parametrize("num_lines", [1, 40, 3 * MAX_SEGMENTS_IN_FLIGHT])
def test_an_exchange_leaves_room_in_the_queue(server: FakeServer, call: Call, num_lines: int) -> None:
    most = 0

    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        nonlocal most
        next(requests)
        under_way: list[pb.ExchangeTranslationsRequest] = []
        for request in requests:
            under_way.append(request)
            most = max(most, len(under_way))
            # What else may be sent by now is there in a moment.
            if len(under_way) * num_lines >= MAX_SEGMENTS_IN_FLIGHT or request.input.id == "199":
                yield from map(answered, under_way)
                under_way.clear()

    server.exchange_handler = answer
    results = call("exchange", ["Hi.\n" * num_lines] * 200, **LANGUAGES)
    assert len(results) == 200
    assert (most - 1) * num_lines < MAX_SEGMENTS_IN_FLIGHT


# -- what else goes wrong ----------------------------------------------------------------------------------------------


async def test_an_error_of_a_text_is_there_at_once(server: FakeServer) -> None:
    def texts() -> Iterator[Any]:
        yield "\ud83d"
        server.release.wait()

    async def async_texts() -> AsyncIterator[Any]:
        yield "\ud83d"
        await asyncio.Event().wait()

    with Client(server.address) as client:
        index, result = next(client.exchange(texts(), source="en", target="fr"))
        assert (index, type(result)) == (0, InvalidArgumentError)
    async with AsyncClient(server.address) as async_client:
        results = async_client.exchange(async_texts(), source="en", target="fr")
        index, result = await anext(results)
        assert (index, type(result)) == (0, InvalidArgumentError)
        await results.aclose()  # type: ignore[attr-defined]


def refuse(_: object, context: grpc.ServicerContext) -> Responses:
    yield from ()
    abort(context, grpc.StatusCode.NOT_FOUND, "No such pair", ErrorInfo(reason="UNSUPPORTED_LANGUAGE_PAIR"))


async def test_a_refusal_is_that_of_the_server_whatever_is_being_written(server: FakeServer) -> None:
    async def refusal(client: AsyncClient) -> tuple[type[Exception], str, str]:
        texts = [f"text {number}" for number in range(300)]
        with pytest.raises(NotFoundError) as caught:
            await anext(client.exchange(texts, source="en", target="xx"))
        return type(caught.value), caught.value.message, caught.value.reason

    server.exchange_handler = refuse
    expected = (NotFoundError, "No such pair", "UNSUPPORTED_LANGUAGE_PAIR")
    async with AsyncClient(server.address) as client:
        assert [await refusal(client) for _ in range(100)] == [expected] * 100
        for _ in range(25):  # a fake server has room for eight
            assert await asyncio.gather(*(refusal(client) for _ in range(8))) == [expected] * 8


async def test_results_before_a_failure_are_not_lost(server: FakeServer) -> None:
    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], context: grpc.ServicerContext) -> Responses:
        for response in upper_exchange(requests, context):
            yield response
            if response.id == "99":
                abort(context, grpc.StatusCode.INTERNAL, "broken")

    server.exchange_handler = answer
    texts = [f"text {number}" for number in range(500)]
    with Client(server.address) as client:
        results = client.exchange(texts, source="en", target="fr")
        assert [next(results)[0] for _ in range(100)] == list(range(100))
        with pytest.raises(InternalError, match="broken"):
            next(results)
    async with AsyncClient(server.address) as async_client:
        async_results = async_client.exchange(texts, source="en", target="fr")
        assert [(await anext(async_results))[0] for _ in range(100)] == list(range(100))
        with pytest.raises(InternalError, match="broken"):
            await anext(async_results)


@pytest.mark.parametrize("num_answers", [0, 1])
def test_a_server_that_ends_too_early_is_an_internal_error(server: FakeServer, call: Call, num_answers: int) -> None:
    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        for _ in range(num_answers):
            yield answered(next(requests))

    server.exchange_handler = answer
    for _ in range(40):  # the end meets the second text, or not
        with pytest.raises(InternalError, match="before all texts had their results"):
            call("exchange", ["a", "b"], **LANGUAGES)


@pytest.mark.parametrize("is_full", [False, True])
def test_a_second_result_for_a_text_is_an_internal_error(server: FakeServer, call: Call, is_full: bool) -> None:
    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        request = next(requests)
        yield full(request.input.id) if is_full else answered(request)
        yield answered(request)
        yield from map(answered, requests)

    server.exchange_handler = answer
    with pytest.raises(InternalError, match="'0', which it was not asked for"):
        call("exchange", ["a", "b", "c"], **LANGUAGES)


@pytest.mark.parametrize("texts", [5, None])
def test_texts_that_are_no_iterable_are_a_type_error(call: Call, texts: object) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        call("exchange", texts, **LANGUAGES)


async def test_closing_the_client_ends_an_exchange(server: FakeServer) -> None:
    def answer(requests: Iterator[pb.ExchangeTranslationsRequest], _: object) -> Responses:
        next(requests)
        yield answered(next(requests))
        server.release.wait()

    server.exchange_handler = answer
    client, async_client = Client(server.address), AsyncClient(server.address)
    results = client.exchange(["a", "b"], source="en", target="fr")
    async_results = async_client.exchange(["a", "b"], source="en", target="fr")
    assert next(results)[0] == (await anext(async_results))[0] == 0
    waiting = asyncio.ensure_future(anext(async_results))
    await asyncio.sleep(0.05)
    client.close()
    await async_client.close()
    with pytest.raises(RequestCancelledError):
        next(results)
    with pytest.raises(RequestCancelledError):
        await waiting


def test_threads_of_an_exchange_end_with_it(server: FakeServer) -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("dragoman-exchange")]

    with Client(server.address) as client:
        assert len(list(client.exchange(["a"] * 1000, source="en", target="fr"))) == 1000
        results = client.exchange(["a"] * 1000, source="en", target="fr")
        next(results)
        results.close()  # type: ignore[attr-defined]
        del results
    for _ in range(200):
        if not names():
            break
        time.sleep(0.05)
    assert names() == []
