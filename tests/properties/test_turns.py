"""Random work on one lane: shares of its time, whoever comes, goes, and is idle in between."""

import itertools
import weakref
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dragoman_server.runtime.turns import Turns

LANE = 3


@dataclass(eq=False)
class Work:
    """Its steps take so many seconds."""

    cost: float
    is_left: bool = True
    used: float = 0.0

    def has_work(self, lane: int) -> bool:
        assert lane == LANE
        return self.is_left

    def step(self, lane: int, is_alone: bool) -> None:
        raise AssertionError("the device does steps, turns do not")


def run(turns: Turns, num_steps: int) -> list[Work]:
    """Does so many steps, each at its cost; returns whose they were."""
    done: list[Work] = []
    for _ in range(num_steps):
        work = turns.next()
        assert isinstance(work, Work)
        work.used += work.cost
        turns.charge(work, work.cost)
        done.append(work)
    return done


def turns_of(*works: Work) -> Turns:
    turns = Turns(LANE)
    for work in works:
        turns.add(work)
    return turns


@pytest.mark.parametrize("costs", list(itertools.permutations((1.0, 3.0, 10.0))))
def test_shares_are_of_time_and_not_of_steps(costs: tuple[float, ...]) -> None:
    works = [Work(cost) for cost in costs]
    turns = turns_of(*works)
    for _ in range(500):
        run(turns, 1)
        assert max(work.used for work in works) - min(work.used for work in works) <= 10.0


def test_everybody_has_a_turn_before_anybody_has_another() -> None:
    works = [Work(1.0) for _ in range(5)]
    turns = turns_of(*works)
    assert run(turns, 15) == works * 3


def test_who_comes_back_is_next_and_has_saved_nothing_up() -> None:
    stays, comes = Work(1.0), Work(1.0)
    turns = turns_of(stays, comes)
    run(turns, 2)
    comes.is_left = False
    run(turns, 100)
    comes.is_left = True
    turns.wake(comes)
    assert run(turns, 6) == [comes, stays] * 3


def test_who_had_the_lane_to_itself_owes_nothing_for_it() -> None:
    stays, comes = Work(1.0), Work(1.0, is_left=False)
    turns = turns_of(stays, comes)
    run(turns, 100)
    turns.add(attached := Work(1.0))
    comes.is_left = True
    turns.wake(comes)
    for work in (stays, comes, attached):
        work.used = 0.0
    run(turns, 30)
    assert {work.used for work in (stays, comes, attached)} <= {9.0, 10.0, 11.0}


def test_short_pauses_after_long_steps_gain_nothing() -> None:
    steady, blinking = Work(1.0), Work(10.0)
    turns = turns_of(steady, blinking)
    for _ in range(300):
        [work] = run(turns, 1)
        if work is blinking:
            blinking.is_left = False
            run(turns, 1)  # which finds it without work
            blinking.is_left = True
            turns.wake(blinking)
    assert blinking.used <= steady.used + 10.0


def test_who_is_told_of_twice_has_no_more_turns() -> None:
    works = [Work(1.0), Work(1.0)]
    turns = turns_of(*works)
    turns.wake(works[0])
    assert run(turns, 4) == works * 2


def test_a_stepper_that_was_removed_is_forgotten_and_cannot_come_back() -> None:
    turns = turns_of(gone := Work(1.0), stays := Work(1.0))
    run(turns, 3)
    turns.remove(gone)
    turns.charge(gone, 1.0)  # whose step was under way
    turns.wake(gone)
    turns.remove(gone)
    assert run(turns, 3) == [stays] * 3
    reference = weakref.ref(gone)
    del gone
    assert reference() is None


@pytest.mark.parametrize("is_attached_before", [False, True])
def test_nobody_has_a_turn_without_work(is_attached_before: bool) -> None:
    turns = turns_of(*[Work(1.0, is_left=False)] * is_attached_before)
    assert turns.next() is None


class Sharing(RuleBasedStateMachine):
    """The bound of start-time fair queueing: two that have had work for a while differ by a step of each at most."""

    works = Bundle("works")

    @initialize()
    def begin(self) -> None:
        self.turns = Turns(LANE)
        self.attached: list[Work] = []
        self.since: dict[tuple[Work, Work], tuple[float, float]] = {}  # what both had used when both had work at last

    def restart(self, work: Work) -> None:
        """The work has come to have some, or to have none."""
        self.since = {pair: used for pair, used in self.since.items() if work not in pair}
        for other in self.attached:
            if other is not work and work.is_left and other.is_left:
                self.since[work, other] = work.used, other.used

    @rule(target=works, cost=st.integers(1, 10).map(float), is_left=st.booleans())
    def attach(self, cost: float, is_left: bool) -> Work:
        work = Work(cost, is_left)
        self.turns.add(work)
        self.attached.append(work)
        self.restart(work)
        return work

    @rule(work=consumes(works))
    def detach(self, work: Work) -> None:
        self.turns.remove(work)
        self.attached.remove(work)
        work.is_left = False
        self.restart(work)

    @rule(work=works)
    def get_work(self, work: Work) -> None:
        if not work.is_left:
            work.is_left = True
            self.turns.wake(work)
            self.restart(work)

    @rule(num_steps=st.integers(1, 20), gives_up=st.booleans())
    def run(self, num_steps: int, gives_up: bool) -> None:
        for _ in range(num_steps):
            if not any(work.is_left for work in self.attached):
                assert self.turns.next() is None
                return
            [work] = run(self.turns, 1)
            assert work.is_left
            self.shares_are_equal()
        if gives_up:
            work.is_left = False
            self.restart(work)

    @invariant()
    def shares_are_equal(self) -> None:
        for (one, other), (used_by_one, used_by_other) in self.since.items():
            assert abs((one.used - used_by_one) - (other.used - used_by_other)) <= one.cost + other.cost

    @invariant()
    def others_are_counted(self) -> None:
        num_busy = sum(work.is_left for work in self.attached)
        for work in self.attached:
            # Whose work has ended is counted until the lane finds it out.
            assert num_busy - work.is_left <= self.turns.num_others(work) <= len(self.attached) - 1


Sharing.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestSharing = Sharing.TestCase
