"""Random programs on the scheduler, beside a pool whose rows are copied as it says."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Priority, Request, SequenceGroup

MAX_RUNNING, MAX_ENCODER_TOKENS, MAX_KV_TOKENS = 7, 12, 60
Contents = tuple[SequenceGroup, tuple[int, ...]]  # whose source is encoded in a row, and which tokens were fed to it


def groups() -> st.SearchStrategy[SequenceGroup]:
    options = st.one_of(
        st.just(SearchOptions()),
        st.builds(SearchOptions, beam_size=st.integers(2, MAX_RUNNING)),
        st.builds(SearchOptions, is_sampling=st.just(True), num_hypotheses=st.integers(1, MAX_RUNNING)),
    )
    requests = st.builds(
        Request,
        source_ids=st.integers(1, 20).map(lambda length: (7,) * length),
        max_target_tokens=st.integers(1, 9),
        options=options,
        priority=st.sampled_from(Priority),
    )
    return st.builds(SequenceGroup, requests, arrived=st.just(0.0), caller=st.sampled_from("abc"))


class Scheduling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(MAX_RUNNING, MAX_ENCODER_TOKENS, MAX_KV_TOKENS)
        self.waiting: dict[object, list[SequenceGroup]] = defaultdict(list)  # in the order of arrival
        self.running: set[SequenceGroup] = set()
        self.pool: list[Contents | None] = [None] * MAX_RUNNING

    def queue(self, group: SequenceGroup) -> list[SequenceGroup]:
        return self.waiting[group.caller, group.request.priority]

    @rule(added=st.lists(groups(), max_size=6))
    def add(self, added: list[SequenceGroup]) -> None:
        for group in added:
            self.queue(group).append(group)
        self.scheduler.add(added)

    @rule()
    def schedule(self) -> None:
        first_row = len(self.scheduler.rows)
        batches = self.scheduler.schedule()
        arrivals = {group for batch in batches for group in batch}
        assert arrivals.isdisjoint(self.running)
        assert arrivals or self.running or not any(self.waiting.values())  # nothing waits while nothing runs
        assert len(arrivals) <= 1 or sum(len(b) * b[0].num_source_tokens for b in batches) <= MAX_ENCODER_TOKENS
        for waiting in self.waiting.values():
            own = arrivals.intersection(waiting)
            assert own == set(waiting[: len(own)])
            del waiting[: len(own)]
        self.running |= arrivals
        # What the runner is told: the batches' members go into consecutive rows, from the first free one on.
        for row, group in enumerate((group for batch in batches for group in batch), start=first_row):
            assert [sequence.row for sequence in group.live] == [row]
            self.pool[row] = (group, ())

    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        for sequence in self.scheduler.rows:
            self.pool[sequence.row] = (sequence.group, tuple(sequence.token_ids))
        for group in self.scheduler.running:  # which has an order, as draws must
            num_children = data.draw(st.integers(0, group.request.options.num_rows))
            parents = data.draw(st.lists(st.sampled_from(group.live), max_size=num_children))
            group.live = [parent.continued(place, -1.0, -1.0) for place, parent in enumerate(parents)]
        self.update()

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Whatever was cancelled, is past its deadline or failed."""
        everyone = [*self.scheduler.waiting, *self.scheduler.running]
        gone = {group for group in everyone if data.draw(st.booleans())}
        self.scheduler.remove_waiting(gone)
        for group in gone:
            group.live = []
            if group in self.queue(group):
                self.queue(group).remove(group)
        self.update()

    def update(self) -> None:
        moves = self.scheduler.update()
        assert len({move.target for move in moves}) == len(moves)
        assert {move.target for move in moves}.isdisjoint(move.source for move in moves)
        for source, target, is_sibling in moves:
            before, contents = self.pool[target], self.pool[source]
            assert contents is not None
            assert not is_sibling or (before is not None and before[0] is contents[0])
            self.pool[target] = contents
        self.running = {group for group in self.running if group.live}

    @invariant()
    def everyone_is_where_the_scheduler_says(self) -> None:
        self.scheduler.check_integrity()
        assert set(self.scheduler.waiting) == {group for waiting in self.waiting.values() for group in waiting}
        assert set(self.scheduler.running) == self.running
        assert self.scheduler.num_waiting == sum(map(len, self.waiting.values()))
        assert self.scheduler.has_work == bool(self.scheduler.num_waiting or self.running)
        assert len(self.scheduler.rows) == sum(len(group.live) for group in self.running)
        for sequence in self.scheduler.rows:
            assert self.pool[sequence.row] == (sequence.group, tuple(sequence.token_ids[:-1]))

    @invariant()
    def the_budgets_hold(self) -> None:
        requests = [group.request for group in self.running]
        assert sum(request.options.num_rows for request in requests) <= MAX_RUNNING
        assert len(requests) <= 1 or sum(request.num_kv_tokens for request in requests) <= MAX_KV_TOKENS

    def teardown(self) -> None:
        """When nothing new comes everybody has had a turn by and by."""
        for _ in range(1 + self.scheduler.num_running + self.scheduler.num_waiting):
            self.schedule()
            for group in list(self.scheduler.running)[:1]:
                group.live = []
            self.update()
        assert not self.scheduler.has_work


Scheduling.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestScheduling = Scheduling.TestCase
