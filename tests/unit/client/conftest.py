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
    """Calls a method of a fresh client, `call("translate", ...)`, sync and async in turn."""

    def call_sync(method: str, *args: object, **kwargs: object) -> Any:
        with Client(server.address) as client:
            return getattr(client, method)(*args, **kwargs)

    async def run(method: str, *args: object, **kwargs: object) -> Any:
        async with AsyncClient(server.address) as client:
            return await getattr(client, method)(*args, **kwargs)

    def call_async(method: str, *args: object, **kwargs: object) -> Any:
        return asyncio.run(run(method, *args, **kwargs))

    return call_sync if request.param == "sync" else call_async
