"""Streams and exchanges whose server is lost before their end."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from dragoman import Client, UnavailableError
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.attention_pb2 import GetAttentionRequest, GetAttentionResponse
from support.fake_server import FakeServer, abort, translated, upper_exchange, upper_stream

Call = Callable[..., Any]
LANGUAGES: Any = {"source": "en", "target": "fr"}
TEXT = "good morning all of you"
PIECES = ["GOOD ", "MORNING ", "ALL ", "OF ", "YOU"]
CODES = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]


def lost_after(
    server: FakeServer, num_messages: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, num_losses: int = 1
) -> Callable[[pb.StreamTranslationRequest, grpc.ServicerContext], Iterator[pb.StreamTranslationResponse]]:
    """A stream that ends after some messages, the first times."""

    def answer(
        request: pb.StreamTranslationRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamTranslationResponse]:
        for number, response in enumerate(upper_stream(request, context)):
            if number == num_messages and len(server.stream_requests) <= num_losses:
                context.abort(code, "Socket closed")
            yield response

    return answer


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("num_messages", range(len(PIECES) + 1))
def test_a_stream_goes_on_where_it_was(
    server: FakeServer, call: Call, num_messages: int, code: grpc.StatusCode
) -> None:
    server.stream_handler = lost_after(server, num_messages, code)
    pieces, stream = call("stream", TEXT, **LANGUAGES)
    assert pieces == PIECES
    assert stream.result.text == "".join(PIECES)
    first, second = server.stream_requests
    assert first == second


def test_a_stream_goes_on_although_pieces_are_cut_differently(server: FakeServer, call: Call) -> None:
    def answer(
        request: pb.StreamTranslationRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamTranslationResponse]:
        *_, last = upper_stream(request, context)
        if len(server.stream_requests) == 1:
            yield pb.StreamTranslationResponse(delta="GOOD M")
            abort(context, grpc.StatusCode.UNAVAILABLE, "Socket closed")
        for delta in ("GO", "OD MORN", "ING ALL OF YOU"):
            yield pb.StreamTranslationResponse(delta=delta)
        yield last

    server.stream_handler = answer
    pieces, _ = call("stream", TEXT, **LANGUAGES)
    assert pieces == ["GOOD M", "ORN", "ING ALL OF YOU"]


def test_a_stream_whose_servers_are_lost_again_and_again_fails(server: FakeServer, call: Call) -> None:
    server.stream_handler = lost_after(server, 2, num_losses=100)
    with pytest.raises(UnavailableError, match="Socket closed"):
        call("stream", TEXT, **LANGUAGES)
    assert len(server.stream_requests) == 4


def test_samples_without_a_seed_are_not_continued_by_others(server: FakeServer, call: Call) -> None:
    server.stream_handler = lost_after(server, 1)
    with pytest.raises(UnavailableError, match="sampling gives another text every time"):
        call("stream", TEXT, **LANGUAGES, temperature=1.0)
    assert len(server.stream_requests) == 1


@pytest.mark.parametrize("options", [{"seed": 7}, {"temperature": 1.0, "seed": 0}, {"beam_size": 4}])
def test_what_a_call_repeats_exactly_is_continued(server: FakeServer, call: Call, options: dict[str, Any]) -> None:
    server.stream_handler = lost_after(server, 1)
    assert call("stream", TEXT, **LANGUAGES, **options)[0] == PIECES


def test_samples_of_which_nothing_was_given_are_asked_for_again(server: FakeServer, call: Call) -> None:
    server.stream_handler = lost_after(server, 0)
    assert call("stream", TEXT, **LANGUAGES, temperature=1.0)[0] == PIECES


@pytest.mark.parametrize("deltas", [["GOOD EVENING"], ["BON"], []])
def test_a_server_that_translates_differently_does_not_continue_a_stream(
    server: FakeServer, call: Call, deltas: list[str]
) -> None:
    def answer(
        request: pb.StreamTranslationRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.StreamTranslationResponse]:
        if len(server.stream_requests) == 1:
            yield pb.StreamTranslationResponse(delta="GOOD MORNING")
            abort(context, grpc.StatusCode.UNAVAILABLE, "Socket closed")
        for delta in deltas:
            yield pb.StreamTranslationResponse(delta=delta)
        *_, last = upper_stream(request, context)
        yield last

    server.stream_handler = answer
    with pytest.raises(UnavailableError, match="translates differently"):
        call("stream", TEXT, **LANGUAGES)


def test_attention_is_asked_for_again(server: FakeServer, call: Call) -> None:
    whole = server.attention_handler

    def answer(request: GetAttentionRequest, context: grpc.ServicerContext) -> Iterator[GetAttentionResponse]:
        for number, response in enumerate(whole(request, context)):
            if number == 1 and len(server.attention_requests) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield response

    expected = call("attention", "a b", **LANGUAGES)
    server.attention_requests.clear()
    server.attention_handler = answer
    attention = call("attention", "a b", **LANGUAGES)
    assert len(server.attention_requests) == 2
    assert attention.cross.tolist() == expected.cross.tolist()


# -- exchange ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_texts_without_a_result_are_sent_again(server: FakeServer, call: Call, code: grpc.StatusCode) -> None:
    num_calls, seen = 0, Counter[str]()

    def answer(
        requests: Iterator[pb.ExchangeTranslationsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExchangeTranslationsResponse]:
        nonlocal num_calls
        num_calls += 1
        for number, response in enumerate(upper_exchange(requests, context)):
            if number == 30 and num_calls < 8:
                context.abort(code, "Socket closed")
            seen[response.id] += 1
            yield response

    server.exchange_handler = answer
    texts = [f"text {number}" for number in range(400)]
    results = call("exchange", texts, **LANGUAGES)
    assert num_calls == 8
    assert {index: result.text for index, result in results} == {
        index: text.upper() for index, text in enumerate(texts)
    }
    assert len(results) == 400
    assert set(seen.values()) == {1}


def test_an_exchange_begins_again_while_the_next_text_is_long_in_coming(server: FakeServer) -> None:
    num_calls = 0

    def answer(
        requests: Iterator[pb.ExchangeTranslationsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExchangeTranslationsResponse]:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            next(requests), next(requests)
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield from upper_exchange(requests, context)

    def texts() -> Iterator[str]:
        yield "a"
        server.release.wait(20)

    server.exchange_handler = answer
    with Client(server.address) as client:
        results = client.exchange(texts(), source="en", target="fr")
        assert next(results)[0] == 0
        server.release.set()
        assert list(results) == []


def test_a_text_that_ends_every_server_ends_its_exchange(server: FakeServer, call: Call) -> None:
    num_losses = 0

    def answer(
        requests: Iterator[pb.ExchangeTranslationsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExchangeTranslationsResponse]:
        nonlocal num_losses
        next(requests)
        for request in requests:
            if request.input.input.text == "poison":
                num_losses += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield pb.ExchangeTranslationsResponse(id=request.input.id, result=translated(request.input.input.text))

    server.exchange_handler = answer
    with pytest.raises(UnavailableError, match="Socket closed"):
        call("exchange", ["a", "b", "poison", "c", "d", "e", "f"], **LANGUAGES)
    assert num_losses == 4


# -- processes ---------------------------------------------------------------------------------------------------------


# In a process of its own, as a server of gRPC in the same process does not survive a fork.
FORKS = """
import asyncio, os, sys
from dragoman import AsyncClient, Client

