"""What is noted of a call while it is answered: for its line in the log and, where there is one, for its trace."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dragoman_server.engine.sequence import Completion

# Of one call: a stream may go on for hours.
MAX_WORK = 64


class Phase(NamedTuple):
    """A part of some work, from and to, on the `time.monotonic` clock."""

    name: str
    begun: float
    ended: float


@dataclass(slots=True)
class Work:
    """What a model did for a call. Times are on the `time.monotonic` clock.

    Attributes:
        name: "translate" or "attention".
        model: name@version.
        num_pieces: segments, or passes of attention.
        begun: when it was asked for.
        ended: when it was done; infinity while, or where, it was not.
        phases: of a translation: queue, encode and decode, each from its first segment's to its last one's; so they may
            overlap. Empty where all came from the cache.
    """

    name: str
    model: str
    num_pieces: int
    begun: float
    ended: float = math.inf
    phases: Sequence[Phase] = ()

    def end(self, completions: Sequence[Completion] = ()) -> None:
        """Notes that it is done, and where the time went, as the engine says."""
        self.ended = time.monotonic()
        if not any(c.decode_seconds for c in completions):
            return
        # Since when each segment is encoded, and since when decoded.
        encoded = [self.begun + c.queue_seconds for c in completions]
        decoded = [since + c.encode_seconds for since, c in zip(encoded, completions, strict=True)]
        done = max(since + c.decode_seconds for since, c in zip(decoded, completions, strict=True))
        self.phases = (
            Phase("queue", self.begun, max(encoded)),
            Phase("encode", min(encoded), max(decoded)),
            Phase("decode", min(decoded), done),
        )


@dataclass(slots=True)
class CallRecord:
    """What is known of a call when it has ended.

    Attributes:
        model: that wrote the answer, name@version.
        num_texts: of the call.
        waited_seconds: until its caller had no more calls in flight than it may have.
        work: what models did, in the order in which it was begun; None where nobody wants to know.
        num_left_out: pieces of work that are not in there, because there were too many.
    """

    model: str = ""
    num_texts: int = 0
    waited_seconds: float = 0.0
    work: list[Work] | None = None
    num_left_out: int = 0

    def begin(self, name: str, model: str, num_pieces: int) -> Work | None:
        """Notes that a model is asked for something; None where nobody wants to know."""
        if self.work is None:
            return None
        if len(self.work) == MAX_WORK:
            self.num_left_out += 1
            return None
        work = Work(name, model, num_pieces, time.monotonic())
        self.work.append(work)
        return work


class TraceParent(NamedTuple):
    """The caller's span, as W3C Trace Context has it."""

    trace_id: str  # 32 digits, lower case
    span_id: str  # 16 digits
    is_sampled: bool


class Ended(NamedTuple):
    """A call that has ended. Times are on the `time.monotonic` clock."""

    method: str  # its full name
    code: str  # name of its gRPC status code
    code_number: int
    reason: str  # of its error, "" where there is none
    begun: float
    ended: float
    request_id: str
    parent: TraceParent | None
    record: CallRecord
