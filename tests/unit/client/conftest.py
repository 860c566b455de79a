import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dragoman import AsyncClient, Client
from support.fake_server import FakeServer

Call = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, server: FakeServer) -> Call:
    """Calls a method of a fresh client, `call("translate", ...)`, sync and async in turn.

    Of an iterator it gives a list; of `stream`, that and the iterator at its end.
    """

    def call_sync(method: str, /, *args: object, **kwargs: object) -> Any:
        with Client(server.address) as client:
            result = getattr(client, method)(*args, **kwargs)
            if method == "stream":
                return list(result), result
            return list(result) if method == "exchange" else result

    async def run(method: str, /, *args: object, **kwargs: object) -> Any:
        async with AsyncClient(server.address) as client:
            result = getattr(client, method)(*args, **kwargs)
            if method == "stream":
                return [piece async for piece in result], result
            return [pair async for pair in result] if method == "exchange" else await result

    def call_async(method: str, /, *args: object, **kwargs: object) -> Any:
        return asyncio.run(run(method, *args, **kwargs))

    return call_sync if request.param == "sync" else call_async
