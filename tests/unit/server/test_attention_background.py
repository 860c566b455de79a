import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dragoman_server.attention.background import BackgroundThread

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no policies of threads")


@pytest.fixture
def background() -> Iterator[BackgroundThread]:
    background = BackgroundThread()
    yield background
    background.close()


def test_the_work_is_done_on_another_thread(background: BackgroundThread) -> None:
    threads: list[int] = []
    for _ in range(2):
        background.run(lambda: threads.append(threading.get_ident()))
    assert threads[0] == threads[1] != threading.get_ident()


@ON_LINUX
def test_it_stands_back_and_the_caller_does_not(background: BackgroundThread) -> None:
    policies: list[int] = []
    background.run(lambda: policies.append(os.sched_getscheduler(threading.get_native_id())))
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(threading.get_native_id()) != os.SCHED_IDLE


@ON_LINUX
def test_where_that_is_refused_the_work_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    background, done = BackgroundThread(), list[int]()
    background.run(lambda: done.append(1))
    background.close()
    assert done == [1]
    assert "attention is computed at full priority" in caplog.text


def test_what_the_work_raises_is_raised_and_forgotten(background: BackgroundThread) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        background.run(fail)
    background.run(lambda: None)


@ON_LINUX
def test_nothing_is_left_when_it_is_closed() -> None:
    def open_files() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before, threads = open_files(), threading.active_count()
    background = BackgroundThread()
    background.run(lambda: None)
    background.close()
    assert open_files() == before
    assert threading.active_count() == threads
