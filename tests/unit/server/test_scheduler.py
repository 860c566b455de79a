import math
import random

import pytest

from dragoman_server.engine.scheduler import ENCODER_RUN_TOKENS, MAX_ENCODER_RUN_TOKENS, Scheduler
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Request, SequenceGroup


class OneLane(Scheduler):
    """A scheduler with a single lane, whose arrivals join at once."""

    def __init__(self, max_running: int, max_encoder_tokens: int, max_kv_tokens: float) -> None:
        super().__init__(1, max_running, max_encoder_tokens, max_kv_tokens)
        [self.lane] = self.lanes

    def schedule(self) -> list[list[SequenceGroup]]:
        self.deal()
        return self.lane.join()


def scheduler_of(max_running: int = 8, max_encoder_tokens: int = 1000, max_kv_tokens: float = math.inf) -> OneLane:
    return OneLane(max_running, max_encoder_tokens, max_kv_tokens)


def groups_of(*lengths: int, beam_size: int = 1, caller: object = None) -> list[SequenceGroup]:
    """Of sources of these lengths, all of one caller."""
    options = SearchOptions(beam_size=beam_size)
    requests = [Request((7,) * length, max_target_tokens=10, options=options) for length in lengths]
    return [SequenceGroup(request, arrived=0.0, caller=caller) for request in requests]


def finish(scheduler: OneLane, *groups: SequenceGroup) -> None:
    for group in groups:
        group.live = []
    scheduler.lane.update()
    scheduler.check_integrity()


def lengths_of(batches: list[list[SequenceGroup]]) -> list[list[int]]:
    return [[group.num_source_tokens for group in batch] for batch in batches]


def test_arrivals_are_taken_in_order_while_they_fit_the_encoder_budget() -> None:
    scheduler = scheduler_of(max_encoder_tokens=20)
    groups = groups_of(5, 4, 6, 7, 1)
    scheduler.add(groups)
    # Three times 6 tokens with padding; a fourth would make it four times 7.
    assert lengths_of(scheduler.schedule()) == [[6, 5, 4]]
    assert lengths_of(scheduler.schedule()) == [[7, 1]]
    assert scheduler.schedule() == []
    assert set(scheduler.lane.running) == set(groups)
    scheduler.check_integrity()


def test_a_source_above_the_encoder_budget_is_encoded_alone() -> None:
    scheduler = scheduler_of(max_encoder_tokens=20)
    scheduler.add(groups_of(50, 2))
    assert lengths_of(scheduler.schedule()) == [[50]]
    assert lengths_of(scheduler.schedule()) == [[2]]


def test_nobody_overtakes_when_the_next_does_not_fit() -> None:
    scheduler = scheduler_of(max_encoder_tokens=20)
    scheduler.add(groups_of(2, 50, 2))
    assert [lengths_of(scheduler.schedule()) for _ in range(3)] == [[[2]], [[50]], [[2]]]


def test_sources_of_very_different_lengths_are_encoded_in_batches_of_similar_ones() -> None:
    scheduler = scheduler_of()
    scheduler.add(groups_of(4, 100, 5, 98, 6))
    assert lengths_of(scheduler.schedule()) == [[100, 98], [6, 5, 4]]


def test_padding_is_put_up_with_as_far_as_another_run_of_the_encoder_would_cost_more() -> None:
    longest = ENCODER_RUN_TOKENS + 1
    scheduler = scheduler_of()
    scheduler.add(groups_of(longest, 1))
    assert lengths_of(scheduler.schedule()) == [[longest, 1]]
    scheduler = scheduler_of()
    scheduler.add(groups_of(longest + 1, 1))
    assert lengths_of(scheduler.schedule()) == [[longest + 1], [1]]


def test_no_run_of_the_encoder_is_larger_than_pays_unless_one_source_is() -> None:
    half = MAX_ENCODER_RUN_TOKENS // 2
    scheduler = scheduler_of()
    scheduler.add(groups_of(half, half, half))
    assert lengths_of(scheduler.schedule()) == [[half, half], [half]]
    longer = MAX_ENCODER_RUN_TOKENS + 1
    scheduler = scheduler_of()
    scheduler.add(groups_of(longer, longer, 1))
    assert lengths_of(scheduler.schedule()) == [[longer], [longer], [1]]


