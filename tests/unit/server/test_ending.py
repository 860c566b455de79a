"""A process ends, whatever hangs in it."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from dragoman_server.ending import LastResort, leave
from dragoman_server.errors import StartError
from dragoman_server.registry.loading import load


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With which the process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.fixture
def thread_left_behind() -> Iterator[None]:
    hanging = threading.Event()
    with pytest.raises(StartError):
        asyncio.run(load(hanging.wait, asyncio.Event(), max_seconds=0.05))
    yield
    hanging.set()


def timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_process_that_left_nothing_behind_ends_as_any_other(codes: list[int]) -> None:
    with pytest.raises(SystemExit) as end:
        leave(7)
    assert end.value.code == 7
    assert codes == []


@pytest.mark.usefixtures("thread_left_behind")
def test_a_process_that_left_a_thread_behind_ends_at_once(codes: list[int]) -> None:
    with pytest.raises(SystemExit):  # since it does not end here
        leave(7)
    assert codes == [7]


def test_the_last_resort_ends_the_process_in_time(codes: list[int]) -> None:
    last_resort = LastResort()
    last_resort.arm(0.01, 70)
    for timer in timers():
        timer.join()
    assert codes == [70]


def test_the_last_resort_does_nothing_once_it_is_not_needed(codes: list[int]) -> None:
    last_resort = LastResort()
    last_resort.close()
    last_resort.arm(3600, 70)
    last_resort.close()
    assert not any(
        isinstance(thread, threading.Timer) and not thread.finished.is_set() for thread in threading.enumerate()
    )
    assert codes == []
