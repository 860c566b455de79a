"""Many texts over one stream: sent while results come back, and no further ahead of them than a fixed number.

When the server is lost, another stream has the texts that have no result yet.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from heapq import heappop, heappush
from queue import SimpleQueue
from typing import Final, TypeAlias, cast

import grpc
import grpc.aio

from dragoman import _convert
from dragoman._calls import MAX_LOSSES, Attempt, MessageIterator, is_lost
from dragoman._lists import MAX_CALLS_IN_FLIGHT
from dragoman._requests import MAX_SEGMENTS_PER_CALL, exchange_input, num_segments
from dragoman.errors import DragomanError, FailedCall, InternalError, InvalidArgumentError
from dragoman.types import Translation
from dragoman.v1.translation_pb2 import ExchangeTranslationsRequest, ExchangeTranslationsResponse

Exchanged: TypeAlias = tuple[int, Translation | DragomanError]

AsyncCall: TypeAlias = grpc.aio.StreamStreamCall[ExchangeTranslationsRequest, ExchangeTranslationsResponse]

# Texts that are taken and whose results the caller has not taken yet: enough to keep a server
# busy, and no more than a stream of it has room for unless it was told otherwise.
MAX_TEXTS_IN_FLIGHT: Final = 256
# The next text waits while those have so many segments: as many as the calls of a list.
MAX_SEGMENTS_IN_FLIGHT: Final = MAX_CALLS_IN_FLIGHT * MAX_SEGMENTS_PER_CALL

# The status that grpc.aio gives a call whose end a write meets.
_FAILED_WRITE: Final = "Internal error from Core"
_SECONDS_PER_LOOK: Final = 0.001
_MAX_LOOKS: Final = 2000


class _Flow:
    """The texts of an exchange, from when they are taken until the caller has their results.

    Knows neither threads nor asyncio: the two exchanges below tell it what happens, one thing at a time.

    Args:
        config: the first message.
        attempt: the time of the exchange.

    Attributes:
        has_all_texts: whether no more are added.
    """

    def __init__(self, config: ExchangeTranslationsRequest, attempt: Attempt) -> None:
        self.has_all_texts = False
        self._config = config
        self._attempt = attempt
        self._num_texts = 0
        self._segments: dict[int, int] = {}  # of each text whose result the caller has not taken
        # A heap: the time from which a text may be sent, its index, and the message.
        self._to_send: list[tuple[float, int, ExchangeTranslationsRequest]] = []
        self._sent: dict[str, tuple[int, ExchangeTranslationsRequest]] = {}  # those without an answer, by id
        self._oldest_lost, self._num_losses = -1, 0  # the text without a result that was sent first, and how often

    @property
    def has_room(self) -> bool:
        """Whether another text may be added."""
        return len(self._segments) < MAX_TEXTS_IN_FLIGHT and sum(self._segments.values()) < MAX_SEGMENTS_IN_FLIGHT

    @property
    def is_finished(self) -> bool:
        """Whether all texts are answered."""
        return self.has_all_texts and not self._to_send and not self._sent

    @property
    def seconds_to_wait(self) -> float | None:
        """From now until the next request may be sent; None where there is none."""
        return max(0.0, self._to_send[0][0] - time.monotonic()) if self._to_send else None

    def add(self, text: str) -> Exchanged | None:
        """Takes the next text. One that cannot be sent has its result at once."""
        index = self._num_texts
        self._num_texts += 1
        try:
            request = exchange_input(text, index)
        except InvalidArgumentError as error:
            error.input_index = index
            self._segments[index] = 0
            return index, error
        self._segments[index] = num_segments(text)
        heappush(self._to_send, (-math.inf, index, request))
        return None

    def next_request(self) -> ExchangeTranslationsRequest | None:
        """What is to be sent now, if anything is."""
        if self.seconds_to_wait != 0:
            return None
        _, index, request = heappop(self._to_send)
        self._sent[request.input.id] = index, request
        return request

    def receive(self, response: ExchangeTranslationsResponse) -> Exchanged | None:
        """The index and the result of a text; None where the server's queue was full and it is to be sent again.

        Raises:
            InternalError: the response is for no text that waits for one.
        """
        if response.id not in self._sent:
            raise InternalError(f"The server sent a result for {response.id!r}, which it was not asked for")
        index, request = self._sent.pop(response.id)
        self._attempt.progressed()
        result = _convert.exchanged(self._config, response, index)
        if isinstance(result, DragomanError) and (seconds := self._attempt.pause(result)) is not None:
            heappush(self._to_send, (time.monotonic() + seconds, index, request))
            return None
        return index, result

    def pause(self, error: DragomanError) -> float | None:
        """The server was lost: what has no result is to be sent again, after so many seconds; None where it is not."""
        if not is_lost(error):
            return None
        oldest = min((index for index, _ in self._sent.values()), default=-1)
        self._num_losses = self._num_losses + 1 if oldest == self._oldest_lost >= 0 else 1
        self._oldest_lost = oldest
        for index, request in self._sent.values():
            heappush(self._to_send, (-math.inf, index, request))
        self._sent.clear()
        # A text that ends the servers becomes the oldest, and stays so: results of others are no progress then.
        if self._num_losses > MAX_LOSSES:
            return None
        return self._attempt.pause(error)

    def release(self, index: int) -> None:
        """The caller has taken the result of this text."""
        del self._segments[index]

    def check_end(self) -> None:
        """To be called when the server has ended the call without an error.

        Raises:
            InternalError: there are texts without a result.
        """
        if not self.is_finished:
            raise InternalError("The server ended the exchange before all texts had their results")


def exchange(
    start: Callable[[Iterator[ExchangeTranslationsRequest]], MessageIterator[ExchangeTranslationsResponse]],
    config: ExchangeTranslationsRequest,
    texts: Iterable[str],
    attempt: Attempt,
    pause: Callable[[float], None],
) -> Iterator[Exchanged]:
    """The results of `texts` as they come in: see `dragoman.Client.exchange`."""
    flow, changed = _Flow(config, attempt), threading.Condition()
    results: SimpleQueue[Exchanged | Exception | None] = SimpleQueue()  # None is the end
    failures: list[Exception] = []
    is_left, num_calls = False, 0
    call: MessageIterator[ExchangeTranslationsResponse]

    def take() -> None:  # on a thread of its own, for the next text may be long in coming
        try:
            for text in texts:
                with changed:
                    changed.wait_for(lambda: flow.has_room or is_left)
                    if is_left:
                        return
                    if result := flow.add(text):
                        results.put(result)
                    changed.notify_all()
        except Exception as error:
            failures.append(error)
        with changed:
            flow.has_all_texts = True
            changed.notify_all()

    def requests(number: int) -> Iterator[ExchangeTranslationsRequest]:  # on a thread of grpc
        yield config
        while True:
            with changed:
                while (request := flow.next_request() if number == num_calls else None) is None:
                    if flow.is_finished or is_left or number != num_calls:
                        return
                    changed.wait(flow.seconds_to_wait)
            yield request

    def receive() -> grpc.RpcError | None:
        """Takes the results of a call; returns what it failed with, if it did."""
        try:
            for response in call:
                with changed:
                    result = flow.receive(response)
                    changed.notify_all()
                if result:
                    results.put(result)
        except grpc.RpcError as failure:
            return failure
        return None

    def read() -> None:  # on a thread of its own, for results need not come from the server
        nonlocal call, num_calls
        try:
            while (failure := receive()) is not None:
                error = attempt.error(cast(FailedCall, failure))
                with changed:
                    # First, the requests of this call take no more texts.
                    num_calls += 1
                    seconds = None if is_left else flow.pause(error)
                    changed.notify_all()
                if seconds is None:
                    raise error from failure
                pause(seconds)
                with changed:
                    if is_left:
                        return
                    call = start(requests(num_calls))
            flow.check_end()
            results.put(None)
        except Exception as error:
            results.put(error)

    call = start(requests(0))
    for work in (take, read):
        threading.Thread(target=work, name=f"dragoman-exchange-{work.__name__}", daemon=True).start()
    try:
        while (result := results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
            with changed:
                flow.release(result[0])
                changed.notify_all()
    finally:
        with changed:
            is_left = True
            changed.notify_all()
        call.cancel()
    if failures:
        raise failures[0]


async def exchange_async(
    start: Callable[[], AsyncCall],
    config: ExchangeTranslationsRequest,
    texts: AsyncIterable[str] | Iterable[str],
    attempt: Attempt,
    pause: Callable[[float], Awaitable[None]],
    while_open: Callable[[], AbstractContextManager[object]],
) -> AsyncIterator[Exchanged]:
    """The results of `texts` as they come in: see `dragoman.AsyncClient.exchange`."""
    flow, changed = _Flow(config, attempt), asyncio.Event()
    results: asyncio.Queue[Exchanged | Exception | None] = asyncio.Queue()  # None is the end
    failures: list[Exception] = []

    async def take() -> None:
        try:
            async for text in _async_iterator(texts):
                while not flow.has_room:
                    changed.clear()
                    await changed.wait()
                if result := flow.add(text):
                    results.put_nowait(result)
                changed.set()
        except Exception as error:
            failures.append(error)
        flow.has_all_texts = True
        changed.set()

    async def write(call: AsyncCall) -> None:
        # Where a write fails, the call is over: why, is for `receive` to tell.
        with suppress(grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
            await call.write(config)
            while not flow.is_finished:
                if (request := flow.next_request()) is not None:
                    await call.write(request)
                    continue
                changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(flow.seconds_to_wait):
                        await changed.wait()
            await call.done_writing()

    async def receive(call: AsyncCall) -> grpc.aio.AioRpcError:
        """Takes the results of a call; returns its status."""
        ending, writing = _Ending(call), asyncio.create_task(write(call))
        try:
            with while_open(), suppress(grpc.aio.AioRpcError):
                async for response in call:
                    if result := flow.receive(response):
                        results.put_nowait(result)
                    changed.set()
            return await ending.status()
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def read() -> None:
        try:
            next_call = call
            while (status := await receive(next_call)).code() is not grpc.StatusCode.OK:
                error = attempt.error(status)
                if (seconds := flow.pause(error)) is None:
                    raise error from status
                await pause(seconds)
                with while_open():
                    next_call = start()
            flow.check_end()
            results.put_nowait(None)
        except Exception as error:
            results.put_nowait(error)

    with while_open():
        call = start()
    tasks = [asyncio.create_task(work()) for work in (take, read)]
    try:
        while (result := await results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
            flow.release(result[0])
            changed.set()
    finally:
        call.cancel()  # also where `read` has not begun
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if failures:
        raise failures[0]


class _Ending:
    """The status with which the server ends a call, be it OK.

    Where a write meets the end of a call, grpc.aio puts an INTERNAL of its own in the place of the status. That is over
    the server's, which is seen here before, or under it, which then is a moment away.
    """

    def __init__(self, call: AsyncCall) -> None:
        self._call = call
        self._status: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._look)

    async def status(self) -> grpc.aio.AioRpcError:
        """To be asked for once the call is done."""
        self._look(self._call)
        for _ in range(_MAX_LOOKS):
            if self._status is not None:
                return self._status
            await asyncio.sleep(_SECONDS_PER_LOOK)
            self._look(self._call)
        return await self._current()

    def _look(self, _: object) -> None:
        try:
            self._current().send(None)
        except StopIteration as end:  # without a wait, as the call has a status
            if self._status is None and end.value.details() != _FAILED_WRITE:
                self._status = end.value

    async def _current(self) -> grpc.aio.AioRpcError:
        call = self._call
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        return grpc.aio.AioRpcError(await call.code(), initial, trailing, await call.details())


async def _async_iterator(texts: AsyncIterable[str] | Iterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text
