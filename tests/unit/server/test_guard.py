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


def context(*messages: bytes, remaining: float | None = None) -> SimpleNamespace:
    """That of a call with these requests."""
    unread = list(messages)

    async def read() -> object:
        return unread.pop(0) if unread else grpc.aio.EOF

    return SimpleNamespace(time_remaining=lambda: remaining, read=read)


async def stream(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def guarded(guard: Guard, behaviour: Callable[[Any, object], Awaitable[Any]], kind: str) -> Callable[..., Any]:
    """The behaviour of a method of this kind, such as "unary_stream", as the guard wraps it."""
    make_handler = getattr(grpc, f"{kind}_rpc_method_handler")
    handler: Any = make_handler(behaviour, request_deserializer=bytes.decode)

    async def continuation(_: object) -> Any:
        return handler

    details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=METHOD, invocation_metadata=()))
    wrapped = await guard.intercept_service(continuation, details)
    assert wrapped is not None
    return cast(Callable[..., Any], getattr(wrapped, f"stream_{kind.partition('_')[2]}"))


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
    call = asyncio.create_task(handler(stream(), context(b"")))
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
    assert await (await guarded(Guard(metrics), repeat, kind))(stream(), context(b"a")) == "aa"
    assert num_counted(metrics, "OK") == 1


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
async def test_every_request_of_a_stream_is_parsed_and_the_call_counted_once(kind: str) -> None:
    async def join(requests: AsyncIterator[str], _: object) -> str:
        return "".join([request async for request in requests])

    metrics = Metrics()
    assert await (await guarded(Guard(metrics), join, kind))(stream(b"a", b"b"), context()) == "ab"
    assert num_counted(metrics, "OK") == 1


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_caller_who_leaves_is_not_counted_as_one_who_has_sent_all(kind: str) -> None:
    """Its stream of requests ends as if it were complete, a moment before the call is cancelled."""

    async def read_all(requests: Any, _: object) -> None:
        async for _request in requests:
            pass

    metrics = Metrics()
    handler = await guarded(Guard(metrics), read_all, kind)
    call = asyncio.create_task(handler(stream(), context()))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert num_counted(metrics, "CANCELLED") == 1
    assert num_counted(metrics, "OK") is None


@pytest.mark.parametrize(("remaining", "code"), [(None, "CANCELLED"), (30.0, "CANCELLED"), (0.05, "DEADLINE_EXCEEDED")])
async def test_a_caller_leaves_early_or_because_of_its_deadline(remaining: float | None, code: str) -> None:
    async def wait_for_ever(_: object, __: object) -> None:
        await asyncio.Event().wait()

    metrics = Metrics()
    handler = await guarded(Guard(metrics), wait_for_ever, "unary_unary")
    call = asyncio.create_task(handler(stream(), context(b"", remaining=remaining)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert num_counted(metrics, code) == 1


async def test_an_answer_after_the_deadline_is_none() -> None:
    async def answer(_: object, __: object) -> None:
        pass

    metrics = Metrics()
    handler = await guarded(Guard(metrics), answer, "unary_unary")
    await handler(stream(), context(b"", remaining=0.0))
    assert num_counted(metrics, "DEADLINE_EXCEEDED") == 1
