import pytest

from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.sequence import Request, Sequence


def sequences(*lengths: int) -> list[Sequence]:
    return [Sequence(Request(tuple(range(length)), max_target_tokens=10), arrived=0.0) for length in lengths]


def test_arrivals_are_taken_in_order_while_the_padded_batch_fits_the_budget() -> None:
    scheduler = Scheduler(max_running=8, max_encoder_tokens=20)
    first = sequences(5, 4, 6, 7, 1)
    scheduler.add(first)
    assert scheduler.schedule() == first[:3]  # 3 x 6 tokens with padding; a fourth would make 4 x 7
    assert scheduler.schedule() == first[3:]
    assert scheduler.schedule() == []
    assert scheduler.running == tuple(first)


def test_a_source_above_the_budget_is_encoded_alone() -> None:
    scheduler = Scheduler(max_running=8, max_encoder_tokens=20)
    long, short = sequences(50, 2)
    scheduler.add([long, short])
    assert scheduler.schedule() == [long]
    assert scheduler.schedule() == [short]


def test_nobody_overtakes_when_the_first_does_not_fit() -> None:
    scheduler = Scheduler(max_running=8, max_encoder_tokens=20)
    waiting = sequences(2, 50, 2)
    scheduler.add(waiting)
    assert [scheduler.schedule() for _ in range(3)] == [[s] for s in waiting]


def test_rows_bound_what_runs() -> None:
    scheduler = Scheduler(max_running=2, max_encoder_tokens=100)
    waiting = sequences(3, 3, 3)
    scheduler.add(waiting)
    assert scheduler.schedule() == waiting[:2]
    assert scheduler.schedule() == []
    scheduler.remove_running({waiting[0]})
    assert scheduler.schedule() == waiting[2:]
    assert scheduler.running == (waiting[1], waiting[2])


def test_what_waits_can_be_forgotten() -> None:
    scheduler = Scheduler(max_running=1, max_encoder_tokens=100)
    waiting = sequences(3, 3, 3)
    scheduler.add(waiting)
    scheduler.remove_waiting({waiting[0], waiting[2]})
    assert scheduler.waiting == (waiting[1],)
    assert scheduler.has_work


def test_integrity_finds_a_sequence_that_was_added_twice() -> None:
    scheduler = Scheduler(max_running=4, max_encoder_tokens=100)
    scheduler.add(sequences(3) * 2)
    with pytest.raises(RuntimeError, match="twice"):
        scheduler.check_integrity()
