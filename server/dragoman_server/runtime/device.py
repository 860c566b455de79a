"""The lanes of a device: threads, each of which does one step of some engine at a time."""

import contextlib
import os
import sys
import threading
from typing import Protocol, Self

from dragoman_server.config import EngineOptions
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.session import flush_denormals


class Stepper(Protocol):
    """What has work for the lanes: an engine."""

    def has_work(self, lane: int) -> bool:
        """Whether a step of the lane would do anything; must be quick."""

    def step(self, lane: int) -> None:
        """Does one step of the lane; must not raise. No other thread does one of the same lane meanwhile."""


class Device:
    """Runs the lanes of all engines that are attached, which take turns step by step.

    However many engines there are, no more lanes than these compute at the same time.

    Args:
        num_lanes: threads.
    """

    def __init__(self, num_lanes: int) -> None:
        self._attaching = threading.Lock()
        self._steppers: tuple[Stepper, ...] = ()
        self._is_closed = False
        self._changed = [threading.Condition() for _ in range(num_lanes)]  # by lane; guards the next two
        self._current: list[Stepper | None] = [None] * num_lanes
        self._last: list[Stepper | None] = [None] * num_lanes
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

    def attach(self, stepper: Stepper) -> None:
        """Runs the stepper's lanes from now on."""
        with self._attaching:
            self._steppers = (*self._steppers, stepper)
        for lane in range(self.num_lanes):
            self.wake(lane)

    def detach(self, stepper: Stepper) -> None:
        """Returns when no lane of the stepper is run any more."""
        with self._attaching:
            self._steppers = tuple(other for other in self._steppers if other is not stepper)
        for lane, changed in enumerate(self._changed):
            with changed:
                changed.wait_for(lambda lane=lane: self._current[lane] is not stepper)  # type: ignore[misc]

    def wake(self, lane: int) -> None:
        """Tells that a lane has work."""
        with self._changed[lane]:
            self._changed[lane].notify_all()

    def close(self) -> None:
        """Ends the threads after their current steps."""
        self._is_closed = True
        for lane in range(self.num_lanes):
            self.wake(lane)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, lane: int) -> None:
        flush_denormals()
        _schedule_as_batch()
        changed = self._changed[lane]
        while True:
            with changed:
                stepper = None if self._is_closed else self._next(lane)
                if stepper is not self._current[lane]:
                    self._current[lane] = stepper
                    changed.notify_all()
                if stepper is None:
                    if self._is_closed:
                        return
                    changed.wait()
                    continue
                self._last[lane] = stepper
            stepper.step(lane)

    def _next(self, lane: int) -> Stepper | None:
        """Whose turn it is: the next after the last that has work."""
        steppers, last = self._steppers, self._last[lane]
        first = steppers.index(last) + 1 if last in steppers else 0
        for stepper in (*steppers[first:], *steppers[:first]):
            if stepper.has_work(lane):
                return stepper
        return None


def _schedule_as_batch() -> None:
    """Has the kernel let this thread, when it wakes up, wait for what runs already; its share of the CPUs is the same.

    Lanes wake up hundreds of times a second, and took the processor from the event loop each time: with 32 callers, the
    first pieces of their translations came a third later.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has chosen another
        with contextlib.suppress(OSError):  # some sandboxes refuse it
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
