"""What the guard does where no call over the wire can show it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from dragoman_server.metrics import Metrics
from dragoman_server.wire.guard import Guard

METHOD = "/dragoman.v1.TranslationService/Translate"
CONTEXT = SimpleNamespace(time_remaining=lambda: None)


async def guarded(guard: Guard, behaviour: Callable[[Any, object], Awaitable[Any]], kind: str) -> Callable[..., Any]:
    """The behaviour of a method of this kind, such as "unary_stream", as the guard wraps it."""
    make_handler = getattr(grpc, f"{kind}_rpc_method_handler")
    handler: Any = make_handler(behaviour, request_deserializer=bytes.decode)

    async def continuation(_: object) -> Any:
        return handler

    details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=METHOD, invocation_metadata=()))
    wrapped = await guard.intercept_service(continuation, details)
    assert wrapped is not None
    return cast(Callable[..., Any], getattr(wrapped, kind))


def num_counted(metrics: Metrics, code: str) -> float | None:
    labels = {"method": METHOD.lstrip("/"), "code": code}
    return metrics.registry.get_sample_value("dragoman_requests_total", labels)


async def test_a_cancellation_by_the_caller_is_passed_on() -> None:
    """grpc.aio leaks memory for every call whose handler swallows it."""
    metrics = Metrics()
    waiting = asyncio.Event()

    async def wait_for_ever(_: object, __: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    handler = await guarded(Guard(metrics), wait_for_ever, "unary_unary")
    call = asyncio.create_task(handler(b"", CONTEXT))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert num_counted(metrics, "CANCELLED") == 1


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_a_request_is_parsed(kind: str) -> None:
    async def repeat(request: str, _: object) -> str:
        return request * 2

    metrics = Metrics()
    assert await (await guarded(Guard(metrics), repeat, kind))(b"a", CONTEXT) == "aa"
    assert num_counted(metrics, "OK") == 1


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_every_request_of_a_stream_is_parsed_and_the_call_counted_once(kind: str) -> None:
    async def requests() -> AsyncIterator[bytes]:
        for raw in (b"a", b"b"):
            yield raw

    async def join(requests: AsyncIterator[str], _: object) -> str:
        return "".join([request async for request in requests])

    metrics = Metrics()
    assert await (await guarded(Guard(metrics), join, kind))(requests(), CONTEXT) == "ab"
    assert num_counted(metrics, "OK") == 1
