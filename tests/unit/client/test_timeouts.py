import math
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from dragoman import AsyncClient, Client
from support import fake_server
from support.fake_server import FakeServer

Call = Callable[..., Any]

# The arguments of every method that calls the server, beside those that `arguments` has.
METHODS: dict[str, tuple[object, ...]] = {
    "translate": ("a",),
    "stream": ("a",),
    "exchange": (["a"],),
    "score": ("a", "b"),
    "attention": ("a",),
    "align": ("a",),
    "models": (),
    "model": ("a",),
    "languages": (),
    "load_model": ("a",),
    "unload_model": ("a",),
    "set_default_model": ("a",),
    "health": (),
}
# Those of them that the handlers of `watch` answer.
TRANSLATING = ("translate", "stream", "exchange", "score", "attention", "align")
# gRPC gives a server no less than this where there is no deadline.
FOR_EVER_SECONDS = 1e17

NONSENSE = [
    (math.nan, ValueError, "timeout is nan, must be above 0 seconds"),
    (0, ValueError, "timeout is 0, must be above 0 seconds"),
    (0.0, ValueError, "timeout is 0.0, must be above 0 seconds"),
    (-1, ValueError, "timeout is -1, must be above 0 seconds"),
    (-math.inf, ValueError, "timeout is -inf, must be above 0 seconds"),
    (True, TypeError, "timeout is of type bool, must be a number of seconds"),
    ("30", TypeError, "timeout is of type str, must be a number of seconds"),
    ([30], TypeError, "timeout is of type list, must be a number of seconds"),
]


def watch(server: FakeServer) -> list[float]:
    """What the server is told of the time that calls have left."""
    remaining: list[float] = []

    def watched(handler: Callable[..., Any]) -> Callable[..., Any]:
        def answer(request: object, context: grpc.ServicerContext) -> Any:
            remaining.append(context.time_remaining() or 0.0)
            return handler(request, context)

        return answer

    server.handler = watched(fake_server.upper)
    server.stream_handler = watched(fake_server.upper_stream)
    server.exchange_handler = watched(fake_server.upper_exchange)
    server.score_handler = watched(fake_server.scored)
    server.attention_handler = watched(server.attention_handler)
    server.align_handler = watched(server.align_handler)
    return remaining


def arguments(method: str) -> dict[str, str]:
    return {"source": "en", "target": "fr"} if method in TRANSLATING else {}


@pytest.mark.parametrize("timeout", [math.inf, 9e9, 10**400, 1e8])
@pytest.mark.parametrize("method", TRANSLATING)
def test_a_timeout_without_end_is_no_deadline(server: FakeServer, call: Call, method: str, timeout: float) -> None:
    remaining = watch(server)
    call(method, *METHODS[method], **arguments(method), timeout=timeout)
    assert [seconds > FOR_EVER_SECONDS for seconds in remaining] == [True]


@pytest.mark.parametrize("timeout", [math.inf, 9e9])
async def test_a_client_may_have_no_deadline(server: FakeServer, timeout: float) -> None:
    remaining = watch(server)
    with Client(server.address, timeout=timeout) as client:
        client.translate("a", source="en", target="fr")
        client.translate(["a"] * 200, source="en", target="fr")
    async with AsyncClient(server.address, timeout=timeout) as async_client:
        await async_client.translate(["a"] * 200, source="en", target="fr")
    assert [seconds > FOR_EVER_SECONDS for seconds in remaining] == [True] * 5


@pytest.mark.parametrize("timeout", [60, np.float32(60), np.int64(60)])
def test_a_timeout_is_any_number(server: FakeServer, call: Call, timeout: float) -> None:
    remaining = watch(server)
    call("translate", "a", source="en", target="fr", timeout=timeout)
    assert 50 < remaining[0] < 62


@pytest.mark.parametrize(("timeout", "error", "message"), NONSENSE)
@pytest.mark.parametrize("method", METHODS)
def test_a_timeout_that_is_none_is_refused(
    server: FakeServer, call: Call, method: str, timeout: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(method, *METHODS[method], **arguments(method), timeout=timeout)
    assert server.requests == server.stream_requests == server.exchange_requests == server.models.requests == []


@pytest.mark.parametrize(("timeout", "error", "message"), [*NONSENSE, (None, TypeError, "timeout is of type NoneType")])
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_client_with_such_a_timeout_is_refused(
    client: type[Client | AsyncClient], timeout: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client("localhost", timeout=timeout)


def test_an_exchange_without_a_timeout_has_no_deadline(server: FakeServer, call: Call) -> None:
    remaining = watch(server)

    def texts() -> Iterator[str]:
        yield "a"

    call("exchange", texts(), source="en", target="fr")
    assert [seconds > FOR_EVER_SECONDS for seconds in remaining] == [True]
