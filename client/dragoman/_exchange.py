"""Many texts over one stream: sent while results come back, and no further ahead of them than a fixed number."""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias, cast

import grpc
import grpc.aio

from dragoman import _convert
from dragoman._calls import MAX_EXCHANGE_IN_FLIGHT, MessageIterator
from dragoman._requests import exchange_input
from dragoman.errors import DragomanError, FailedCall, error_from_call
from dragoman.types import Translation
from dragoman.v1.translation_pb2 import ExchangeTranslationsRequest, ExchangeTranslationsResponse

Exchanged: TypeAlias = tuple[int, Translation | DragomanError]

AsyncCall: TypeAlias = grpc.aio.StreamStreamCall[ExchangeTranslationsRequest, ExchangeTranslationsResponse]


def exchange(
    start: Callable[[Iterator[ExchangeTranslationsRequest]], MessageIterator[ExchangeTranslationsResponse]],
    config: ExchangeTranslationsRequest,
    texts: Iterable[str],
) -> Iterator[Exchanged]:
    """The results of `texts` as they come in: see `dragoman.Client.exchange`."""
    permits = threading.Semaphore(MAX_EXCHANGE_IN_FLIGHT)
    has_ended = threading.Event()
    failures: list[Exception] = []

    def requests() -> Iterator[ExchangeTranslationsRequest]:  # on a thread of grpc
        yield config
        try:
            for index, text in enumerate(texts):
                permits.acquire()
                if has_ended.is_set():
                    return
                yield exchange_input(text, index)
        except Exception as error:
            failures.append(error)  # grpc would log it and cancel the call

    call = start(requests())
    try:
        for response in call:
            yield _convert.exchanged(config, response)
            permits.release()
    except grpc.RpcError as error:
        raise error_from_call(cast(FailedCall, error)) from error
    finally:
        has_ended.set()
        permits.release()  # for the thread, which may wait for one
        call.cancel()
    if failures:
        raise failures[0]


async def exchange_async(
    start: Callable[[], AsyncCall],
    config: ExchangeTranslationsRequest,
    texts: AsyncIterable[str] | Iterable[str],
    while_open: Callable[[], AbstractContextManager[object]],
) -> AsyncIterator[Exchanged]:
    """The results of `texts` as they come in: see `dragoman.AsyncClient.exchange`."""
    permits = asyncio.Semaphore(MAX_EXCHANGE_IN_FLIGHT)
    with while_open():
        call = start()

    async def write() -> None:
        try:
            await call.write(config)
            index = 0
            async for text in _async_iterator(texts):
                await permits.acquire()
                await call.write(exchange_input(text, index))
                index += 1
        finally:
            await call.done_writing()

    writing = asyncio.create_task(write())
    try:
        while True:
            with while_open():
                response = await call.read()
            if not isinstance(response, ExchangeTranslationsResponse):
                break
            yield _convert.exchanged(config, response)
            permits.release()
    except grpc.aio.AioRpcError as error:
        raise error_from_call(error) from error
    finally:
        call.cancel()
        writing.cancel()
        [failure] = await asyncio.gather(writing, return_exceptions=True)
    if isinstance(failure, Exception):
        raise failure


async def _async_iterator(texts: AsyncIterable[str] | Iterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text