def test_the_encoder_budget_counts_padding_within_the_batches_not_across_them() -> None:
    scheduler = scheduler_of(max_encoder_tokens=110)
    scheduler.add(groups_of(100, 3, 3, 4))
    assert lengths_of(scheduler.schedule()) == [[100], [3, 3]]  # 106; a fourth would make it 112
    assert lengths_of(scheduler.schedule()) == [[4]]


def test_members_of_a_batch_get_consecutive_rows() -> None:
    scheduler = scheduler_of()
    scheduler.add(groups_of(9))
    scheduler.schedule()
    scheduler.add(groups_of(4, 100, 5, 98, 6))
    batches = scheduler.schedule()
    assert [[group.live[0].row for group in batch] for batch in batches] == [[1, 2], [3, 4, 5]]
    assert [sequence.group for sequence in scheduler.lane.rows[1:]] == [group for batch in batches for group in batch]


def test_rows_bound_what_runs() -> None:
    scheduler = scheduler_of(max_running=2)
    groups = groups_of(3, 3, 3)
    scheduler.add(groups)
    assert scheduler.schedule() == [groups[:2]]
    assert scheduler.schedule() == []
    finish(scheduler, groups[0])
    assert scheduler.schedule() == [groups[2:]]
    assert list(scheduler.lane.running) == groups[1:]


def test_full_is_where_rows_or_positions_lack_not_where_the_encoder_has_its_fill() -> None:
    for limits, is_full in (
        ({}, False),
        ({"max_encoder_tokens": 6}, False),
        ({"max_running": 2}, True),
        ({"max_kv_tokens": 2 * (3 + 10) + 5}, True),
    ):
        scheduler = scheduler_of(**limits)
        scheduler.add(groups_of(3, 3, 3))
        scheduler.deal()
        assert scheduler.is_full is is_full, limits
        assert scheduler.num_waiting == (1 if limits else 0)


def test_a_group_takes_as_many_rows_as_it_may_come_to_need() -> None:
    scheduler = scheduler_of(max_running=7)
    wide, another, narrow = groups_of(3, 3, beam_size=4) + groups_of(3)
    scheduler.add([wide, another, narrow])
    assert scheduler.schedule() == [[wide]]  # and nobody overtakes the one that has no room
    assert len(scheduler.lane.rows) == 1
    finish(scheduler, wide)
    assert scheduler.schedule() == [[another, narrow]]


def test_a_group_that_needs_all_rows_gets_them() -> None:
    scheduler = scheduler_of(max_running=4)
    [wide] = groups_of(3, beam_size=4)
    narrow = groups_of(3, 3)
    scheduler.add([narrow[0], wide, narrow[1]])
    assert scheduler.schedule() == [narrow[:1]]
    assert scheduler.schedule() == []
    finish(scheduler, narrow[0])
    assert scheduler.schedule() == [[wide]]
    finish(scheduler, wide)
    assert scheduler.schedule() == [narrow[1:]]


def test_positions_of_the_kv_pool_bound_what_runs() -> None:
    scheduler = scheduler_of(max_kv_tokens=2 * (5 + 10) + 14)
    groups = groups_of(5, 5, 5)
    scheduler.add(groups)
    assert scheduler.schedule() == [groups[:2]]
    finish(scheduler, groups[1])
    assert scheduler.schedule() == [groups[2:]]


def test_a_beam_is_counted_with_the_positions_of_all_its_rows() -> None:
    scheduler = scheduler_of(max_kv_tokens=4 * (5 + 10) + 14)
    beam, single = groups_of(5, beam_size=4) + groups_of(5)
    scheduler.add([beam, single])
    assert scheduler.schedule() == [[beam]]
    assert scheduler.schedule() == []


