"""What the guard does where no call over the wire can show it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from dragoman_server.metrics import Metrics
from dragoman_server.wire.guard import Guard, StreamRules

METHOD = "/dragoman.v1.TranslationService/Translate"


def context(
    *messages: bytes, remaining: float | None = None, metadata: Sequence[tuple[str, str | bytes]] = ()
) -> SimpleNamespace:
    """That of a call with these requests; `written` are the responses."""
    unread, written, trailers = list(messages), list[object](), list[tuple[str, str | bytes]]()

    async def read() -> object:
        return unread.pop(0) if unread else grpc.aio.EOF

    async def write(response: object) -> None:
        written.append(response)

    async def abort(code: grpc.StatusCode, message: str, _: object) -> None:
        raise AbortedError(code, message)

    return SimpleNamespace(
        time_remaining=lambda: remaining,
        invocation_metadata=lambda: metadata,
        set_trailing_metadata=trailers.extend,
        auth_context=dict,
        peer=lambda: "ipv4:192.0.2.1:4321",
        read=read,
        write=write,
        written=written,
        trailers=trailers,
        abort=abort,
    )


class AbortedError(Exception):
    """How a call was ended: code and message."""


async def stream(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def guarded(guard: Guard, behaviour: Callable[[Any, object], Any], kind: str) -> Callable[..., Any]:
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

    handler = await guarded(Guard(metrics, {}), wait_for_ever, "unary_unary")
    call = asyncio.create_task(handler(stream(), context(b"")))
    await waiting.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert num_counted(metrics, "CANCELLED") == 1


async def test_a_request_is_parsed() -> None:
    async def repeat(request: str, _: object) -> str:
        return request * 2

    metrics = Metrics()
    assert await (await guarded(Guard(metrics, {}), repeat, "unary_unary"))(stream(), context(b"a")) == "aa"
    assert num_counted(metrics, "OK") == 1


async def test_every_request_of_a_stream_is_parsed_and_the_call_counted_once() -> None:
    async def join(requests: AsyncIterator[str], _: object) -> str:
        return "".join([request async for request in requests])

    metrics = Metrics()
    assert await (await guarded(Guard(metrics, {}), join, "stream_unary"))(stream(b"a", b"b"), context()) == "ab"
    assert num_counted(metrics, "OK") == 1


async def test_every_response_of_a_stream_is_written_and_the_call_counted_once() -> None:
    async def letters(request: str, _: object) -> AsyncIterator[str]:
        for letter in request:
            yield letter

    async def doubled(requests: AsyncIterator[str], _: object) -> AsyncIterator[str]:
        async for request in requests:
            yield request * 2

    metrics, single, several = Metrics(), context(b"abc"), context()
    await (await guarded(Guard(metrics, {}), letters, "unary_stream"))(stream(), single)
    await (await guarded(Guard(metrics, {}), doubled, "stream_stream"))(stream(b"a", b"b"), several)
    assert (single.written, several.written) == (["a", "b", "c"], ["aa", "bb"])
    assert num_counted(metrics, "OK") == 2


async def test_the_next_response_is_asked_for_when_there_is_room() -> None:
    asked, room = list[int](), asyncio.Semaphore(0)

    async def numbers(_: object, __: object) -> AsyncIterator[int]:
        for number in range(3):
            asked.append(number)
            yield number

    async def write(_: object) -> None:
        await room.acquire()

    slow = context(b"")
    slow.write = write
    call = asyncio.create_task((await guarded(Guard(Metrics(), {}), numbers, "unary_stream"))(stream(), slow))
    for number in range(3):
        await asyncio.sleep(0.01)
        assert asked == [*range(number + 1)]
        room.release()
    await call


async def never(_: object) -> None:
    await asyncio.Event().wait()


async def test_a_caller_who_takes_nothing_for_too_long_is_let_go() -> None:
    closed, slow, metrics = asyncio.Event(), context(b""), Metrics()

    async def numbers(_: object, __: object) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.set()

    slow.write = never
    rules = {METHOD.lstrip("/"): StreamRules(stall_seconds=0.01)}
    with pytest.raises(AbortedError) as caught:
        await (await guarded(Guard(metrics, rules), numbers, "unary_stream"))(stream(), slow)
    assert caught.value.args == (grpc.StatusCode.RESOURCE_EXHAUSTED, "nothing was read for 0.01 seconds")
    assert closed.is_set()
    assert num_counted(metrics, "RESOURCE_EXHAUSTED") == 1


async def test_of_open_calls_only_those_that_wait_for_their_callers_are_ended_early() -> None:
    """Idle are streams without a request that is to be answered; one that works is left alone until all are ended."""
    go_on, metrics = asyncio.Event(), Metrics()
    guard = Guard(metrics, {METHOD.lstrip("/"): StreamRules(num_answers=lambda request: request == "question")})

    async def work(requests: AsyncIterator[str], _: object) -> AsyncIterator[str]:
        async for request in requests:
            if request == "question":
                await go_on.wait()
                yield "answer"

    async def endless(*requests: bytes) -> AsyncIterator[bytes]:
        for request in requests:
            yield request
        await asyncio.Event().wait()

    handler = await guarded(guard, work, "stream_stream")
    idle = asyncio.create_task(handler(endless(b"config"), context()))
    busy = asyncio.create_task(handler(endless(b"config", b"question"), (busy_context := context())))
    stalled_context = context()
    stalled_context.write = never
    go_on.set()
    stalled = asyncio.create_task(handler(endless(b"question"), stalled_context))
    await asyncio.sleep(0.01)
    go_on.clear()
    other = asyncio.create_task(handler(endless(b"question"), context()))
    await asyncio.sleep(0.01)
    assert busy_context.written == ["answer"]  # and has been idle since
    guard.open_calls.end_waiting(60.0)
    await asyncio.sleep(0.01)
    assert len(guard.open_calls) == 4
    guard.open_calls.end_waiting(0.0)
    for call in (idle, busy, stalled):
        with pytest.raises(AbortedError) as caught:
            await call
        assert caught.value.args[0] is grpc.StatusCode.UNAVAILABLE
    assert len(guard.open_calls) == 1
    guard.open_calls.end_all()
    with pytest.raises(AbortedError):
        await other
    assert num_counted(metrics, "UNAVAILABLE") == 4
    guard.is_draining = True
    with pytest.raises(AbortedError) as caught:
        await handler(endless(), context())
    assert caught.value.args == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")


async def test_a_stream_whose_caller_leaves_while_it_is_written_to_is_closed() -> None:
    begun, closed, slow = asyncio.Event(), asyncio.Event(), context(b"")

    async def numbers(_: object, __: object) -> AsyncIterator[int]:
        try:
            begun.set()
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    slow.write = never
    call = asyncio.create_task((await guarded(Guard(Metrics(), {}), numbers, "unary_stream"))(stream(), slow))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert closed.is_set()


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_caller_who_leaves_is_not_counted_as_one_who_has_sent_all(kind: str) -> None:
    """Its stream of requests ends as if it were complete, a moment before the call is cancelled."""

    async def read_all(requests: Any, _: object) -> None:
        async for _request in requests:
            pass

    async def repeat_all(requests: Any, _: object) -> AsyncIterator[str]:
        async for request in requests:
            yield request

    behaviour: Callable[[Any, object], Any] = read_all if kind == "unary_unary" else repeat_all
    metrics = Metrics()
    handler = await guarded(Guard(metrics, {}), behaviour, kind)
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
    handler = await guarded(Guard(metrics, {}), wait_for_ever, "unary_unary")
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
    handler = await guarded(Guard(metrics, {}), answer, "unary_unary")
    await handler(stream(), context(b"", remaining=0.0))
    assert num_counted(metrics, "DEADLINE_EXCEEDED") == 1