def in_child(call):
    sys.stdout.flush()
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        print(call())
    except RuntimeError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)

k = {"source": "en", "target": "fr"}
client, async_client = Client(sys.argv[1]), AsyncClient(sys.argv[1])
client.translate("a", **k)
in_child(lambda: client.translate("a", **k))
in_child(lambda: client.stream("a", **k))
in_child(lambda: next(client.exchange(["a"], **k)))
in_child(client.health)
in_child(client.models)
in_child(lambda: asyncio.run(async_client.translate("a", **k)))
in_child(client.close)
print(client.translate("a", **k).text)
client.close()
"""


def test_a_forked_child_is_told_at_once_that_a_client_is_not_its_own(server: FakeServer) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS, server.address]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.splitlines()
    told, (closed, translated_by_parent) = said[:-2], said[-2:]
    assert ["before the process forked" in line for line in told] == [True] * 6
    assert (closed, translated_by_parent) == ("None", "A")


async def test_the_sync_client_works_inside_an_event_loop(server: FakeServer) -> None:
    with Client(server.address) as client:
        assert client.translate("a", **LANGUAGES).text == "A"
        assert list(client.stream("a b", **LANGUAGES)) == ["A ", "B"]
        assert [index for index, _ in client.exchange(["a", "b"], **LANGUAGES)] == [0, 1]
