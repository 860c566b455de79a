"""Who is refused at once, for want of room or of time, and who is not worth encoding any more."""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dragoman_server.engine.pace import Pace
from dragoman_server.engine.room import Usage
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.sequence import Completion, Outline, Priority, Request, SequenceGroup
from dragoman_server.engine.waiting import Coming, Load
from dragoman_server.errors import NotInTimeError, QueueFullError

# Estimates are taken for so much longer: answers go through other threads and the network, and lengths are guesses.
# Before texts are looked at, more is guessed; and whoever would be refused afterwards had better be refused then.
_MARGIN, _EARLY_MARGIN = 1.15, 1.2
# Where it is a request's turn, less is guessed.
_LATE_MARGIN = 1.1
# The longest of a call's requests is so many times as long as usual, where there are several: at first, and with what
# share of the weight each call changes it.
_LONGEST_RATIO, _LEARNED_SHARE = 2.0, 0.05
# Where nothing is known of the pace, callers who find the queue full are told to come back after this.
_UNKNOWN_RETRY_SECONDS = 1.0
_LEAST_RETRY_SECONDS = 0.05
# With this part of its rows in use an engine has enough to do for its pace to count.
_BUSY_SHARE = 0.25


class Admission:
    """Compares what is asked for with the room and the pace that there are. Not thread-safe.

    Args:
        scheduler: of the engine.
        limits: of what may wait.
        num_rows: of all lanes.
    """

    def __init__(self, scheduler: Scheduler, limits: Usage, num_rows: int) -> None:
        self._scheduler, self._limits, self._num_rows = scheduler, limits, num_rows
        self._pace = Pace()
        self._longest_ratio = _LONGEST_RATIO
        # By identity and priority, of calls that were not refused early: how many there are, and what is known of what
        # they take, their requests not being ready yet. It counts when the same caller asks again, as if it waited.
        self._expected = defaultdict[object, dict[Priority, _Expected]](dict)

    def check_early(self, outline: Outline) -> None:
        """Refuses a call of which only this is known, as if its requests were as long as those of others lately.

        Raises:
            QueueFullError: there is no room for so many.
            NotInTimeError: they can hardly be finished by the deadline.
        """
        self._check_room(_least(outline), outline.priority, outline.identity, self._expected_of(outline.identity))
        if not math.isinf(outline.deadline):
            _check_time(_EARLY_MARGIN * self.seconds(outline) + outline.seconds_after, outline.deadline)

    def expect(self, outline: Outline, sign: int = 1) -> None:
        """A call is made ready to be checked, or is no longer where the sign is -1."""
        if outline.identity is None:  # a call of its own
            return
        of_caller = self._expected[outline.identity]
        before = of_caller.get(outline.priority, _Expected())
        left = _Expected(before.num_calls + sign, before.usage.plus(_least(outline), sign))
        of_caller[outline.priority] = left
        if not left.num_calls:
            del of_caller[outline.priority]
        if not of_caller:
            del self._expected[outline.identity]

    def check(self, groups: Sequence[SequenceGroup]) -> None:
        """Refuses the requests of a call, at least one.

        Raises:
            QueueFullError: there is no room for them.
            NotInTimeError: they cannot be finished by their deadline, as far as can be known.
        """
        usage, priority, identity = Usage.of(groups), groups[0].request.priority, groups[0].identity
        self._check_room(usage, priority, identity)
        load = Load(len(groups), sum(group.weight for group in groups))
        longest = max(group.request.size for group in groups)
        if len(groups) > 1 and self._pace.usual_size:
            self._longest_ratio += _LEARNED_SHARE * (longest / self._pace.usual_size - self._longest_ratio)
        deadline = min(group.request.deadline for group in groups)
        seconds_after = max(group.request.seconds_after for group in groups)
        if not math.isinf(deadline):
            seconds = self._seconds(load, usage.num_rows, longest, priority, identity)
            _check_time(_MARGIN * seconds + seconds_after, deadline)

    def seconds(self, outline: Outline) -> float:
        """How long the requests of a call would take of which only this is known; 0 where the pace is unknown."""
        usage, identity = _least(outline), outline.identity
        longest = self._pace.usual_size * (self._longest_ratio if outline.num_requests > 1 else 1.0)
        expected, load = self._expected_of(identity), self._load_of(usage)
        return self._seconds(load, usage.num_rows, longest, outline.priority, identity, expected)

    def is_late(self, request: Request) -> bool:
        """Whether a request cannot be finished by its deadline, were it encoded now."""
        if math.isinf(request.deadline):
            return False
        now = time.monotonic()
        return (
            now + _LATE_MARGIN * self._decoding_seconds(request.size, request.options.num_rows, now) > request.deadline
        )

    def note_step(self, now: float, num_rows: int) -> None:
        """Tells that a lane has decoded a token more for so many rows, and everything was dealt that could be."""
        is_busy = self._scheduler.is_full or self._scheduler.num_reserved_rows >= _BUSY_SHARE * self._num_rows
        self._pace.note_step(now, num_rows, is_busy)

    def note_answer(self, request: Request, answer: Completion) -> None:
        """Tells how long the target of a request has become."""
        self._pace.note_answer(request.size, max(len(hypothesis.token_ids) for hypothesis in answer.hypotheses))

    def _expected_of(self, identity: object) -> Mapping[Priority, "_Expected"]:
        return self._expected.get(identity, {})

    def _check_room(
        self,
        usage: Usage,
        priority: Priority,
        identity: object,
        expected: Mapping[Priority, "_Expected"] = MappingProxyType({}),
    ) -> None:
        coming = {of_priority: calls.usage for of_priority, calls in expected.items()}
        lack = self._scheduler.room.lack(usage, self._limits, identity, priority, coming)
        if lack is not None:
            text, share = lack
            weight = sum(self._load_of(expected_usage).weight for expected_usage in coming.values())
            seconds = self._pace.seconds_of(share * (self._scheduler.waiting_weight + weight), time.monotonic())
            raise QueueFullError(text, max(_LEAST_RETRY_SECONDS, seconds or _UNKNOWN_RETRY_SECONDS))

    def _seconds(
        self,
        load: Load,
        num_rows: int,
        longest: float,
        priority: Priority,
        identity: object,
        expected: Mapping[Priority, "_Expected"] = MappingProxyType({}),
    ) -> float:
        """From now to the answers of a call: what comes before it, and its decoding."""
        now = time.monotonic()
        seconds = self._decoding_seconds(longest, num_rows, now)
        coming = {
            of_priority: Coming(calls.num_calls, self._load_of(calls.usage)) for of_priority, calls in expected.items()
        }
        num_rows_before = self._scheduler.num_reserved_rows + sum(calls.usage.num_rows for calls in expected.values())
        if self._scheduler.num_waiting or num_rows_before + num_rows > self._num_rows:
            seconds += self._pace.seconds_of(self._scheduler.weight_until(load, identity, priority, coming), now)
        return seconds

    def _load_of(self, usage: Usage) -> Load:
        """Of requests as long as they are lately."""
        return Load(usage.num_requests, usage.num_rows * self._pace.usual_size)

    def _decoding_seconds(self, size: float, num_rows: int, now: float) -> float:
        """From the encoding of a request to its answer, with so many rows beside those that are taken."""
        num_together = min(self._scheduler.num_reserved_rows + num_rows, self._num_rows)
        return self._pace.decoding_seconds(size, num_together, now)


class _Expected(NamedTuple):
    num_calls: int = 0
    usage: Usage = Usage()


def _least(outline: Outline) -> Usage:
    """What a call takes up at least: each request has a token."""
    return Usage(outline.num_requests, outline.num_requests * outline.num_rows, outline.num_requests)


def _check_time(seconds: float, deadline: float) -> None:
    """Raises NotInTimeError where so many seconds are more than there are."""
    left = deadline - time.monotonic()
    if 0.0 < left < seconds:  # where it has passed, the engine says so
        raise NotInTimeError(
            f"the answer would take {seconds:.2g} s, and the deadline is in {left:.2g} s",
            max(_LEAST_RETRY_SECONDS, seconds - left),
        )
