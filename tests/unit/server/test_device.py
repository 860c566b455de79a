import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from dragoman_server.runtime.device import Device


class Countdown:
    """Has so many steps to do in its only lane, or in each of several."""

    def __init__(self, num_steps: int, num_lanes: int = 1, on_step: Callable[[int], object] = lambda _: None) -> None:
        self.left = [num_steps] * num_lanes
        self.threads: set[str] = set()
        self.was_alone: list[bool] = []  # by step
        self.on_step = on_step
        self.is_done = threading.Event()

    def has_work(self, lane: int) -> bool:
        return self.left[lane] > 0

    def step(self, lane: int, is_alone: bool) -> None:
        self.threads.add(threading.current_thread().name)
        self.was_alone.append(is_alone)
        self.on_step(lane)
        self.left[lane] -= 1
        if not any(self.left):
            self.is_done.set()


class Hold:
    """Holds a step up: `reached` is set when it begins, it goes on when `goes_on` is set."""

    def __init__(self) -> None:
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, _: int) -> None:
        self.reached.set()
        wait(self.goes_on)


def wait(what: threading.Barrier | threading.Event) -> None:
    assert what.wait(timeout=30) is not False


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


def test_engines_get_equal_shares_of_the_time() -> None:
    now = 0.0
    order: list[str] = []

    def taking(seconds: float, name: str) -> Callable[[int], None]:
        def take(_: int) -> None:
            nonlocal now
            now += seconds
            order.append(name)

        return take

    begin = Hold()
    quick, slow = Countdown(9, on_step=taking(1.0, "quick")), Countdown(3, on_step=taking(3.0, "slow"))
    with Device(1, clock=lambda: now) as device:
        device.attach(Countdown(1, on_step=begin))
        device.attach(quick)
        device.attach(slow)
        begin.goes_on.set()
        wait(quick.is_done)
        wait(slow.is_done)
    # Where both have used as much the first goes on.
    assert order == ["quick", "slow", *["quick"] * 3, "slow", *["quick"] * 3, "slow", *["quick"] * 2]


def test_a_lane_that_is_woken_does_its_work() -> None:
    work = Countdown(0, num_lanes=2)
    with Device(2) as device:
        device.attach(work)
        work.left[1] = 5
        device.wake(work, 1)
        wait(work.is_done)
    assert work.threads == {"dragoman-lane-1"}


def test_a_lane_is_alone_while_nobody_else_computes_in_another() -> None:
    hold, both = Hold(), threading.Barrier(2, timeout=30)
    busy, other = Countdown(0, num_lanes=2, on_step=hold), Countdown(0, num_lanes=2)
    own = Countdown(1, num_lanes=2, on_step=lambda _: wait(both))
    with Device(2) as device:
        device.attach(busy)
        device.attach(other)
        busy.left[1] = 1
        device.wake(busy, 1)
        wait(hold.reached)
        other.left[0] = 1
        device.wake(other, 0)
        wait(other.is_done)
        hold.goes_on.set()
        wait(busy.is_done)
        device.detach(busy)
        other.is_done.clear()
        other.left[0] = 1
        device.wake(other, 0)
        wait(other.is_done)
        device.attach(own)  # knows of its own lanes itself
        wait(own.is_done)
    assert other.was_alone == [False, True]
    assert own.was_alone == [True, True]


def test_others_that_have_work_are_counted_by_lane() -> None:
    hold = Hold()
    idle, busy, late = Countdown(0, num_lanes=2), Countdown(0, num_lanes=2, on_step=hold), Countdown(0, num_lanes=2)
    with Device(2) as device:
        for stepper in (idle, busy, late):
            device.attach(stepper)
        busy.left[1] = 1
        device.wake(busy, 1)
        wait(hold.reached)
        assert device.num_others(idle) == [0, 1]
        assert device.num_others(busy) == [0, 0]
        late.left[1] = 1
        device.wake(late, 1)
        assert device.num_others(idle) == [0, 2]
        hold.goes_on.set()
        wait(late.is_done)


def test_detaching_waits_for_the_step_under_way_and_lets_no_other_begin() -> None:
    hold = Hold()
    work = Countdown(5, on_step=hold)
    with Device(1) as device:
        device.attach(work)
        wait(hold.reached)
        detaching = threading.Thread(target=device.detach, args=[work])
        detaching.start()
        detaching.join(timeout=0.1)
        assert detaching.is_alive()
        hold.goes_on.set()
        detaching.join(timeout=30)
        assert work.left == [4]
        device.wake(work, 0)
    assert work.left == [4]


def test_only_its_own_detaching_waits_for_a_step() -> None:
    hold = Hold()
    stuck, gone, come = Countdown(1, on_step=hold), Countdown(9, num_lanes=2), Countdown(9, num_lanes=2)
    stuck.left = [1, 0]
    with Device(2) as device:
        device.attach(stuck)
        wait(hold.reached)
        detaching = threading.Thread(target=device.detach, args=[stuck])
        detaching.start()
        device.attach(gone)
        device.detach(gone)
        assert gone.left[0] == 9
        come.left[0] = 0
        device.attach(come)
        wait(come.is_done)
        assert detaching.is_alive()
        hold.goes_on.set()
        detaching.join(timeout=30)
        assert not detaching.is_alive()


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle lanes", "busy lanes"])
def test_nothing_refers_to_a_stepper_that_was_detached(is_busy: bool) -> None:
    begun = threading.Event()
    others = Countdown(sys.maxsize, num_lanes=2, on_step=lambda _: begun.set())
    with Device(2) as device:
        if is_busy:
            device.attach(others)
        for _ in range(3):
            work = Countdown(5, num_lanes=2)
            device.attach(work)
            wait(work.is_done)
            device.detach(work)
            work_left = weakref.ref(work)
            gc.disable()  # references go at once, not when they are found to be a cycle
            try:
                del work
                end = time.monotonic() + 30
                while work_left() is not None and time.monotonic() < end:  # a busy lane may just be looking at it
                    time.sleep(0.001)
                assert work_left() is None
            finally:
                gc.enable()
        device.detach(others)


def test_engines_come_and_go_while_others_compute() -> None:
    num_steps = [0, 0]

    def count(lane: int) -> None:
        num_steps[lane] += 1

    others = Countdown(sys.maxsize, num_lanes=2, on_step=count)

    def come_and_go() -> None:
        for _ in range(50):
            work = Countdown(3, num_lanes=2)
            device.attach(work)
            wait(work.is_done)
            device.detach(work)

    with Device(2) as device:
        device.attach(others)
        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        device.detach(others)
        assert [sys.maxsize - left for left in others.left] == num_steps
        assert min(num_steps) > 0


def test_closing_ends_the_threads() -> None:
    device = Device(2)
    device.close()
    assert not any(thread.name.startswith("dragoman-lane") for thread in threading.enumerate())
