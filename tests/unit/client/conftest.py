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


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def call(server: FakeServer, is_async: bool) -> Call:
    """Calls a method of a fresh client, `call("translate", ...)`, sync and async in turn.

    Of an iterator it gives a list; of `stream`, that and the iterator at its end.
    """
    return caller(server.address, is_async)


@pytest.fixture
def admin_call(server: FakeServer, is_async: bool) -> Call:
    """The same for a client of the admin address."""
    return caller(server.admin_address, is_async)


def caller(address: str, is_async: bool) -> Call:
    def call_sync(method: str, /, *args: object, **kwargs: object) -> Any:
        with Client(address) as client:
            result = getattr(client, method)(*args, **kwargs)
            if method == "stream":
                return list(result), result
            return list(result) if method == "exchange" else result

    async def run(method: str, /, *args: object, **kwargs: object) -> Any:
        async with AsyncClient(address) as client:
            result = getattr(client, method)(*args, **kwargs)
            if method == "stream":
                return [piece async for piece in result], result
            return [pair async for pair in result] if method == "exchange" else await result

    def call_async(method: str, /, *args: object, **kwargs: object) -> Any:
        return asyncio.run(run(method, *args, **kwargs))

    return call_async if is_async else call_sync
