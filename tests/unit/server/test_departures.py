import math

from dragoman_server.engine import departures
from dragoman_server.engine.departures import Departures
from dragoman_server.engine.sequence import Request, SequenceGroup


def group_of(deadline: float = math.inf) -> SequenceGroup:
    return SequenceGroup(Request((7,), 5, deadline), arrived=0.0)


def test_those_past_their_deadline_leave_in_its_order_and_once() -> None:
    groups = [group_of(deadline) for deadline in (3.0, 1.0, 2.0, math.inf)]
    pending = set(groups)
    leaving = Departures(pending.__contains__)
    leaving.expect(groups)
    assert leaving.take(0.9) == []
    assert leaving.take(2.0) == [groups[1], groups[2]]
    assert leaving.take(2.5) == []
    assert leaving.take(1e9) == [groups[0]]


def test_a_cancelled_group_leaves_once_even_where_its_deadline_passes_as_well() -> None:
    group = group_of(1.0)
    leaving = Departures({group}.__contains__)
    leaving.expect([group])
    leaving.cancel(group)
    assert leaving.take(2.0) == [group]


def test_what_has_its_answer_does_not_leave() -> None:
    answered, cancelled = group_of(1.0), group_of()
    leaving = Departures(lambda _: False)
    leaving.expect([answered, cancelled])
    leaving.cancel(cancelled)
    assert leaving.take(2.0) == []


def test_answered_groups_are_forgotten_long_before_their_deadlines() -> None:
    pending: set[SequenceGroup] = set()
    leaving = Departures(pending.__contains__)
    kept = group_of(1e6)
    pending.add(kept)
    leaving.expect([kept])
    for _ in range(5 * departures._MIN_DEADLINES):
        leaving.expect([group_of(1e6)])
    assert len(leaving._deadlines) <= departures._MIN_DEADLINES
    assert leaving.take(1e7) == [kept]
