import os
import sys
import threading
from collections.abc import Callable

import pytest

from dragoman_server.runtime.device import Device


class Countdown:
    """Has so many steps to do in its only lane, or in each of several."""

    def __init__(self, num_steps: int, num_lanes: int = 1, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.left = [num_steps] * num_lanes
        self.threads: set[str] = set()
        self.on_step = on_step
        self.is_done = threading.Event()

    def has_work(self, lane: int) -> bool:
        return self.left[lane] > 0

    def step(self, lane: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.on_step(lane)
        self.left[lane] -= 1
        if not any(self.left):
            self.is_done.set()


def wait(what: threading.Barrier | threading.Event) -> None:
    what.wait(timeout=30)


def test_every_lane_has_a_thread_of_its_own() -> None:
    together = threading.Barrier(3, timeout=30)
    work = Countdown(2, num_lanes=3, on_step=lambda _: wait(together))
    with Device(3) as device:
        device.attach(work)
        assert work.is_done.wait(timeout=30)
    assert work.threads == {"dragoman-lane-0", "dragoman-lane-1", "dragoman-lane-2"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no policies of threads")
def test_lanes_take_the_processor_from_nobody_who_runs() -> None:
    policies: list[int] = []
    work = Countdown(1, on_step=lambda _: policies.append(os.sched_getscheduler(threading.get_native_id())))
    with Device(1) as device:
        device.attach(work)
        assert work.is_done.wait(timeout=30)
    assert policies == [os.SCHED_BATCH]
    assert os.sched_getscheduler(threading.get_native_id()) == os.SCHED_OTHER


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no policies of threads")
def test_lanes_keep_a_policy_that_somebody_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_IDLE)
    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda _, policy, __: chosen.append(policy))
    with Device(1):
        pass
    assert chosen == []


def test_engines_take_turns_step_by_step() -> None:
    order: list[str] = []
    begin = threading.Event()
    first = Countdown(3, on_step=lambda _: order.append("first"))
    second = Countdown(3, on_step=lambda _: order.append("second"))
    gate = Countdown(1, on_step=lambda _: wait(begin))
    with Device(1) as device:
        device.attach(gate)
        device.attach(first)
        device.attach(second)
        begin.set()
        assert first.is_done.wait(timeout=30)
        assert second.is_done.wait(timeout=30)
    assert order == ["first", "second"] * 3


def test_a_lane_that_is_woken_does_its_work() -> None:
    work = Countdown(0, num_lanes=2)
    with Device(2) as device:
        device.attach(work)
        work.left[1] = 5
        device.wake(1)
        assert work.is_done.wait(timeout=30)
    assert work.threads == {"dragoman-lane-1"}


def test_detaching_waits_for_the_step_under_way_and_lets_no_other_begin() -> None:
    reached, goes_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        reached.set()
        goes_on.wait(timeout=30)

    work = Countdown(5, on_step=hold)
    with Device(1) as device:
        device.attach(work)
        assert reached.wait(timeout=30)
        detaching = threading.Thread(target=device.detach, args=[work])
        detaching.start()
        detaching.join(timeout=0.1)
        assert detaching.is_alive()
        goes_on.set()
        detaching.join(timeout=30)
        assert work.left == [4]
        device.wake(0)
    assert work.left == [4]


def test_closing_ends_the_threads() -> None:
    device = Device(2)
    device.close()
    assert not any(thread.name.startswith("dragoman-lane") for thread in threading.enumerate())
