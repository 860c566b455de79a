"""Who is decoded when, and in which lane: a state machine without model, clock and threads, for tests to drive."""

import math
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from collections.abc import Sequence as Rows
from operator import neg

from dragoman_server.engine.room import Room, Usage
from dragoman_server.engine.sequence import Priority, Sequence, SequenceGroup
from dragoman_server.engine.slots import Move, Slots
from dragoman_server.engine.waiting import Coming, Load, WaitingQueue

# What a run of the encoder costs beside its tokens, in tokens: two runs are better than padding beyond this.
ENCODER_RUN_TOKENS = 48
# With padding, that a run of the encoder has at most unless one source alone has more. Larger ones are no faster, and
# each lane that runs one has memory for what it computes on the way.
MAX_ENCODER_RUN_TOKENS = 256


class LaneSchedule:
    """What was dealt to one lane: the groups that arrive at its next step, and those that run in its rows."""

    def __init__(self, max_rows: int, max_encoder_tokens: int) -> None:
        self._max_encoder_tokens = max_encoder_tokens
        self._slots = Slots(max_rows)
        self._arrivals: list[SequenceGroup] = []
        self._lengths: list[int] = []  # of the sources of the arrivals, falling
        self._running: dict[SequenceGroup, None] = {}  # a set that keeps its order
        self._num_forking = 0  # running groups whose sequences are replaced at every step
        self.num_reserved_rows = 0
        self.num_reserved_tokens = 0

    @property
    def rows(self) -> Rows[Sequence]:
        """What is decoded, by row."""
        return self._slots.sequences

    @property
    def running(self) -> Collection[SequenceGroup]:
        return self._running

    @property
    def arrivals(self) -> Collection[SequenceGroup]:
        return self._arrivals

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._arrivals)

    @property
    def has_forking(self) -> bool:
        """Whether groups run whose sequences are replaced at every step."""
        return self._num_forking > 0

    def has_rows(self, group: SequenceGroup) -> bool:
        """Whether there are rows for it."""
        return self.num_reserved_rows + group.request.options.num_rows <= self._slots.capacity

    def has_room(self, group: SequenceGroup) -> bool:
        """Whether there are rows for it, and encoding it would not hold up the running rows for too long."""
        if not self.has_rows(group):
            return False
        lengths = [*self._lengths, group.num_source_tokens]
        if len(lengths) == 1 or len(lengths) * max(lengths) <= self._max_encoder_tokens:
            return True
        return _num_padded(sorted(lengths, reverse=True)) <= self._max_encoder_tokens

    def add(self, group: SequenceGroup) -> None:
        """Deals a group to the lane."""
        self._reserve(group, 1)
        self._arrivals.append(group)
        insort(self._lengths, group.num_source_tokens, key=neg)

    def join(self) -> list[list[SequenceGroup]]:
        """Makes the arrivals run; returns them in the batches in which they are to be encoded.

        Each has one row for the time being. In a batch sources are of similar length, and its members have consecutive
        rows.
        """
        if not self._arrivals:
            return []
        arrivals = sorted(self._arrivals, key=lambda group: -group.num_source_tokens)
        batches = [arrivals[begin:end] for begin, end in _batches(self._lengths)]
        for group in arrivals:
            group.live = [Sequence(group)]
            self._slots.add(group.live[0])
            self._running[group] = None
            self._num_forking += group.request.options.forks
        self._arrivals, self._lengths = [], []
        return batches

    def update(self) -> list[Move]:
        """Follows the `live` sequences of the running groups, of which those without any leave; returns the copies."""
        for group in [group for group in self._running if not group.live]:
            del self._running[group]
            self._num_forking -= group.request.options.forks
            self._reserve(group, -1)
        return self._slots.advance(sequence for group in self._running for sequence in group.live)

    def withdraw(self, group: SequenceGroup) -> None:
        """Forgets an arrival."""
        self._arrivals.remove(group)
        self._lengths.remove(group.num_source_tokens)
        self._reserve(group, -1)

    def _reserve(self, group: SequenceGroup, sign: int) -> None:
        self.num_reserved_rows += sign * group.request.options.num_rows
        self.num_reserved_tokens += sign * group.request.num_kv_tokens

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        self._slots.check_integrity()
        if {id(s) for s in self._slots.sequences} != {id(s) for group in self._running for s in group.live}:
            raise RuntimeError("the rows are not those of the running groups")
        groups = [*self._running, *self._arrivals]
        if len(groups) != len(set(groups)):
            raise RuntimeError("a group arrives twice, or arrives and runs")
        if sum(group.request.options.forks for group in self._running) != self._num_forking:
            raise RuntimeError("the number of forking groups is wrong")
        num_rows = sum(group.request.options.num_rows for group in groups)
        num_tokens = sum(group.request.num_kv_tokens for group in groups)
        if (num_rows, num_tokens) != (self.num_reserved_rows, self.num_reserved_tokens):
            raise RuntimeError("the reservations are not those of the groups")


