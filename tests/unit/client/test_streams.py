"""`stream` and `exchange`: what comes piece by piece."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from dragoman import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    RequestCancelledError,
    ResourceExhaustedError,
)
from dragoman._exchange import MAX_TEXTS_IN_FLIGHT
from dragoman.v1 import translation_pb2 as pb
from support.fake_server import MODEL, FakeServer, abort, failed, full_queue, translated, upper_exchange

Call = Callable[..., Any]
LANGUAGES = {"source": "en", "target": "fr"}


# -- stream ------------------------------------------------------------------------------------------------------------


def test_a_stream_has_pieces_and_in_the_end_a_result(server: FakeServer, call: Call) -> None:
    pieces, stream = call("stream", "good morning all", **LANGUAGES)

    assert pieces == ["GOOD ", "MORNING ", "ALL"]
    assert stream.result.text == "GOOD MORNING ALL"
    assert stream.result.model == MODEL
    assert (stream.result.source_language, stream.result.target_language) == ("en", "fr")
    assert server.stream_requests[0].input.text == "good morning all"


def test_a_stream_that_has_ended_stays_so(server: FakeServer) -> None:
    with Client(server.address) as client:
        stream = client.stream("a", source="en", target="fr")
        assert list(stream) == ["A"]
        assert list(stream) == []


async def test_an_async_stream_that_has_ended_stays_so(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        stream = client.stream("a", source="en", target="fr")
        assert [piece async for piece in stream] == ["A"]
        assert [piece async for piece in stream] == []


def test_there_is_no_result_before_the_end(server: FakeServer) -> None:
    with Client(server.address) as client, client.stream("a b", source="en", target="fr") as stream:
        assert next(stream) == "A "
        with pytest.raises(RuntimeError, match="read the stream to its end"):
            _ = stream.result


async def test_there_is_no_async_result_before_the_end(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client, client.stream("a b", source="en", target="fr") as stream:
        assert await anext(stream) == "A "
        with pytest.raises(RuntimeError, match="read the stream to its end"):
            _ = stream.result


def endless(server: FakeServer) -> tuple[threading.Event, Callable[..., Iterator[pb.StreamTranslationResponse]]]:
    """A handler that says one word and hangs, and what is set when its call has ended."""
    ended = threading.Event()

    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.StreamTranslationResponse]:
        context.add_callback(ended.set)
        yield pb.StreamTranslationResponse(delta="A ")
        server.release.wait()

    return ended, answer


def test_closing_a_stream_ends_its_call(server: FakeServer) -> None:
    ended, server.stream_handler = endless(server)
    with Client(server.address) as client:
        with client.stream("a b", source="en", target="fr") as stream:
            assert next(stream) == "A "
        assert ended.wait(10)
        with pytest.raises(RequestCancelledError):
            next(stream)


async def test_closing_an_async_stream_ends_its_call(server: FakeServer) -> None:
    ended, server.stream_handler = endless(server)
    async with AsyncClient(server.address) as client:
        async with client.stream("a b", source="en", target="fr") as stream:
            assert await anext(stream) == "A "
        assert await asyncio.to_thread(ended.wait, 10)


async def test_an_async_stream_that_was_never_read_can_be_closed(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        await client.stream("a", source="en", target="fr").close()
    assert server.stream_requests == []


async def test_closing_the_client_ends_streams(server: FakeServer) -> None:
    _, server.stream_handler = endless(server)
    sync_client, client = Client(server.address), AsyncClient(server.address)
    sync_stream = sync_client.stream("a b", source="en", target="fr")
    stream = client.stream("a b", source="en", target="fr")
    assert next(sync_stream) == await anext(stream) == "A "
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    sync_client.close()
    await client.close()
    with pytest.raises(RequestCancelledError):
        next(sync_stream)
    with pytest.raises(RequestCancelledError):
        await waiting


def test_a_stream_that_fails_raises(server: FakeServer, call: Call) -> None:
    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.StreamTranslationResponse]:
        yield pb.StreamTranslationResponse(delta="A ")
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Full", ErrorInfo(reason="QUEUE_FULL"))

    server.stream_handler = answer
    with pytest.raises(ResourceExhaustedError, match="Full") as caught:
        call("stream", "a b", **LANGUAGES)
    assert caught.value.reason == "QUEUE_FULL"


def test_a_stream_that_has_begun_is_not_sent_again(server: FakeServer, call: Call) -> None:
    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.StreamTranslationResponse]:
        yield pb.StreamTranslationResponse(delta="A ")
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Full", *full_queue(1.0))

    server.stream_handler = answer
    with pytest.raises(ResourceExhaustedError, match="Full"):
        call("stream", "a b", **LANGUAGES)
    assert len(server.stream_requests) == 1


def test_a_stream_that_is_closed_is_not_sent_again(server: FakeServer) -> None:
    refused = threading.Event()

    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.StreamTranslationResponse]:
        yield from ()
        refused.set()
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Full", *full_queue(1.0))

    server.stream_handler = answer
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream("a b", source="en", target="fr")
        waiting = pool.submit(next, stream)
        assert refused.wait(10)
        stream.close()
        with pytest.raises(RequestCancelledError):
            waiting.result(timeout=10)
    assert len(server.stream_requests) == 1


async def test_an_async_stream_that_is_closed_is_not_sent_again(server: FakeServer) -> None:
    refused = threading.Event()

    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.StreamTranslationResponse]:
        yield from ()
        refused.set()
        abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "Full", *full_queue(1.0))

    server.stream_handler = answer
    async with AsyncClient(server.address) as client:
        stream = client.stream("a b", source="en", target="fr")
        waiting = asyncio.ensure_future(anext(stream))
        assert await asyncio.to_thread(refused.wait, 10)
        await asyncio.sleep(0.2)  # until the refusal is here
        await stream.close()
        with pytest.raises(RequestCancelledError):
            await waiting
    assert len(server.stream_requests) == 1


def test_a_stream_without_a_result_is_an_internal_error(server: FakeServer, call: Call) -> None:
    server.stream_handler = lambda request, context: iter([pb.StreamTranslationResponse(delta="A")])
    with pytest.raises(InternalError, match="without a translation"):
        call("stream", "a", **LANGUAGES)


def test_a_stream_has_a_deadline(server: FakeServer, call: Call) -> None:
    _, server.stream_handler = endless(server)
    with pytest.raises(DeadlineExceededError):
        call("stream", "a", **LANGUAGES, timeout=0.2)


def test_a_text_with_a_lone_surrogate_cannot_be_streamed(call: Call) -> None:
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        call("stream", "broken \ud800", **LANGUAGES)


# -- exchange ----------------------------------------------------------------------------------------------------------


def test_results_of_an_exchange_come_with_the_index_of_their_texts(server: FakeServer, call: Call) -> None:
    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.ExchangeTranslationsResponse]:
        first, second, *others = (
            response for _, response in zip("abc", upper_exchange(requests, context), strict=False)
        )
        yield from (second, first, *others)

    server.exchange_handler = answer
    results = call("exchange", ["a", "b", "c"], **LANGUAGES)

    assert [(index, result.text) for index, result in results] == [(1, "B"), (0, "A"), (2, "C")]
    assert results[0][1].model == MODEL
    assert results[0][1].source_language == "en"
    assert [request.WhichOneof("message") for request in server.exchange_requests] == ["config", *["input"] * 3]


def test_an_exchange_of_nothing_is_empty(call: Call) -> None:
    assert call("exchange", [], **LANGUAGES) == []


async def test_an_asynchronous_iterable_can_be_exchanged(server: FakeServer) -> None:
    async def texts() -> AsyncIterator[str]:
        for text in ("a", "b"):
            await asyncio.sleep(0.01)
            yield text

    async with AsyncClient(server.address) as client:
        results = {index: result async for index, result in client.exchange(texts(), source="en", target="fr")}
    assert {index: getattr(result, "text", result) for index, result in results.items()} == {0: "A", 1: "B"}


def test_a_failed_text_is_its_result(server: FakeServer, call: Call) -> None:
    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.ExchangeTranslationsResponse]:
        for response in upper_exchange(requests, context):
            if response.id == "1":
                response.result.CopyFrom(failed(grpc.StatusCode.INVALID_ARGUMENT, "Too long"))
            yield response

    server.exchange_handler = answer
    results = dict(call("exchange", ["a", "b", "c"], **LANGUAGES))
    assert isinstance(results[1], InvalidArgumentError)
    assert str(results[1]) == "input 1: Too long"
    assert (results[0].text, results[2].text) == ("A", "C")


def test_an_exchange_that_fails_raises(server: FakeServer, call: Call) -> None:
    def answer(_: object, context: grpc.ServicerContext) -> Iterator[pb.ExchangeTranslationsResponse]:
        yield from ()
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "Bad", ErrorInfo(reason="OUT_OF_RANGE"))

    server.exchange_handler = answer
    with pytest.raises(InvalidArgumentError, match="Bad") as caught:
        call("exchange", ["a"], **LANGUAGES)
    assert caught.value.reason == "OUT_OF_RANGE"


@pytest.mark.parametrize("name", ["", "x"])
def test_a_result_that_was_not_asked_for_is_an_internal_error(server: FakeServer, call: Call, name: str) -> None:
    response = pb.ExchangeTranslationsResponse(id=name, result=translated("a"))
    server.exchange_handler = lambda requests, context: iter([response])
    with pytest.raises(InternalError, match="not asked for"):
        call("exchange", ["a"], **LANGUAGES)


def test_an_error_of_the_texts_is_raised_after_the_results_before_it(server: FakeServer) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        yield "b"
        raise KeyError("c")

    with Client(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        assert [next(results)[0], next(results)[0]] == [0, 1]
        with pytest.raises(KeyError, match="c"):
            next(results)


async def test_an_error_of_the_texts_is_raised_after_the_results_before_it_async(server: FakeServer) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        yield "b"
        raise KeyError("c")

    async with AsyncClient(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        assert [(await anext(results))[0], (await anext(results))[0]] == [0, 1]
        with pytest.raises(KeyError, match="c"):
            await anext(results)


def test_texts_are_taken_no_further_than_results(server: FakeServer) -> None:
    num_taken = 0

    def texts() -> Iterator[str]:
        nonlocal num_taken
        for number in range(4 * MAX_TEXTS_IN_FLIGHT):
            num_taken = number
            yield str(number)

    with Client(server.address) as client:
        for num_read, _ in enumerate(client.exchange(texts(), source="en", target="fr")):
            assert num_taken <= num_read + MAX_TEXTS_IN_FLIGHT + 1
    assert num_taken == 4 * MAX_TEXTS_IN_FLIGHT - 1


async def test_texts_are_taken_no_further_than_results_async(server: FakeServer) -> None:
    num_taken = 0

    def texts() -> Iterator[str]:
        nonlocal num_taken
        for number in range(4 * MAX_TEXTS_IN_FLIGHT):
            num_taken = number
            yield str(number)

    async with AsyncClient(server.address) as client:
        num_read = 0
        async for _ in client.exchange(texts(), source="en", target="fr"):
            assert num_taken <= num_read + MAX_TEXTS_IN_FLIGHT + 1
            num_read += 1
    assert num_taken == 4 * MAX_TEXTS_IN_FLIGHT - 1


def forever() -> Iterator[str]:
    while True:
        yield "a"


def watched(server: FakeServer) -> threading.Event:
    """What is set when an exchange with the server has ended."""
    ended = threading.Event()

    def answer(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.ExchangeTranslationsResponse]:
        context.add_callback(ended.set)
        return upper_exchange(requests, context)

    server.exchange_handler = answer
    return ended


def test_leaving_an_exchange_ends_it(server: FakeServer) -> None:
    ended = watched(server)
    with Client(server.address) as client:
        results = client.exchange(forever(), source="en", target="fr")
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert ended.wait(10)


async def test_leaving_an_async_exchange_ends_it(server: FakeServer) -> None:
    ended = watched(server)
    async with AsyncClient(server.address) as client:
        results = client.exchange(forever(), source="en", target="fr")
        await anext(results)
        await results.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(ended.wait, 10)


def test_an_exchange_has_a_deadline_where_one_is_asked_for(server: FakeServer, call: Call) -> None:
    def answer(_: object, __: object) -> Iterator[pb.ExchangeTranslationsResponse]:
        server.release.wait()
        return iter([])

    server.exchange_handler = answer
    with pytest.raises(DeadlineExceededError):
        call("exchange", ["a"], **LANGUAGES, timeout=0.2)


def test_a_closed_client_refuses_streams(server: FakeServer) -> None:
    client = Client(server.address)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.stream("a", source="en", target="fr")
    with pytest.raises(RuntimeError, match="closed"):
        next(client.exchange(["a"], source="en", target="fr"))


async def test_a_closed_async_client_refuses_streams(server: FakeServer) -> None:
    client = AsyncClient(server.address)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await anext(client.stream("a", source="en", target="fr"))
    with pytest.raises(RuntimeError, match="closed"):
        await anext(client.exchange(["a"], source="en", target="fr"))
