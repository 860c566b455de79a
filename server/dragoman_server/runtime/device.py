"""The lanes of a device: threads, each of which does one step of some engine at a time."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

from dragoman_server.config import EngineOptions
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.session import flush_denormals
from dragoman_server.runtime.turns import Stepper, Turns


class Device:
    """Runs the lanes of all engines that are attached, which take turns step by step and get equal shares of the time.

    However many engines there are, no more lanes than these compute at the same time.

    Args:
        num_lanes: threads.
        clock: that steps are timed by, in seconds.
    """

    def __init__(self, num_lanes: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._attaching = threading.Lock()
        self._is_closed = False
        self._changed = [threading.Condition() for _ in range(num_lanes)]  # by lane; guards the next two
        self._turns = [Turns(lane) for lane in range(num_lanes)]
        self._busy_seconds = [0.0] * num_lanes  # each is written by its lane alone
        self._current: list[Stepper | None] = [None] * num_lanes
        self._threads = [
            threading.Thread(target=self._run, args=[lane], name=f"dragoman-lane-{lane}", daemon=True)
            for lane in range(num_lanes)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, options: EngineOptions) -> Self:
        """The CPUs that this process may use, with as many lanes as these options say."""
        num_lanes, _ = options.shape(available_cpus())
        return cls(num_lanes)

    @property
    def num_lanes(self) -> int:
        return len(self._threads)

    @property
    def busy_seconds(self) -> float:
        """That steps have taken so far, in all lanes together."""
        return sum(self._busy_seconds)

    def attach(self, stepper: Stepper) -> None:
        """Runs the stepper's lanes from now on."""
        with self._attaching:
            for turns, changed in zip(self._turns, self._changed, strict=True):
                with changed:
                    turns.add(stepper)
                    changed.notify_all()

    def detach(self, stepper: Stepper) -> None:
        """Returns when no lane of the stepper is run any more; nothing here refers to it then."""
        with self._attaching:
            for turns, changed in zip(self._turns, self._changed, strict=True):
                with changed:
                    turns.remove(stepper)
        for lane, changed in enumerate(self._changed):
            with changed:
                changed.wait_for(lambda lane=lane: self._current[lane] is not stepper)  # type: ignore[misc]

    def wake(self, stepper: Stepper, lane: int) -> None:
        """Tells that a lane of the stepper has work."""
        with self._changed[lane]:
            self._turns[lane].wake(stepper)
            self._changed[lane].notify_all()

    def num_others(self, stepper: Stepper) -> list[int]:
        """How many other steppers have work, by lane: a glance, without a lock."""
        return [turns.num_others(stepper) for turns in self._turns]

    def close(self) -> None:
        """Ends the threads after their current steps."""
        self._is_closed = True
        for changed in self._changed:
            with changed:
                changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, lane: int) -> None:
        flush_denormals()
        _schedule_as_batch()
        seconds = 0.0
        while self._begin_turn(lane, seconds):
            began = self._clock()
            self._step(lane)
            seconds = self._clock() - began
            self._busy_seconds[lane] += seconds

    def _begin_turn(self, lane: int, seconds: float) -> bool:
        """Waits until some stepper has work, and makes it the lane's current one; False where the device is closed.

        Args:
            lane: which.
            seconds: that the step of the current one took.
        """
        turns, changed = self._turns[lane], self._changed[lane]
        with changed:
            if (ended := self._current[lane]) is not None:
                turns.charge(ended, seconds)
            del ended  # a thread that waits must not keep an engine alive
            while True:
                is_closed = self._is_closed
                stepper = None if is_closed else turns.next()
                if stepper is not self._current[lane]:
                    self._current[lane] = stepper
                    changed.notify_all()
                if stepper is not None or is_closed:
                    return not is_closed
                changed.wait()

    def _step(self, lane: int) -> None:
        stepper = self._current[lane]
        assert stepper is not None
        is_alone = self._current.count(None) + self._current.count(stepper) == len(self._current)
        stepper.step(lane, is_alone)


def _schedule_as_batch() -> None:
    """Has the kernel let this thread, when it wakes up, wait for what runs already; its share of the CPUs is the same.

    Lanes wake up hundreds of times a second, and took the processor from the event loop each time: with 32 callers, the
    first pieces of their translations came a third later.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has chosen another
        with contextlib.suppress(OSError):  # some sandboxes refuse it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
