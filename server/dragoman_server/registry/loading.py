"""Loading a model, which may hang inside a graph and must not keep the process.

Nothing ends a thread that is inside ONNX Runtime. So a model is loaded on a thread that is left behind when a signal
comes or its time is up; a process with such a thread ends by `ending.leave`.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from dragoman_server.bundle.manifest import WEIGHTS_FILE
from dragoman_server.ending import LOADING_THREAD_NAME
from dragoman_server.errors import StartError

_T = TypeVar("_T")


# The model shipped with the server takes a second; large ones are read for longer.
_MAX_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 25e6


class StoppedError(Exception):
    """What was being loaded is not wanted any more."""


def max_load_seconds(folder: Path) -> float:
    """How long loading the bundle in this folder may take."""
    weights = folder / WEIGHTS_FILE
    return _MAX_SECONDS + (weights.stat().st_size if weights.is_file() else 0) / _LEAST_BYTES_PER_SECOND


def took_too_long(max_seconds: float) -> StartError:
    """The error where loading did not end in time."""
    return StartError(
        f"the model was not loaded within {max_seconds:.0f} seconds: a graph hangs, or the machine is too slow"
    )


async def load(work: Callable[[], _T], stop: asyncio.Event, max_seconds: float) -> _T:
    """Does the work on a thread of its own, and leaves it behind where it does not end.

    Raises:
        StoppedError: `stop` was set first.
        StartError: it took more than `max_seconds`.
        Exception: what the work raised.
    """
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # it cannot be cancelled, whoever waits for it

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=LOADING_THREAD_NAME, daemon=True).start()
    loaded, stopped = asyncio.wrap_future(future), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((loaded, stopped), timeout=max_seconds, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            raise StoppedError
        if loaded.done():
            return loaded.result()
        raise took_too_long(max_seconds)
    finally:
        stopped.cancel()
        loaded.cancel()
