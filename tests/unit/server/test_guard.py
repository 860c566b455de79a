"""What the guard does where no call over the wire can show it."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from dragoman_server.metrics import Metrics
from dragoman_server.wire.guard import Guard

METHOD = "/dragoman.v1.TranslationService/Translate"


async def guarded(guard: Guard, behaviour: Callable[[bytes, object], Awaitable[bytes]]) -> Callable[..., Any]:
    """The behaviour as the guard wraps it."""
    handler: Any = grpc.unary_unary_rpc_method_handler(cast(Any, behaviour), request_deserializer=bytes)

    async def continuation(_: object) -> Any:
        return handler

    details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=METHOD, invocation_metadata=()))
    wrapped = await guard.intercept_service(continuation, details)
    assert wrapped is not None
    assert wrapped.unary_unary is not None
    return cast(Callable[..., Any], wrapped.unary_unary)


async def test_a_cancellation_by_the_caller_is_passed_on() -> None:
    """grpc.aio leaks memory for every call whose handler swallows it."""
    metrics = Metrics()
    waiting = asyncio.Event()

    async def wait_for_ever(_: bytes, __: object) -> bytes:
        waiting.set()
        await asyncio.Event().wait()
        return b""

    handler = await guarded(Guard(metrics), wait_for_ever)
    call = asyncio.create_task(handler(b"", SimpleNamespace(time_remaining=lambda: None)))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    labels = {"method": METHOD.lstrip("/"), "code": "CANCELLED"}
    assert metrics.registry.get_sample_value("dragoman_requests_total", labels) == 1
