from collections import Counter
from collections.abc import Iterable

import pytest

from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Priority, Request, SequenceGroup
from dragoman_server.engine.waiting import SHARES, TURN, Load, WaitingQueue

INTERACTIVE, DEFAULT, BULK = Priority


def group(
    caller: object = "a", priority: Priority = DEFAULT, beam_size: int = 1, identity: object = None
) -> SequenceGroup:
    options = SearchOptions(beam_size=beam_size)
    request = Request((4, 3), 9, options=options, priority=priority)
    return SequenceGroup(request, arrived=0.0, caller=caller, identity=identity)


def queue_of(groups: Iterable[SequenceGroup]) -> WaitingQueue:
    queue = WaitingQueue()
    for member in groups:
        queue.add(member)
    return queue


def popped(queue: WaitingQueue, count: int) -> list[SequenceGroup]:
    return [queue.pop() for _ in range(count)]


def priorities(groups: Iterable[SequenceGroup]) -> Counter[Priority]:
    return Counter(member.request.priority for member in groups)


def test_groups_of_one_caller_come_in_the_order_of_their_arrival() -> None:
    groups = [group() for _ in range(5)]
    assert popped(queue_of(groups), 5) == groups


def test_one_of_another_caller_is_second_after_5000_of_one() -> None:
    many, single = [group("a") for _ in range(5000)], group("b")
    queue = queue_of([*many, single])
    assert popped(queue, 3) == [many[0], single, many[1]]
    assert len(queue) == 4998


def test_callers_take_turns_each_in_its_own_order() -> None:
    groups = [group(caller) for caller in "aaaabbc"]
    order = popped(queue_of(groups), 7)
    assert [member.caller for member in order] == list("abcabaa")
    assert [member for member in order if member.caller == "a"] == groups[:4]


def test_a_caller_that_comes_back_waits_for_all_others_to_have_had_their_turn() -> None:
    queue = queue_of(group(caller) for caller in "abbc")
    assert queue.pop().caller == "a"
    queue.add(group("a"))
    assert [member.caller for member in popped(queue, 4)] == list("bcab")


def test_while_all_priorities_wait_they_share_16_to_4_to_1() -> None:
    queue = queue_of(group(priority=priority) for priority in Priority for _ in range(1000))
    for _ in range(10):  # at any time, not only in the end
        assert priorities(popped(queue, 21)) == {INTERACTIVE: 16, DEFAULT: 4, BULK: 1}


def test_shares_are_counted_in_rows() -> None:
    wide = [group(priority=INTERACTIVE, beam_size=4) for _ in range(100)]
    queue = queue_of([*wide, *(group(priority=DEFAULT) for _ in range(100))])
    # Sixteen rows for four: as many groups of either.
    assert priorities(popped(queue, 40)) == {INTERACTIVE: 20, DEFAULT: 20}


@pytest.mark.parametrize("priority", Priority)
def test_a_priority_that_is_alone_gets_everything(priority: Priority) -> None:
    groups = [group(priority=priority) for _ in range(30)]
    assert popped(queue_of(groups), 30) == groups


def test_no_priority_starves_though_others_never_cease_to_come() -> None:
    queue = queue_of([group(priority=BULK)])
    for turn in range(100):
        queue.add(group(turn, INTERACTIVE))
        queue.add(group(turn, INTERACTIVE))
        if queue.pop().request.priority is BULK:
            break
    else:
        pytest.fail("bulk work never had a turn")


def test_a_priority_that_had_nothing_waiting_has_saved_nothing_up() -> None:
    queue = queue_of(group(priority=DEFAULT) for _ in range(1000))
    popped(queue, 400)
    for _ in range(100):  # interactive work was idle all the while
        queue.add(group(priority=INTERACTIVE))
        queue.add(group(priority=BULK))
    first = priorities(popped(queue, 105))
    for priority, share in {INTERACTIVE: 80, DEFAULT: 20, BULK: 5}.items():
        assert abs(first[priority] - share) <= 1, first


