import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from dragoman.cli.calls import in_order

PATIENCE_SECONDS = 20


def test_answers_come_in_order_while_several_calls_are_under_way() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def answer(job: int) -> int:
        if job < 2:
            both.wait()  # broken unless the two are under way at once
        return -job

    assert list(in_order(answer, [range(3), [], [3]], num_in_flight=2)) == [0, -1, -2, -3]


def test_no_more_calls_are_under_way_than_may_be() -> None:
    lock = threading.Lock()
    num_now, most = 0, 0

    def answer(job: int) -> int:
        nonlocal num_now, most
        with lock:
            num_now += 1
            most = max(most, num_now)
        with lock:
            num_now -= 1
        return job

    assert list(in_order(answer, [range(50)], num_in_flight=3)) == list(range(50))
    assert most <= 3


def test_a_batch_is_answered_before_the_next_is_asked_for() -> None:
    given: list[int] = []

    def batches() -> Iterator[list[int]]:
        for batch in ([1, 2, 3], [4], []):
            yield batch
            assert given[-len(batch) :] == batch or not batch

    given.extend(in_order(lambda job: job, batches(), num_in_flight=2))
    assert given == [1, 2, 3, 4]


def test_an_error_comes_after_the_answers_before_it() -> None:
    given: list[int] = []

    def answer(job: int) -> int:
        if job == 3:
            raise ValueError("three")
        return job

    with pytest.raises(ValueError, match="three"), closing(in_order(answer, [range(9)], num_in_flight=2)) as results:
        given.extend(results)
    assert given == [0, 1, 2]


def test_who_leaves_early_does_not_wait() -> None:
    release, has_ended = threading.Event(), threading.Event()

    def answer(job: int) -> int:
        if job:
            release.wait(PATIENCE_SECONDS)
            has_ended.set()
        return job

    with closing(in_order(answer, [range(3)], num_in_flight=2)) as results:
        assert next(results) == 0
    assert not has_ended.is_set()
    release.set()
