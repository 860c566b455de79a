"""The simulation of a fleet agrees with what can be computed by hand."""

import itertools

import pytest

from benchmarks.fleet_model import Costs, Sentence, cores_worth_having, num_processes, throughput

MILLISECOND = 1e-3


def costs(core: float = 10.0, lock: float = 1.0, loop: float = 0.0) -> Costs:
    """In milliseconds."""
    return Costs(Sentence(core * MILLISECOND, lock * MILLISECOND, num_tokens=10.0), loop * MILLISECOND)


def test_one_core_does_all_of_the_work_one_thing_after_the_other() -> None:
    assert throughput(costs(10, 1), 1).per_second == pytest.approx(100, rel=0.02)
    assert throughput(costs(10, 1, loop=2), 1).per_second == pytest.approx(1000 / 12, rel=0.05)


def test_cores_add_up_while_the_lock_is_free() -> None:
    found = throughput(costs(10, 0.01), 8)
    assert found.per_second == pytest.approx(800, rel=0.05)
    assert found.limit == "cores"


def test_the_lock_is_the_limit_where_python_takes_its_share() -> None:
    for loop in (0.0, 1.0):
        found = throughput(costs(10, 1, loop), 32)
        assert found.per_second == pytest.approx(1000 / (1 + loop), rel=0.05)
        assert found.limit == "lock"
        assert found.lock_busy == pytest.approx(1, abs=0.05)


def test_more_cores_never_give_less() -> None:
    rates = [throughput(costs(10, 1, 0.5), num_cores).per_second for num_cores in (1, 2, 4, 6, 8, 16)]
    assert all(later >= before * 0.99 for before, later in itertools.pairwise(rates))


def test_a_process_is_given_as_many_cores_as_the_lock_feeds() -> None:
    # With 1 ms of the lock in 10, ten cores have all of the lock; eleven give nine tenths each.
    assert 7 <= cores_worth_having(costs(10, 1)) <= 11
    assert cores_worth_having(costs(10, 1, loop=1)) < cores_worth_having(costs(10, 1))
    assert cores_worth_having(costs(10, 5)) <= 2


def test_the_number_of_processes_leaves_room() -> None:
    per_process = throughput(costs(), 4).per_second
    assert num_processes(costs(), 4, 1) == 1
    assert num_processes(costs(), 4, 0.69 * per_process) == 1
    assert num_processes(costs(), 4, 0.71 * per_process) == 2
    assert num_processes(costs(), 4, 69.9 * per_process) == 100
