"""Who leaves before the answer: whose caller has left, and whose deadline has passed."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable

from dragoman_server.engine.sequence import SequenceGroup

# Answered groups stay among the deadlines, with all that they hold, until these have passed, or until there are more
# entries than this, and so many times as many as there were groups without an answer the last time.
_MAX_ANSWERED_RATIO = 2
_MIN_DEADLINES = 64


class Departures:
    """Finds abandoned groups without asking thousands of others. Not thread-safe.

    Args:
        is_pending: whether a group has no answer yet.
    """

    def __init__(self, is_pending: Callable[[SequenceGroup], bool]) -> None:
        self._is_pending = is_pending
        self._cancelled: list[SequenceGroup] = []
        self._deadlines: list[tuple[float, int, SequenceGroup]] = []  # a heap; the number makes entries comparable
        self._numbers = itertools.count()
        self._max_deadlines = _MIN_DEADLINES

    def expect(self, groups: Iterable[SequenceGroup]) -> None:
        """Remembers the deadlines of groups."""
        for group in groups:
            if group.request.deadline != math.inf:
                heapq.heappush(self._deadlines, (group.request.deadline, next(self._numbers), group))
        if len(self._deadlines) > self._max_deadlines:
            self._deadlines = [entry for entry in self._deadlines if self._is_pending(entry[2])]
            heapq.heapify(self._deadlines)
            self._max_deadlines = max(_MIN_DEADLINES, _MAX_ANSWERED_RATIO * len(self._deadlines))

    def cancel(self, group: SequenceGroup) -> None:
        """Notes that nobody waits for a group any more."""
        self._cancelled.append(group)

    def take(self, now: float) -> list[SequenceGroup]:
        """Those without an answer that are abandoned and were not taken before."""
        if not self._cancelled and not (self._deadlines and self._deadlines[0][0] <= now):
            return []  # as nearly always
        taken = dict.fromkeys(self._cancelled)  # a set that keeps its order
        self._cancelled = []
        while self._deadlines and self._deadlines[0][0] <= now:
            taken[heapq.heappop(self._deadlines)[2]] = None
        return [group for group in taken if self._is_pending(group)]
