"""Whose step is next on a lane: a state machine without clock and threads, for tests to drive."""

import math
from typing import Protocol


class Stepper(Protocol):
    """Something that has work for the lanes: an engine."""

    def has_work(self, lane: int) -> bool:
        """Whether a step of the lane would do anything; must be quick, and take no lock.

        It turns true while no step of the lane is running only if the device is told so by `wake`.
        """

    def step(self, lane: int, is_alone: bool) -> None:
        """Does one step of the lane; must not raise. No other thread does one of the same lane meanwhile.

        Args:
            lane: which.
            is_alone: whether no other stepper computes in another lane.
        """


class Turns:
    """Fair shares of one lane's time: the next step is that of the stepper, among those with work, that has used least.

    As in the fair scheduler of a kernel (start-time fair queueing), so that steppers whose steps take ten times as long
    get no more of the lane. While several have work, what they use differs by no more than one step. A stepper that
    comes back from idleness starts with what the latest one chosen had used: it is not given the time that it left to
    others, and does not pay for time that nobody else wanted, except for a part of its own last step.

    Each lane keeps its own account. Rows cannot move to another lane, so an account over all lanes would let rows
    starve in one lane while their engine computes in another.

    Args:
        lane: number of the lane.
    """

    def __init__(self, lane: int) -> None:
        self._lane = lane
        self._used: dict[Stepper, float] = {}  # seconds, of all that are attached
        # Those that had work when they were last asked: an idle one costs nothing. The order decides between equals.
        self._busy: dict[Stepper, None] = {}
        self._least_used = 0.0  # by the latest one chosen, before its step; a busy one has never used less

    def add(self, stepper: Stepper) -> None:
        """Attaches a stepper, which may have work already."""
        self._used[stepper] = self._least_used
        if stepper.has_work(self._lane):
            self._busy[stepper] = None

    def remove(self, stepper: Stepper) -> None:
        """Forgets a stepper."""
        self._used.pop(stepper, None)
        self._busy.pop(stepper, None)

    def wake(self, stepper: Stepper) -> None:
        """Notes that a stepper has work; no matter if it is not attached any more."""
        if stepper in self._used and stepper not in self._busy:
            self._used[stepper] = max(self._used[stepper], self._least_used)
            self._busy[stepper] = None

    def charge(self, stepper: Stepper, seconds: float) -> None:
        """Adds what a step took; no matter if the stepper is not attached any more."""
        if stepper in self._used:
            self._used[stepper] += seconds

    def next(self) -> Stepper | None:
        """The stepper whose turn it is; None where nobody has work."""
        chosen, least = None, math.inf
        for stepper in tuple(self._busy):
            if not stepper.has_work(self._lane):
                del self._busy[stepper]
            elif self._used[stepper] < least:
                chosen, least = stepper, self._used[stepper]
        if chosen is not None:
            self._least_used = least
        return chosen

    def num_others(self, stepper: Stepper) -> int:
        """How many other steppers have work here."""
        return len(self._busy) - (stepper in self._busy)