class Scheduler:
    """Waiting groups in the order of their turns, dealt to the lane that has the fewest rows taken.

    Of lanes with as many rows, to the one that is needed least by others, as the caller says.

    Three budgets bound what runs. A source that is over `max_encoder_tokens` by itself is encoded alone, a group that
    is over `max_kv_tokens` by itself runs alone, so that nothing waits for ever.

    Args:
        num_lanes: batches that are decoded side by side.
        max_running: rows of a lane. A group is counted with all rows that it may come to need.
        max_encoder_tokens: source tokens, with padding, that a lane encodes between two decoding steps.
        max_kv_tokens: positions of the KV pools that what runs in all lanes may come to fill; may change between deals.
    """

    def __init__(
        self, num_lanes: int, max_running: int, max_encoder_tokens: int, max_kv_tokens: float = math.inf
    ) -> None:
        self.max_kv_tokens = max_kv_tokens
        self.lanes = [LaneSchedule(max_running, max_encoder_tokens) for _ in range(num_lanes)]
        self._waiting = WaitingQueue()

    @property
    def waiting(self) -> Iterable[SequenceGroup]:
        return self._waiting

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> Room:
        """What of the queue is taken."""
        return self._waiting.room

    @property
    def waiting_weight(self) -> float:
        """Of all that waits."""
        return self._waiting.weight

    def weight_until(self, new: Load, identity: object, priority: Priority, coming: Mapping[Priority, Coming]) -> float:
        """An estimate of what is dealt until the last request of a new call is, this included."""
        return self._waiting.weight_until(new, identity, priority, coming)

    @property
    def num_running(self) -> int:
        return sum(len(lane.running) + len(lane.arrivals) for lane in self.lanes)

    @property
    def has_work(self) -> bool:
        return len(self._waiting) > 0 or any(lane.has_work for lane in self.lanes)

    def add(self, groups: Iterable[SequenceGroup]) -> None:
        for group in groups:
            self._waiting.add(group)

    def deal(self, num_others: Rows[int] = (), is_late: Callable[[SequenceGroup], bool] = lambda _: False) -> set[int]:
        """Gives those whose turn it is to the lanes, as long as there is room; returns the lanes that were given any.

        Nobody overtakes: when there is no room for the next, those behind it wait too.

        Args:
            num_others: by lane, how many others want its time at present; empty where nobody does.
            is_late: asked when it is a group's turn; one that is late leaves the queue for no lane, and is forgotten.
        """
        dealt: set[int] = set()
        while len(self._waiting):
            group = self._waiting.next
            if is_late(group):
                self._waiting.pop()
                continue
            if not self._has_kv_room(group):
                break
            having_room = [i for i, lane in enumerate(self.lanes) if lane.has_room(group)]
            if not having_room:
                break
            group.lane = min(having_room, key=lambda lane: self._load(lane, num_others))
            self.lanes[group.lane].add(self._waiting.pop())
            dealt.add(group.lane)
        return dealt

    @property
    def is_full(self) -> bool:
        """Whether somebody waits for rows or positions that others have, not for a run of the encoder."""
        if not len(self._waiting):
            return False
        group = self._waiting.next
        return not self._has_kv_room(group) or not any(lane.has_rows(group) for lane in self.lanes)

    @property
    def num_reserved_rows(self) -> int:
        """Rows that what was dealt may come to need."""
        return sum(lane.num_reserved_rows for lane in self.lanes)

    @property
    def num_reserved_tokens(self) -> int:
        """Positions of the KV pools that what was dealt may come to fill."""
        return sum(lane.num_reserved_tokens for lane in self.lanes)

    def _has_kv_room(self, group: SequenceGroup) -> bool:
        num_tokens = self.num_reserved_tokens
        return not num_tokens or num_tokens + group.request.num_kv_tokens <= self.max_kv_tokens

    def _load(self, lane: int, num_others: Rows[int]) -> tuple[int, int, int]:
        own = self.lanes[lane]
        return own.num_reserved_rows, num_others[lane] if num_others else 0, own.num_reserved_tokens

    def withdraw(self, groups: Iterable[SequenceGroup]) -> set[SequenceGroup]:
        """Forgets those of the groups that do not run yet; returns them."""
        waiting = {group for group in groups if group.lane < 0}
        self._waiting.remove(waiting)
        arriving = {group for group in groups if group.lane >= 0 and group in self.lanes[group.lane].arrivals}
        for group in arriving:
            self.lanes[group.lane].withdraw(group)
        return waiting | arriving

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        for lane in self.lanes:
            lane.check_integrity()
        everyone = [*self._waiting, *(group for lane in self.lanes for group in (*lane.arrivals, *lane.running))]
        if len(everyone) != len(set(everyone)):
            raise RuntimeError("a group is in two places, or twice in one")
        limited = [group for group in self._waiting if not group.is_unlimited]
        if (len(self._waiting), self.room.usage) != (len(list(self._waiting)), Usage.of(limited)):
            raise RuntimeError("the number of those waiting is wrong")


def _batches(lengths: Rows[int]) -> Iterator[tuple[int, int]]:
    """Ranges of falling lengths, none too large, in each of which padding costs no more than another run would."""
    begin = padding = 0
    for i, length in enumerate(lengths):
        padding += lengths[begin] - length
        is_full = i > begin and (i + 1 - begin) * lengths[begin] > MAX_ENCODER_RUN_TOKENS
        if is_full or padding > ENCODER_RUN_TOKENS:
            yield begin, i
            begin, padding = i, 0
    if lengths:
        yield begin, len(lengths)


def _num_padded(lengths: Rows[int]) -> int:
    """Tokens with padding of falling lengths, batch by batch."""
    return sum((end - begin) * lengths[begin] for begin, end in _batches(lengths))
