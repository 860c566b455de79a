"""The order in which waiting groups get their turn: priorities share, callers take turns, and each one's calls do."""

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from dragoman_server.engine.room import Room
from dragoman_server.engine.sequence import Priority, SequenceGroup

# Rows that a priority gets for each one of BULK while all of them wait.
SHARES = {Priority.INTERACTIVE: 16, Priority.DEFAULT: 4, Priority.BULK: 1}

# Requests of a call in one turn among the calls of its caller. So most calls are done one after the other, which gets
# them done sooner than all at the same pace; and no call waits for the whole of a long one.
TURN = 32
# Where a call needs many turns, others come meanwhile and get some before its last: as many as are there, at most.
_WITH_FOLLOWERS = 2.0


class Load(NamedTuple):
    """Requests and their weight."""

    num_requests: int = 0
    weight: float = 0.0

    @property
    def mean(self) -> float:
        return self.weight / max(1, self.num_requests)

    def plus(self, other: "Load") -> "Load":
        return Load(self.num_requests + other.num_requests, self.weight + other.weight)

    def before(self, num_takers: int, num_requests: int, *, has_followers: bool) -> "Load":
        """What of this is done while each of so many who share it has as many requests done.

        Args:
            num_takers: who share it.
            num_requests: of each.
            has_followers: whether others come after those who have no more.
        """
        most = (_WITH_FOLLOWERS if has_followers else 1.0) * self.num_requests
        done = min(num_takers * num_requests, most)
        return Load(int(done), done * self.mean)


class Coming(NamedTuple):
    """Calls that are to wait, and what their requests are together."""

    num_calls: int = 0
    load: Load = Load()


class Calls:
    """Groups of one caller: each call's in order of arrival, some of each call at a time."""

    def __init__(self) -> None:
        self._by_call: OrderedDict[object, deque[SequenceGroup]] = OrderedDict()
        self._num_groups = self._weight = 0
        self._num_in_turn = 0  # that the call whose turn it is has had

    def __len__(self) -> int:
        return self._num_groups

    def __iter__(self) -> Iterator[SequenceGroup]:
        for groups in self._by_call.values():
            yield from groups

    @property
    def load(self) -> Load:
        return Load(self._num_groups, self._weight)

    @property
    def num_calls(self) -> int:
        return len(self._by_call)

    def add(self, group: SequenceGroup) -> None:
        self._by_call.setdefault(group.caller, deque()).append(group)
        self._num_groups += 1
        self._weight += group.weight

    @property
    def next(self) -> SequenceGroup:
        return next(iter(self._by_call.values()))[0]

    def pop(self) -> SequenceGroup:
        call, groups = next(iter(self._by_call.items()))
        group = groups.popleft()
        self._num_in_turn += 1
        if not groups:
            del self._by_call[call]
            self._num_in_turn = 0
        elif self._num_in_turn == TURN:
            self._by_call.move_to_end(call)
            self._num_in_turn = 0
        self._num_groups -= 1
        self._weight -= group.weight
        return group

    def remove(self, groups: Collection[SequenceGroup]) -> list[SequenceGroup]:
        """Forgets those of the groups that wait here, and returns them."""
        removed: list[SequenceGroup] = []
        first = next(iter(self._by_call), None)
        for call in {group.caller for group in groups}:
            before = self._by_call.get(call, ())
            left = deque(group for group in before if group not in groups)
            removed += (group for group in before if group in groups)
            if left:
                self._by_call[call] = left
            else:
                self._by_call.pop(call, None)
        if first is not next(iter(self._by_call), None):
            self._num_in_turn = 0
        self._num_groups -= len(removed)
        self._weight -= sum(group.weight for group in removed)
        return removed


