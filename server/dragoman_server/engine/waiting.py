"""The order in which waiting groups get their turn: priorities share, callers of one priority take turns."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator

from dragoman_server.engine.sequence import Priority, SequenceGroup

# Rows that a priority gets for each one of BULK while all of them wait.
SHARES = {Priority.INTERACTIVE: 16, Priority.DEFAULT: 4, Priority.BULK: 1}


class Turns:
    """Groups of one priority: each caller's in order of arrival, one of each caller at a time."""

    def __init__(self) -> None:
        self._by_caller: OrderedDict[object, deque[SequenceGroup]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._by_caller)

    def __len__(self) -> int:
        return sum(map(len, self._by_caller.values()))

    def __iter__(self) -> Iterator[SequenceGroup]:
        for groups in self._by_caller.values():
            yield from groups

    def add(self, group: SequenceGroup) -> None:
        self._by_caller.setdefault(group.caller, deque()).append(group)

    @property
    def next(self) -> SequenceGroup:
        return next(iter(self._by_caller.values()))[0]

    def pop(self) -> SequenceGroup:
        caller, groups = next(iter(self._by_caller.items()))
        group = groups.popleft()
        if groups:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
        return group

    def remove(self, groups: Collection[SequenceGroup]) -> None:
        for caller in {group.caller for group in groups}:
            left = deque(group for group in self._by_caller.get(caller, ()) if group not in groups)
            if left:
                self._by_caller[caller] = left
            else:
                self._by_caller.pop(caller, None)


class WaitingQueue:
    """Stride scheduling (Waldspurger and Weihl 1995) over the priorities: no priority starves, none is strict.

    Each priority has a clock that runs the slower the larger its share is, by the rows that it was given; the one that
    is furthest behind comes next. A priority that had nothing waiting does not save its time up.
    """

    def __init__(self) -> None:
        self._turns = {priority: Turns() for priority in Priority}
        self._clocks = dict.fromkeys(Priority, 0.0)
        self._now = 0.0  # of the priority that was served last
        self._num_waiting = 0
        self._num_limited = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[SequenceGroup]:
        for turns in self._turns.values():
            yield from turns

    @property
    def num_limited(self) -> int:
        """Those that take room from others in the queue."""
        return self._num_limited

    def add(self, group: SequenceGroup) -> None:
        priority = group.request.priority
        if not self._turns[priority]:
            self._clocks[priority] = max(self._clocks[priority], self._now)
        self._turns[priority].add(group)
        self._num_waiting += 1
        self._num_limited += not group.is_unlimited

    @property
    def _next_priority(self) -> Priority:
        return min((p for p in Priority if self._turns[p]), key=lambda priority: self._clocks[priority])

    @property
    def next(self) -> SequenceGroup:
        """Whose turn it is; raises ValueError when nothing waits."""
        return self._turns[self._next_priority].next

    def pop(self) -> SequenceGroup:
        """Removes and returns `next`."""
        priority = self._next_priority
        group = self._turns[priority].pop()
        self._now = self._clocks[priority]
        self._clocks[priority] += group.request.options.num_rows / SHARES[priority]
        self._num_waiting -= 1
        self._num_limited -= not group.is_unlimited
        return group

    def remove(self, groups: Collection[SequenceGroup]) -> None:
        """Forgets those of the groups that wait."""
        for turns in self._turns.values():
            turns.remove(groups)
        self._num_waiting = sum(map(len, self._turns.values()))
        self._num_limited = sum(not group.is_unlimited for group in self)
