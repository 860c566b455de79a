"""Who is decoded when. No model, no clock, no thread: a plain state machine that tests can drive by hand."""

from collections import deque
from collections.abc import Collection, Iterable

from dragoman_server.engine.sequence import Sequence
from dragoman_server.engine.slots import Move, Slots


class Scheduler:
    """Waiting sequences in order of arrival, running ones in their rows of the KV pool."""

    def __init__(self, max_running: int, max_encoder_tokens: int) -> None:
        self.max_encoder_tokens = max_encoder_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: Slots[Sequence] = Slots(max_running)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """By row."""
        return self._running.occupants

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """In order of arrival."""
        return tuple(self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or bool(len(self._running))

    def add(self, sequences: Iterable[Sequence]) -> None:
        self._waiting.extend(sequences)

    def schedule(self) -> list[Sequence]:
        """Moves the next arrivals from waiting to running and returns them, to be encoded as one batch.

        They are taken in order of arrival while rows are free and the padded batch stays within the token budget, which
        bounds how long running rows wait for an encoder. One is always taken, so that no source is too long to start.
        They get consecutive rows, the last ones.
        """
        arrivals: list[Sequence] = []
        longest = 0
        while self._waiting and self._running.num_free:
            longest = max(longest, self._waiting[0].num_source_tokens)
            if arrivals and longest * (len(arrivals) + 1) > self.max_encoder_tokens:
                break
            arrivals.append(self._waiting.popleft())
            self._running.add(arrivals[-1])
        return arrivals

    def remove_running(self, sequences: Collection[Sequence]) -> list[Move]:
        """Frees the rows of those of the sequences that run; returns the copies that keep the other rows dense."""
        rows = {row for row, sequence in enumerate(self._running.occupants) if sequence in sequences}
        return self._running.remove(rows)

    def remove_waiting(self, sequences: Collection[Sequence]) -> None:
        """Forgets those of the sequences that wait."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence not in sequences)

    def check_integrity(self) -> None:
        """Raises RuntimeError when an invariant does not hold."""
        self._running.check_integrity()
        sequences = [*self._waiting, *self._running.occupants]
        if len({id(sequence) for sequence in sequences}) != len(sequences):
            raise RuntimeError("a sequence is scheduled twice")
