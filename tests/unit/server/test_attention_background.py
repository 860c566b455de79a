import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnxruntime as ort
import pytest

from dragoman_server.runtime import background as background_module
from dragoman_server.runtime.background import Background

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no policies of threads")


class Recorder:
    """A run that notes where it runs. Like one without a processor, it takes until it is terminated while told so."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.finds_no_processor = False

    def __call__(self, options: ort.RunOptions) -> None:
        self.threads.append(threading.get_native_id())
        if self.finds_no_processor:
            self.finds_no_processor = False
            while not options.terminate:
                time.sleep(0.001)
            raise RuntimeError("terminated")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


def test_runs_are_on_one_other_thread(background: Background, recorder: Recorder) -> None:
    background.run(recorder)
    background.run(recorder)
    assert recorder.threads[0] == recorder.threads[1] != threading.get_native_id()


@ON_LINUX
def test_it_runs_where_nobody_else_does_and_the_caller_does_not(background: Background) -> None:
    policies: list[int] = []
    background.run(lambda _: policies.append(os.sched_getscheduler(threading.get_native_id())))
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(threading.get_native_id()) != os.SCHED_IDLE


@ON_LINUX
def test_what_finds_no_processor_gets_what_it_is_owed_from_the_caller(
    background: Background, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "_PATIENCE_SECONDS", 0.5)
    recorder.finds_no_processor = True
    background.run(recorder)
    background.run(recorder)
    idle, *others = recorder.threads
    assert others == [threading.get_native_id()] * 2 != [idle, idle]

    background.run(lambda _: compute(0.1))
    background.run(recorder)
    assert recorder.threads[-1] == idle


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_what_ends_while_it_is_terminated_is_not_run_again(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "_PATIENCE_SECONDS", 0.01)
    done: list[bool] = []

    def run(options: ort.RunOptions) -> None:
        while not options.terminate:
            time.sleep(0.001)
        done.append(True)

    background.run(run)
    assert done == [True]


def test_what_computes_may_take_long(
    background: Background, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_module, "_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(background_module._IdleThread, "cpu_seconds", lambda _: time.monotonic())

    def run(options: ort.RunOptions) -> None:
        time.sleep(0.1)
        assert not options.terminate
        recorder(options)

    background.run(run)
    assert len(recorder.threads) == 1


@ON_LINUX
def test_where_low_priority_is_refused_it_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recorder: Recorder
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    background = Background()
    background.run(recorder)
    background.close()
    assert len(recorder.threads) == 1
    assert "attention is computed at full priority" in caplog.text


def test_what_a_run_raises_is_raised_and_forgotten(background: Background, recorder: Recorder) -> None:
    def fail(_: ort.RunOptions) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        background.run(fail)
    background.run(recorder)


@ON_LINUX
@pytest.mark.parametrize("num_starved", [0, 3])
def test_runs_of_several_threads_are_done_one_at_a_time(
    background: Background, monkeypatch: pytest.MonkeyPatch, num_starved: int
) -> None:
    """Some of them on the threads of their callers, where they found no processor before."""
    monkeypatch.setattr(background_module, "_PATIENCE_SECONDS", 0.01)
    running, starved = threading.Lock(), threading.Semaphore(num_starved)
    done: list[int] = []
    errors: list[BaseException] = []

    def run(number: int, options: ort.RunOptions) -> None:
        assert running.acquire(blocking=False)
        try:
            if threading.current_thread().name == "dragoman-background" and starved.acquire(blocking=False):
                while not options.terminate:
                    time.sleep(0.001)
                raise RuntimeError("terminated")
            done.append(number)
        finally:
            running.release()

    def call(numbers: range) -> None:
        try:
            for number in numbers:
                background.run(partial(run, number))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=[range(first, first + 5)], daemon=True) for first in range(0, 20, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    assert sorted(done) == list(range(20))


def test_a_thread_with_many_runs_does_not_keep_others_from_theirs(background: Background) -> None:
    order: list[str] = []
    runs, others_wait = threading.Event(), threading.Event()

    def hold(_: ort.RunOptions) -> None:
        runs.set()
        assert others_wait.wait(timeout=30)
        order.append("first of the first")

    def call_twice() -> None:
        background.run(hold)
        background.run(lambda _: order.append("second of the first"))

    first = threading.Thread(target=call_twice, daemon=True)
    first.start()
    assert runs.wait(timeout=30)
    others = [
        threading.Thread(target=background.run, args=[lambda _: order.append("of another")], daemon=True)
        for _ in range(3)
    ]
    for number, other in enumerate(others, start=2):
        other.start()
        while background._num_called < number:
            time.sleep(0.001)
    others_wait.set()
    for thread in (first, *others):
        thread.join(timeout=30)
    assert order == ["first of the first", *["of another"] * 3, "second of the first"]


def test_a_run_that_fails_lets_the_next_thread_have_its_turn(background: Background, recorder: Recorder) -> None:
    def fail(_: ort.RunOptions) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        background.run(fail)
    next_one = threading.Thread(target=background.run, args=[recorder], daemon=True)
    next_one.start()
    next_one.join(timeout=30)
    assert len(recorder.threads) == 1


@ON_LINUX
def test_nothing_is_left_when_it_is_closed(recorder: Recorder) -> None:
    def open_files() -> set[str]:
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    before, threads = open_files(), threading.active_count()
    background = Background()
    background.run(recorder)
    background.close()
    assert open_files() == before
    assert threading.active_count() == threads
