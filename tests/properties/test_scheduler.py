"""Random programs on the scheduler, beside pools, one for each lane, whose rows are copied as it says."""

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

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
    return st.builds(
        SequenceGroup,
        requests,
        arrived=st.just(0.0),
        caller=st.sampled_from("abc"),
        identity=st.sampled_from(["A", "B", None]),
        is_unlimited=st.booleans(),
    )


class Scheduling(RuleBasedStateMachine):
    @initialize(num_lanes=st.integers(1, 3))
    def begin(self, num_lanes: int) -> None:
        self.scheduler = Scheduler(num_lanes, MAX_RUNNING, MAX_ENCODER_TOKENS, MAX_KV_TOKENS)
        self.waiting: dict[object, list[SequenceGroup]] = defaultdict(list)  # in the order of arrival
        self.dealt: list[list[SequenceGroup]] = [[] for _ in range(num_lanes)]  # that are still to join
        self.running: list[set[SequenceGroup]] = [set() for _ in range(num_lanes)]
        self.pools: list[list[Contents | None]] = [[None] * MAX_RUNNING for _ in range(num_lanes)]

    def queue(self, group: SequenceGroup) -> list[SequenceGroup]:
        return self.waiting[group.caller, group.identity, group.request.priority]

    @property
    def everyone(self) -> list[SequenceGroup]:
        waiting = [group for waiting in self.waiting.values() for group in waiting]
        lanes = [group for lane in self.scheduler.lanes for group in (*lane.arrivals, *lane.running)]
        return waiting + lanes

    @rule(added=st.lists(groups(), max_size=6))
    def add(self, added: list[SequenceGroup]) -> None:
        for group in added:
            self.queue(group).append(group)
        self.scheduler.add(added)

    @rule(data=st.data())
    def deal(self, data: st.DataObject) -> None:
        num_lanes = len(self.scheduler.lanes)
        before = [set(lane.arrivals) for lane in self.scheduler.lanes]
        given = self.scheduler.deal(data.draw(st.lists(st.integers(0, 3), min_size=num_lanes, max_size=num_lanes)))
        for i, lane in enumerate(self.scheduler.lanes):
            new = [group for group in lane.arrivals if group not in before[i]]
            assert bool(new) == (i in given)
            assert all(group.lane == i for group in new)
            self.dealt[i] += new
        for waiting in self.waiting.values():
            own = [group for group in waiting if group.lane >= 0]
            assert own == waiting[: len(own)]  # of one caller, none is dealt before those that came before it
            del waiting[: len(own)]
        assert any(self.dealt) or any(self.running) or not any(self.waiting.values())

    @rule(data=st.data())
    def deal_where_some_are_late(self, data: st.DataObject) -> None:
        late: list[SequenceGroup] = []

        def is_late(group: SequenceGroup) -> bool:
            if data.draw(st.booleans()):
                late.append(group)
            return group in late

        before = [set(lane.arrivals) for lane in self.scheduler.lanes]
        self.scheduler.deal((), is_late)
        for i, lane in enumerate(self.scheduler.lanes):
            self.dealt[i] += [group for group in lane.arrivals if group not in before[i]]
        for waiting in self.waiting.values():
            waiting[:] = [group for group in waiting if group.lane < 0 and group not in late]
        assert all(group.lane < 0 for group in late)

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.scheduler.lanes) - 1))
        lane = self.scheduler.lanes[i]
        first_row = len(lane.rows)
        batches = lane.join()
        arrivals = {group for batch in batches for group in batch}
        assert arrivals == set(self.dealt[i])
        assert len(arrivals) <= 1 or sum(len(b) * b[0].num_source_tokens for b in batches) <= MAX_ENCODER_TOKENS
        self.dealt[i] = []
        self.running[i] |= arrivals
        # What the runner is told: the batches' members go into consecutive rows, from the first free one on.
        for row, group in enumerate((group for batch in batches for group in batch), start=first_row):
            assert [sequence.row for sequence in group.live] == [row]
            self.pools[i][row] = (group, ())

    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.scheduler.lanes) - 1))
        lane = self.scheduler.lanes[i]
        for sequence in lane.rows:
            self.pools[i][sequence.row] = (sequence.group, tuple(sequence.token_ids))
        for group in lane.running:  # which has an order, as draws must
            num_children = data.draw(st.integers(0, group.request.options.num_rows))
            parents = data.draw(st.lists(st.sampled_from(group.live), max_size=num_children))
            group.live = [parent.continued(place, -1.0, -1.0) for place, parent in enumerate(parents)]
        self.update(i)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Whatever was cancelled, is past its deadline or failed."""
        gone = [group for group in self.everyone if data.draw(st.booleans())]
        running = {group for running in self.running for group in running}
        assert self.scheduler.withdraw(gone) == set(gone) - running
        for group in gone:
            group.live = []
            if group in self.queue(group):
                self.queue(group).remove(group)
            for dealt in self.dealt:
                if group in dealt:
                    dealt.remove(group)
        for i in range(len(self.scheduler.lanes)):
            self.update(i)

    def update(self, i: int) -> None:
        moves = self.scheduler.lanes[i].update()
        pool = self.pools[i]
        assert len({move.target for move in moves}) == len(moves)
        assert {move.target for move in moves}.isdisjoint(move.source for move in moves)
        for source, target, is_sibling in moves:
            before, contents = pool[target], pool[source]
            assert contents is not None
            assert not is_sibling or (before is not None and before[0] is contents[0])
            pool[target] = contents
        self.running[i] = {group for group in self.running[i] if group.live}

    @invariant()
    def everyone_is_where_the_scheduler_says(self) -> None:
        self.scheduler.check_integrity()
        assert set(self.scheduler.waiting) == {group for waiting in self.waiting.values() for group in waiting}
        assert self.scheduler.num_waiting == sum(map(len, self.waiting.values()))
        assert self.scheduler.num_running == sum(map(len, self.dealt)) + sum(map(len, self.running))
        for lane, dealt, running, pool in zip(self.scheduler.lanes, self.dealt, self.running, self.pools, strict=True):
            assert list(lane.arrivals) == dealt
            assert set(lane.running) == running
            assert lane.has_work == bool(dealt or running)
            assert len(lane.rows) == sum(len(group.live) for group in running)
            for sequence in lane.rows:
                assert pool[sequence.row] == (sequence.group, tuple(sequence.token_ids[:-1]))

    @invariant()
    def the_budgets_hold(self) -> None:
        requests = [[g.request for g in (*dealt, *own)] for dealt, own in zip(self.dealt, self.running, strict=True)]
        for own in requests:
            assert sum(request.options.num_rows for request in own) <= MAX_RUNNING
        every = [request for own in requests for request in own]
        assert len(every) <= 1 or sum(request.num_kv_tokens for request in every) <= MAX_KV_TOKENS

    def teardown(self) -> None:
        """When nothing new comes everybody has had a turn by and by."""
        for _ in range(1 + self.scheduler.num_running + self.scheduler.num_waiting):
            self.scheduler.deal()
            for lane in self.scheduler.lanes:
                lane.join()
                for group in list(lane.running)[:1]:
                    group.live = []
                lane.update()
        assert not self.scheduler.has_work


Scheduling.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestScheduling = Scheduling.TestCase
