"""Random callers at a queue: limits hold, and newcomers find room."""

from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.engine.room import Room, Usage
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Priority, Request, SequenceGroup

LIMITS = Usage(40, 100, 400)
CALLS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from(Priority),
        st.integers(1, 30),
        st.integers(1, 4),
        st.integers(1, 20),
        st.integers(0, 30),
    ),
    max_size=40,
)


def groups(caller: str, priority: Priority, count: int, beam_size: int = 1, length: int = 1) -> list[SequenceGroup]:
    options = SearchOptions(beam_size=beam_size)
    request = Request((7,) * length, 9, options=options, priority=priority)
    return [SequenceGroup(request, 0.0, object(), caller) for _ in range(count)]


@given(calls=CALLS)
def test_the_queue_is_bounded_and_bulk_work_leaves_the_part_that_is_kept(
    calls: list[tuple[str, Priority, int, int, int, int]],
) -> None:
    room, waiting = Room(), list[SequenceGroup]()
    for caller, priority, count, beam_size, length, num_leaving in calls:
        new = groups(caller, priority, count, beam_size, length)
        before, added = room.usage, Usage.of(new)
        lack = room.lack(added, LIMITS, caller, priority)
        if lack is None:
            assert before.num_requests + count <= LIMITS.num_requests * 1.25
            if priority is Priority.BULK:
                assert before.num_requests + count <= LIMITS.num_requests
            if before.num_requests:
                assert before.num_rows + added.num_rows <= LIMITS.num_rows * 1.25
                assert before.num_tokens + added.num_tokens <= LIMITS.num_tokens * 1.25
            for group in new:
                room.take(group)
            waiting += new
        else:
            assert before.num_requests or count > LIMITS.num_requests
            assert 0.0 < lack[1] <= 1.0
            within = (have + more <= limit for have, more, limit in zip(before, added, LIMITS, strict=True))
            assert not all(within)  # whoever keeps within the limits is never refused
        for group in waiting[:num_leaving]:
            room.give(group)
        del waiting[:num_leaving]
        assert room.usage == Usage.of(waiting)
    for group in waiting:
        room.give(group)
    assert room.usage == Usage()
    assert not room._of_callers


def filled(caller: str, priority: Priority) -> Room:
    room = Room()
    for group in groups(caller, priority, LIMITS.num_requests):
        room.take(group)
    return room


def test_where_bulk_work_has_filled_the_queue_others_find_room_even_of_the_same_caller() -> None:
    room = filled("a", Priority.BULK)
    one = Usage(1, 1, 1)
    for priority in (Priority.INTERACTIVE, Priority.DEFAULT):
        assert room.lack(one, LIMITS, "a", priority) is None
        assert room.lack(one, LIMITS, "b", priority) is None
    assert room.lack(one, LIMITS, "b", Priority.BULK) == (
        "40 segments are waiting and 1 more would exceed the limit of 40",
        1 / 40,
    )


def test_where_a_caller_has_filled_the_queue_others_find_room_one_after_the_other() -> None:
    room = filled("a", Priority.DEFAULT)
    admitted: list[int] = []
    for caller in "bcdefg":
        own = 0
        while room.lack(Usage(1, 1, 1), LIMITS, caller, Priority.DEFAULT) is None:
            (group,) = groups(caller, Priority.DEFAULT, 1)
            room.take(group)
            own += 1
        admitted.append(own)
    assert admitted == [5, 2, 1, 1, 0, 0]  # nobody takes more than there is left
    assert room.lack(Usage(1, 1, 1), LIMITS, "a", Priority.INTERACTIVE) is not None


def test_a_call_with_more_rows_and_tokens_than_may_wait_is_taken_where_nothing_waits() -> None:
    room = Room()
    assert room.lack(Usage(1, 1000, 10_000), LIMITS, "a", Priority.DEFAULT) is None
    assert room.lack(Usage(41, 41, 41), LIMITS, "a", Priority.BULK) is not None
    (group,) = groups("a", Priority.DEFAULT, 1)
    room.take(group)
    assert room.lack(Usage(1, 1000, 1), LIMITS, "b", Priority.DEFAULT) is not None