def test_a_priority_owes_nothing_for_what_it_got_while_it_was_alone() -> None:
    queue = queue_of(group(priority=BULK) for _ in range(500))
    popped(queue, 499)
    for priority in (BULK, DEFAULT):
        for _ in range(50):
            queue.add(group(priority=priority))
    assert BULK in priorities(popped(queue, 10))


def test_next_says_who_will_be_popped() -> None:
    queue = queue_of(group(caller, priority) for caller in "aab" for priority in Priority)
    while len(queue):
        upcoming = queue.next
        assert queue.next is upcoming
        assert queue.pop() is upcoming
    with pytest.raises(ValueError, match="empty"):
        _ = queue.next


def test_what_is_removed_is_gone_and_nothing_else_changes() -> None:
    groups = [group(caller, priority) for caller in "abc" for priority in Priority for _ in range(3)]
    gone = {*groups[::2], *groups[:3], group()}  # one of which never waited
    queue = queue_of(groups)
    queue.remove(gone)
    assert set(queue) == set(groups) - gone
    assert len(queue) == len(set(groups) - gone)
    left = popped(queue, len(queue))
    for caller in "abc":
        for priority in Priority:
            own = [g for g in groups if (g.caller, g.request.priority) == (caller, priority) and g not in gone]
            assert [g for g in left if (g.caller, g.request.priority) == (caller, priority)] == own
    assert len(queue) == 0


# -- callers with many calls -------------------------------------------------------------------------------------------


def test_who_has_a_hundred_calls_gets_the_turns_of_one() -> None:
    many = [group(call, identity="a") for call in range(100)]
    others = [group("single", identity="b"), group("other", identity="b")]
    order = popped(queue_of([*many, *others]), 102)
    assert [order.index(member) for member in others] == [1, 3]
    assert [member for member in order if member.identity == "a"] == many


def test_a_callers_calls_are_done_one_after_the_other_up_to_a_turn() -> None:
    calls = {"short": 5, "long": 2 * TURN + 1, "last": TURN}
    queue = queue_of(group(call, identity="a") for call, count in calls.items() for _ in range(count))
    order = [member.caller for member in popped(queue, len(queue))]
    assert order == ["short"] * 5 + ["long"] * TURN + ["last"] * TURN + ["long"] * (TURN + 1)


def test_a_turn_begins_anew_where_the_call_that_had_it_is_withdrawn() -> None:
    first, second = ([group(call, identity="a") for _ in range(TURN + 1)] for call in "ab")
    queue = queue_of([*first, *second])
    popped(queue, 3)
    queue.remove(first[3:])
    queue.add(group("c", identity="a"))
    assert [member.caller for member in popped(queue, TURN + 1)] == ["b"] * TURN + ["c"]


# -- what comes before a new call --------------------------------------------------------------------------------------

WEIGHT = group().weight


def weight_until(queue: WaitingQueue, identity: object, num_requests: int = 1, priority: Priority = DEFAULT) -> float:
    """In requests, which are all alike here."""
    return queue.weight_until(Load(num_requests, num_requests * WEIGHT), identity, priority) / WEIGHT


def test_before_a_call_come_all_others_of_its_caller_and_one_of_each_other_caller_for_each() -> None:
    queue = queue_of(group(call, identity="a") for call in range(10))
    assert weight_until(queue, "a") == 11
    assert weight_until(queue, "b") == 2
    for _ in range(50):
        queue.add(group("long", identity="b"))
    assert weight_until(queue, "c") == 3
    assert weight_until(queue, "a") == 22


def test_before_a_call_come_other_priorities_by_their_shares() -> None:
    queue = queue_of(group(call, priority) for priority in Priority for call in range(100))
    for priority in Priority:
        own = 101
        others = [min(100, own * SHARES[other] / SHARES[priority]) for other in Priority if other is not priority]
        assert weight_until(queue, "new", priority=priority) == own + sum(others)


def test_a_call_of_many_turns_waits_for_those_that_come_meanwhile() -> None:
    queue = queue_of(group(call, identity="a") for call in range(10) for _ in range(TURN))
    assert weight_until(queue, "a", TURN) == 11 * TURN
    assert weight_until(queue, "a", 2 * TURN) == 22 * TURN
    assert weight_until(queue, "a", 4 * TURN) == 24 * TURN