def test_a_group_above_the_kv_budget_runs_alone() -> None:
    scheduler = scheduler_of(max_kv_tokens=20)
    small, large, last = groups_of(5, 50, 5)
    scheduler.add([small, large, last])
    for group in (small, large, last):
        assert scheduler.schedule() == [[group]]
        assert scheduler.schedule() == []
        finish(scheduler, group)
    assert not scheduler.has_work


def test_nothing_waits_for_ever_whatever_comes_behind_it() -> None:
    scheduler = scheduler_of(max_running=4, max_encoder_tokens=20, max_kv_tokens=60)
    [large] = groups_of(100, beam_size=4, caller="large")
    scheduler.add([*groups_of(5, 5), large])
    rng = random.Random(0)
    for _ in range(20):
        scheduler.add(groups_of(3, 4, caller=rng.random()))
        scheduler.schedule()
        if large in scheduler.lane.running:
            break
        finish(scheduler, rng.choice(list(scheduler.lane.running)))
    assert list(scheduler.lane.running) == [large]


def test_update_makes_room_for_beams_and_closes_gaps() -> None:
    scheduler = scheduler_of()
    one, beam, other = [*groups_of(3), *groups_of(3, beam_size=3), *groups_of(3)]
    scheduler.add([one, beam, other])
    scheduler.schedule()
    beam.live = [beam.live[0].continued(token_id, -1.0, -1.0) for token_id in (5, 6, 7)]
    one.live = []
    moves = scheduler.lane.update()
    assert [(source, sibling) for source, _, sibling in moves] == [(1, False), (1, False)]
    assert sorted(move.target for move in moves) == [0, 3]
    assert len(scheduler.lane.rows) == 4
    scheduler.check_integrity()


def test_what_waits_can_be_forgotten() -> None:
    scheduler = scheduler_of(max_running=1)
    groups = groups_of(3, 3, 3)
    scheduler.add(groups)
    assert scheduler.withdraw([groups[0], groups[2]]) == {groups[0], groups[2]}
    assert list(scheduler.waiting) == [groups[1]]
    assert scheduler.num_waiting == 1
    assert scheduler.has_work
    assert scheduler.withdraw([groups[1]]) == {groups[1]}
    assert not scheduler.has_work


def test_integrity_finds_a_group_that_was_added_twice() -> None:
    scheduler = scheduler_of()
    scheduler.add(groups_of(3) * 2)
    with pytest.raises(RuntimeError, match="twice"):
        scheduler.check_integrity()


def test_integrity_finds_a_group_that_both_waits_and_runs() -> None:
    scheduler = scheduler_of()
    groups = groups_of(3)
    scheduler.add(groups)
    scheduler.schedule()
    scheduler.add(groups)
    with pytest.raises(RuntimeError, match="in two places"):
        scheduler.check_integrity()


def test_integrity_finds_a_sequence_that_lives_without_a_row() -> None:
    scheduler = scheduler_of()
    [group] = groups_of(3)
    scheduler.add([group])
    scheduler.schedule()
    group.live = [group.live[0].continued(5, -1.0, -1.0)]
    with pytest.raises(RuntimeError, match="rows are not those"):
        scheduler.check_integrity()


def test_integrity_finds_reservations_that_nobody_holds() -> None:
    scheduler = scheduler_of()
    [group] = groups_of(3)
    scheduler.add([group])
    scheduler.schedule()
    scheduler.lane.num_reserved_rows += 1
    with pytest.raises(RuntimeError, match="reservations"):
        scheduler.check_integrity()
    group.live = []
    scheduler.lane.update()
    with pytest.raises(RuntimeError, match="reservations"):  # also when nothing runs any more
        scheduler.check_integrity()


# -- several lanes -----------------------------------------------------------------------------------------------------


def lanes_of(num_lanes: int, **budgets: int) -> Scheduler:
    defaults = {"max_running": 4, "max_encoder_tokens": 1000, "max_kv_tokens": 10_000}
    return Scheduler(num_lanes, **(defaults | budgets))


def arrivals_of(scheduler: Scheduler) -> list[list[SequenceGroup]]:
    return [list(lane.arrivals) for lane in scheduler.lanes]


