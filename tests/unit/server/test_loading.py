"""Work that may hang is done where it can be left behind."""

import asyncio
import threading

import pytest

from dragoman_server.ending import LOADING_THREAD_NAME
from dragoman_server.errors import BundleError, StartError
from dragoman_server.registry.loading import StoppedError, load


@pytest.fixture
def hanging() -> threading.Event:
    return threading.Event()


async def test_what_is_loaded_is_returned() -> None:
    assert await load(lambda: 5, asyncio.Event(), max_seconds=30) == 5


async def test_what_goes_wrong_is_raised() -> None:
    def fail() -> None:
        raise BundleError("damaged")

    with pytest.raises(BundleError, match="damaged"):
        await load(fail, asyncio.Event(), max_seconds=30)


async def test_a_signal_ends_the_waiting(hanging: threading.Event) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    with pytest.raises(StoppedError):
        await load(hanging.wait, stop, max_seconds=30)
    hanging.set()


async def test_nothing_is_loaded_after_a_signal() -> None:
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(StoppedError):
        await load(lambda: 5, stop, max_seconds=30)


async def test_what_takes_too_long_is_an_error_at_start(hanging: threading.Event) -> None:
    with pytest.raises(StartError, match="the model was not loaded within 0 seconds: a graph hangs"):
        await load(hanging.wait, asyncio.Event(), max_seconds=0.05)
    hanging.set()


def test_what_was_left_behind_may_end_when_nobody_waits(hanging: threading.Event) -> None:
    """pytest makes an error of an exception that a thread does not handle."""
    with pytest.raises(StartError):
        asyncio.run(load(hanging.wait, asyncio.Event(), max_seconds=0.05))
    hanging.set()
    for thread in threading.enumerate():
        if thread.name == LOADING_THREAD_NAME:
            thread.join()
