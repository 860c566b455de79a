import math
import random

import pytest

from dragoman_server.engine.scheduler import ENCODER_RUN_TOKENS, Scheduler
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Request, SequenceGroup


def scheduler_of(max_running: int = 8, max_encoder_tokens: int = 1000, max_kv_tokens: float = math.inf) -> Scheduler:
    return Scheduler(max_running, max_encoder_tokens, max_kv_tokens)


def groups_of(*lengths: int, beam_size: int = 1, caller: object = None) -> list[SequenceGroup]:
    """Of sources of these lengths, all of one caller."""
    options = SearchOptions(beam_size=beam_size)
    requests = [Request((7,) * length, max_target_tokens=10, options=options) for length in lengths]
    return [SequenceGroup(request, arrived=0.0, caller=caller) for request in requests]


def finish(scheduler: Scheduler, *groups: SequenceGroup) -> None:
    for group in groups:
        group.live = []
    scheduler.update()
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
    assert set(scheduler.running) == set(groups)
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
    assert [sequence.group for sequence in scheduler.rows[1:]] == [group for batch in batches for group in batch]


def test_rows_bound_what_runs() -> None:
    scheduler = scheduler_of(max_running=2)
    groups = groups_of(3, 3, 3)
    scheduler.add(groups)
    assert scheduler.schedule() == [groups[:2]]
    assert scheduler.schedule() == []
    finish(scheduler, groups[0])
    assert scheduler.schedule() == [groups[2:]]
    assert list(scheduler.running) == groups[1:]


def test_a_group_takes_as_many_rows_as_it_may_come_to_need() -> None:
    scheduler = scheduler_of(max_running=7)
    wide, another, narrow = groups_of(3, 3, beam_size=4) + groups_of(3)
    scheduler.add([wide, another, narrow])
    assert scheduler.schedule() == [[wide]]  # and nobody overtakes the one that has no room
    assert len(scheduler.rows) == 1
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
        if large in scheduler.running:
            break
        finish(scheduler, rng.choice(list(scheduler.running)))
    assert list(scheduler.running) == [large]


def test_update_makes_room_for_beams_and_closes_gaps() -> None:
    scheduler = scheduler_of()
    one, beam, other = [*groups_of(3), *groups_of(3, beam_size=3), *groups_of(3)]
    scheduler.add([one, beam, other])
    scheduler.schedule()
    beam.live = [beam.live[0].continued(token_id, -1.0, -1.0) for token_id in (5, 6, 7)]
    one.live = []
    moves = scheduler.update()
    assert [(source, sibling) for source, _, sibling in moves] == [(1, False), (1, False)]
    assert sorted(move.target for move in moves) == [0, 3]
    assert len(scheduler.rows) == 4
    scheduler.check_integrity()


def test_what_waits_can_be_forgotten() -> None:
    scheduler = scheduler_of(max_running=1)
    groups = groups_of(3, 3, 3)
    scheduler.add(groups)
    scheduler.remove_waiting({groups[0], groups[2]})
    assert list(scheduler.waiting) == [groups[1]]
    assert scheduler.num_waiting == 1
    assert scheduler.has_work
    scheduler.remove_waiting({groups[1]})
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
    with pytest.raises(RuntimeError, match="both waits and runs"):
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
    scheduler._num_reserved_rows += 1
    with pytest.raises(RuntimeError, match="reservations"):
        scheduler.check_integrity()
    group.live = []
    scheduler.update()
    with pytest.raises(RuntimeError, match="reservations"):  # also when nothing runs any more
        scheduler.check_integrity()