def test_groups_go_to_the_lane_with_the_fewest_rows_taken() -> None:
    scheduler = lanes_of(2)
    first, beam, second, third = *groups_of(3), *groups_of(3, beam_size=2), *groups_of(3, 3)
    scheduler.add([first, beam, second, third])
    assert scheduler.deal() == {0, 1}
    assert arrivals_of(scheduler) == [[first, second, third], [beam]]
    assert [group.lane for group in (first, beam, second, third)] == [0, 1, 0, 0]
    scheduler.check_integrity()


def test_of_lanes_with_as_many_rows_taken_the_one_with_fewer_tokens_is_next() -> None:
    scheduler = lanes_of(2)
    long, short, third = groups_of(30, 3, 3)
    scheduler.add([long, short, third])
    scheduler.deal()
    assert arrivals_of(scheduler) == [[long], [short, third]]


def test_of_lanes_with_as_many_rows_taken_the_one_that_fewer_others_want_is_next() -> None:
    scheduler = lanes_of(3)
    groups = groups_of(30, 3, 3, 3, 3)
    scheduler.add(groups[:2])
    scheduler.deal([1, 2, 0])
    assert arrivals_of(scheduler) == [[groups[1]], [], [groups[0]]]
    scheduler.add(groups[2:])
    scheduler.deal([1, 2, 0])  # rows come first, tokens last
    assert arrivals_of(scheduler) == [[groups[1], groups[4]], [groups[2]], [groups[0], groups[3]]]


def test_only_lanes_that_were_given_something_are_told() -> None:
    scheduler = lanes_of(3)
    scheduler.add(groups_of(3))
    assert scheduler.deal() == {0}
    assert scheduler.deal() == set()
    scheduler.add(groups_of(3))
    assert scheduler.deal() == {1}


def test_a_beam_takes_the_lane_that_has_rows_for_it() -> None:
    scheduler = lanes_of(2)
    narrow, wide = groups_of(3), groups_of(3, beam_size=4)
    scheduler.add(narrow + wide)
    scheduler.deal()
    assert arrivals_of(scheduler) == [narrow, wide]


def test_nobody_overtakes_a_group_that_no_lane_has_rows_for() -> None:
    scheduler = lanes_of(2)
    scheduler.add([*groups_of(3, 3), *groups_of(3, beam_size=4), *groups_of(3)])
    assert scheduler.deal() == {0, 1}
    assert scheduler.num_waiting == 2
    assert scheduler.deal() == set()


def test_the_encoder_budget_is_that_of_each_lane() -> None:
    scheduler = lanes_of(2, max_encoder_tokens=10)
    scheduler.add(groups_of(5, 5, 5, 5, 5))
    scheduler.deal()
    assert [[group.num_source_tokens for group in own] for own in arrivals_of(scheduler)] == [[5, 5], [5, 5]]
    scheduler.lanes[1].join()
    assert scheduler.deal() == {1}


def test_the_kv_budget_is_that_of_all_lanes_together() -> None:
    scheduler = lanes_of(3, max_kv_tokens=2 * (5 + 10) + 14)
    scheduler.add(groups_of(5, 5, 5))
    assert scheduler.deal() == {0, 1}
    assert scheduler.num_waiting == 1


def test_what_is_dealt_and_does_not_run_yet_can_be_withdrawn() -> None:
    scheduler = lanes_of(2)
    groups = groups_of(3, 4, 5)
    scheduler.add(groups)
    scheduler.deal()
    scheduler.lanes[1].join()
    assert scheduler.withdraw(groups) == {groups[0], groups[2]}  # the other runs
    assert arrivals_of(scheduler) == [[], []]
    assert not scheduler.lanes[0].has_work
    scheduler.check_integrity()


def test_integrity_finds_a_group_that_arrives_and_runs() -> None:
    scheduler = lanes_of(1)
    [group] = groups_of(3)
    scheduler.lanes[0].add(group)
    scheduler.lanes[0].join()
    scheduler.lanes[0].add(group)
    with pytest.raises(RuntimeError, match="arrives and runs"):
        scheduler.check_integrity()