class Turns:
    """Groups of one priority: one of each caller at a time."""

    def __init__(self) -> None:
        self._by_identity: OrderedDict[object, Calls] = OrderedDict()
        self._num_groups = self._weight = 0

    def __len__(self) -> int:
        return self._num_groups

    def __iter__(self) -> Iterator[SequenceGroup]:
        for calls in self._by_identity.values():
            yield from calls

    @property
    def load(self) -> Load:
        return Load(self._num_groups, self._weight)

    def add(self, group: SequenceGroup) -> None:
        if group.identity not in self._by_identity:
            self._by_identity[group.identity] = Calls()
        self._by_identity[group.identity].add(group)
        self._num_groups += 1
        self._weight += group.weight

    @property
    def next(self) -> SequenceGroup:
        return next(iter(self._by_identity.values())).next

    def pop(self) -> SequenceGroup:
        identity, calls = next(iter(self._by_identity.items()))
        group = calls.pop()
        if calls:
            self._by_identity.move_to_end(identity)
        else:
            del self._by_identity[identity]
        self._num_groups -= 1
        self._weight -= group.weight
        return group

    def remove(self, groups: Collection[SequenceGroup]) -> list[SequenceGroup]:
        """Forgets those of the groups that wait here, and returns them."""
        removed: list[SequenceGroup] = []
        for identity in {group.identity for group in groups}:
            if calls := self._by_identity.get(identity):
                removed += calls.remove(groups)
                if not calls:
                    del self._by_identity[identity]
        self._num_groups -= len(removed)
        self._weight -= sum(group.weight for group in removed)
        return removed

    def weight_until(self, new: Load, identity: object, coming: Coming) -> float:
        """What is done here until the last request of a new call of this caller has had its turn, itself included."""
        calls = self._by_identity.get(identity)
        waiting, num_calls = (calls.load, calls.num_calls + coming.num_calls) if calls else (Load(), coming.num_calls)
        own = waiting.plus(coming.load)
        num_turns = math.ceil(new.num_requests / TURN)
        of_caller = own.before(num_calls, num_turns * TURN, has_followers=num_turns > 1)
        others = Load(self._num_groups - waiting.num_requests, self._weight - waiting.weight)
        num_others = len(self._by_identity) - (calls is not None)
        of_others = others.before(num_others, new.num_requests + of_caller.num_requests, has_followers=True)
        return new.weight + of_caller.weight + of_others.weight


class WaitingQueue:
    """Stride scheduling (Waldspurger and Weihl 1995) over the priorities: no priority starves, none is strict.

    Each priority has a clock that runs the slower the larger its share is, by the rows that it was given; the one that
    is furthest behind comes next. A priority that had nothing waiting does not save its time up.

    Attributes:
        room: what is taken of it, by the groups that take any from others.
    """

    def __init__(self) -> None:
        self._turns = {priority: Turns() for priority in Priority}
        self._clocks = dict.fromkeys(Priority, 0.0)
        self._now = 0.0  # of the priority that was served last
        self.room = Room()

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    def __iter__(self) -> Iterator[SequenceGroup]:
        for turns in self._turns.values():
            yield from turns

    @property
    def weight(self) -> float:
        """Of all that waits."""
        return sum(turns.load.weight for turns in self._turns.values())

    def add(self, group: SequenceGroup) -> None:
        priority = group.request.priority
        if not self._turns[priority]:
            self._clocks[priority] = max(self._clocks[priority], self._now)
        self._turns[priority].add(group)
        if not group.is_unlimited:
            self.room.take(group)

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
        if not group.is_unlimited:
            self.room.give(group)
        return group

    def remove(self, groups: Collection[SequenceGroup]) -> None:
        """Forgets those of the groups that wait."""
        for turns in self._turns.values():
            for group in turns.remove(groups):
                if not group.is_unlimited:
                    self.room.give(group)

    def weight_until(
        self,
        new: Load,
        identity: object,
        priority: Priority,
        coming: Mapping[Priority, Coming] = MappingProxyType({}),
    ) -> float:
        """An estimate of what is dealt until the last request of a new call is, this included.

        Args:
            new: the call.
            identity: of its caller.
            priority: of its requests.
            coming: what is to wait before it, of the same caller.
        """
        own = self._turns[priority].weight_until(new, identity, coming.get(priority, Coming()))
        weights = {other: turns.load.weight for other, turns in self._turns.items() if other is not priority}
        for other in weights.keys() & coming.keys():
            weights[other] += coming[other].load.weight
        return own + sum(min(weight, own * SHARES[other] / SHARES[priority]) for other, weight in weights.items())
