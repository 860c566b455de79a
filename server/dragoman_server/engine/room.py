"""How much of the queue is taken, and who may still join it: limits, and shares of callers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dragoman_server.engine.sequence import Priority, SequenceGroup

# Beside each limit as large a part of it is kept for callers who have little waiting, and never for bulk work.
_KEPT_SHARE = 0.25
_NAMES = ("segments", "rows", "source tokens")


class Usage(NamedTuple):
    """What requests take up in a queue."""

    num_requests: int = 0
    num_rows: int = 0
    num_tokens: int = 0  # of sources

    @classmethod
    def of(cls, groups: Sequence[SequenceGroup]) -> "Usage":
        return cls(
            len(groups),
            sum(group.request.options.num_rows for group in groups),
            sum(group.num_source_tokens for group in groups),
        )

    def plus(self, other: "Usage", sign: int = 1) -> "Usage":
        """Both together, or without the other."""
        return Usage(
            self.num_requests + sign * other.num_requests,
            self.num_rows + sign * other.num_rows,
            self.num_tokens + sign * other.num_tokens,
        )


class Room:
    """What waits, and takes room from others. Not thread-safe.

    A call that finds the queue empty may have any number of rows and tokens. Beside each limit a quarter as much is
    kept: a caller gets of it, with what it has waiting already, no more than it leaves (dynamic thresholds, Choudhury
    and Hahne 1998), so that however many come, there is some for the next. Bulk work gets none of it, and does not
    count there.
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self._of_callers: defaultdict[object, Usage] = defaultdict(Usage)  # by identity, without bulk work

    def take(self, group: SequenceGroup) -> None:
        """Counts a group that has come."""
        self._count(group, 1)

    def give(self, group: SequenceGroup) -> None:
        """Forgets one that has left."""
        self._count(group, -1)

    def lack(
        self,
        new: Usage,
        limits: Usage,
        identity: object,
        priority: Priority,
        coming: Mapping[Priority, Usage] = MappingProxyType({}),
    ) -> tuple[str, float] | None:
        """What there is not enough of for new requests, and the share of what waits that has to go first; or None.

        Args:
            new: what they take up together.
            limits: of what may wait.
            identity: of the caller.
            priority: of the requests.
            coming: what is to wait before them, of the same caller.
        """
        usage, of_caller = self.usage, self._of_callers.get(identity, Usage())
        for of_priority, own in coming.items():
            usage = usage.plus(own)
            if of_priority is not Priority.BULK:
                of_caller = of_caller.plus(own)
        for name, limit, waiting, added, own_waiting in zip(_NAMES, limits, usage, new, of_caller, strict=True):
            if waiting + added <= limit or (not waiting and name != _NAMES[0]):
                continue
            left = limit + int(_KEPT_SHARE * limit) - waiting
            if priority is not Priority.BULK and own_waiting + added <= left - added:
                continue
            are_waiting = "are waiting or to come" if coming else "are waiting"
            text = f"{waiting} {name} {are_waiting} and {added} more would exceed the limit of {limit}"
            return text, min(1.0, (waiting + added - limit) / max(1, waiting))
        return None

    def _count(self, group: SequenceGroup, sign: int) -> None:
        own = Usage(1, group.request.options.num_rows, group.num_source_tokens)
        self.usage = self.usage.plus(own, sign)
        if group.request.priority is not Priority.BULK:
            left = self._of_callers[group.identity].plus(own, sign)
            self._of_callers[group.identity] = left
            if not left.num_requests:
                del self._of_callers[group.identity]
