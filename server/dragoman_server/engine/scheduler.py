"""Who is decoded when. No model, no clock, no thread: a plain state machine that tests can drive by hand."""

from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Rows
from operator import neg

from dragoman_server.engine.sequence import Sequence, SequenceGroup
from dragoman_server.engine.slots import Move, Slots
from dragoman_server.engine.waiting import WaitingQueue

# What a run of the encoder costs beside its tokens, in tokens: two runs are better than padding beyond this.
ENCODER_RUN_TOKENS = 48


class Scheduler:
    """Waiting groups in the order of their turns, running ones with their sequences in rows of the KV pool.

    Three budgets bound what runs. A source that is over `max_encoder_tokens` by itself is encoded alone, a group that
    is over `max_kv_tokens` by itself runs alone, so that nothing waits for ever.

    Args:
        max_running: rows. A group is counted with all rows that it may come to need.
        max_encoder_tokens: source tokens, with padding, that are encoded between two decoding steps.
        max_kv_tokens: positions of the KV pool that the running may come to fill.
    """

    def __init__(self, max_running: int, max_encoder_tokens: int, max_kv_tokens: float) -> None:
        self.max_encoder_tokens = max_encoder_tokens
        self.max_kv_tokens = max_kv_tokens
        self._waiting = WaitingQueue()
        self._slots = Slots(max_running)
        self._running: dict[SequenceGroup, None] = {}  # a set that keeps its order
        self._num_reserved_rows = 0
        self._num_reserved_tokens = 0

    @property
    def rows(self) -> Rows[Sequence]:
        """What is decoded, by row."""
        return self._slots.sequences

    @property
    def running(self) -> Collection[SequenceGroup]:
        return self._running

    @property
    def waiting(self) -> Iterable[SequenceGroup]:
        return self._waiting

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._running) or len(self._waiting) > 0

    def add(self, groups: Iterable[SequenceGroup]) -> None:
        for group in groups:
            self._waiting.add(group)

    def schedule(self) -> list[list[SequenceGroup]]:
        """Moves the next arrivals from waiting to running; returns them in the batches in which they are to be encoded.

        They are taken in the order of their turns, one row each for the time being, as long as the budgets hold. In
        each batch sources are of similar length, and its members get consecutive rows.
        """
        lengths: list[int] = []  # falling
        arrivals: list[SequenceGroup] = []
        while len(self._waiting):
            group = self._waiting.next
            insort(lengths, group.num_source_tokens, key=neg)
            if (self._running and not self._has_room(group)) or (
                arrivals and _num_padded(lengths) > self.max_encoder_tokens
            ):
                break
            self._reserve(self._waiting.pop(), 1)
            arrivals.append(group)
        arrivals.sort(key=lambda group: -group.num_source_tokens)
        batches = [arrivals[begin:end] for begin, end in _batches([group.num_source_tokens for group in arrivals])]
        for group in arrivals:
            group.live = [Sequence(group)]
            self._slots.add(group.live[0])
        return batches

    def _has_room(self, group: SequenceGroup) -> bool:
        return (
            self._num_reserved_rows + group.request.options.num_rows <= self._slots.capacity
            and self._num_reserved_tokens + group.request.num_kv_tokens <= self.max_kv_tokens
        )

    def _reserve(self, group: SequenceGroup, sign: int) -> None:
        if sign > 0:
            self._running[group] = None
        else:
            del self._running[group]
        self._num_reserved_rows += sign * group.request.options.num_rows
        self._num_reserved_tokens += sign * group.request.num_kv_tokens

    def update(self) -> list[Move]:
        """Follows the `live` sequences of the running groups, of which those without any leave; returns the copies."""
        for group in [group for group in self._running if not group.live]:
            self._reserve(group, -1)
        return self._slots.advance(sequence for group in self._running for sequence in group.live)

    def remove_waiting(self, groups: Collection[SequenceGroup]) -> None:
        """Forgets those of the groups that wait."""
        self._waiting.remove(groups)

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        self._slots.check_integrity()
        if {id(s) for s in self._slots.sequences} != {id(s) for group in self._running for s in group.live}:
            raise RuntimeError("the rows are not those of the running groups")
        if not self._running.keys().isdisjoint(self._waiting):
            raise RuntimeError("a group both waits and runs")
        if len(self._waiting) != len(set(self._waiting)):
            raise RuntimeError("a group waits twice, or the number of those waiting is wrong")
        num_rows = sum(group.request.options.num_rows for group in self._running)
        num_tokens = sum(group.request.num_kv_tokens for group in self._running)
        if (num_rows, num_tokens) != (self._num_reserved_rows, self._num_reserved_tokens):
            raise RuntimeError("the reservations are not those of the running groups")


def _batches(lengths: Rows[int]) -> Iterator[tuple[int, int]]:
    """Ranges of falling lengths, in each of which padding costs no more than another run of the encoder would."""
    begin = padding = 0
    for i, length in enumerate(lengths):
        padding += lengths[begin] - length
        if padding > ENCODER_RUN_TOKENS:
            yield begin, i
            begin, padding = i, 0
    if lengths:
        yield begin, len(lengths)


def _num_padded(lengths: Rows[int]) -> int:
    """Tokens with padding of falling lengths, batch by batch."""
    return sum((end - begin) * lengths[begin] for begin, end in _batches(lengths))
