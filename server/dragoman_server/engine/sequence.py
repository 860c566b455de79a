"""What moves through the engine: a `Request` comes in, `Sequence`s are decoded, a `Completion` goes back."""

import enum
import math
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search_options import GREEDY, SearchOptions


class FinishReason(enum.Enum):
    """Why a hypothesis ended."""

    STOP = "stop"  # the model emitted end-of-sentence
    LENGTH = "length"  # max_target_tokens was reached first


class Priority(enum.IntEnum):
    """Who gets the larger share of the rows while there are not enough; nobody gets none."""

    INTERACTIVE = 0
    DEFAULT = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Request:
    """One source segment to translate. `deadline` is on the `time.monotonic` clock, in seconds."""

    source_ids: tuple[int, ...]  # with language tag and end-of-sentence, as the encoder reads them
    max_target_tokens: int  # end-of-sentence included
    deadline: float = math.inf
    options: SearchOptions = GREEDY
    # What every hypothesis begins with. One that ends with end-of-sentence leaves nothing to search: it is scored.
    prefix_ids: tuple[int, ...] = ()
    num_framing_ids: int = 0  # of these the first ones, such as the target's language: they do not count in scores
    priority: Priority = Priority.DEFAULT
    candidates: Candidates | None = None  # the tokens that targets may have; None: the whole vocabulary
    seconds_after: float = 0.0  # that its caller needs, when it is answered, for what comes then

    @property
    def size(self) -> int:
        """Tokens that the target has, as far as it can be known before."""
        return min(len(self.source_ids), self.max_target_tokens)

    @property
    def num_kv_tokens(self) -> int:
        """Positions of the KV pool that it may come to fill."""
        return self.options.num_rows * (len(self.source_ids) + self.max_target_tokens)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a call before its texts are looked at. `deadline` is on the `time.monotonic` clock."""

    num_requests: int = 1  # at least
    num_rows: int = 1  # of each
    priority: Priority = Priority.DEFAULT
    identity: object = None  # of the caller
    deadline: float = math.inf
    seconds_after: float = 0.0  # that the call needs, when they are answered, for what comes then


@dataclass(frozen=True)
class Hypothesis:
    """A finished target; `token_ids` includes end-of-sentence when it was emitted."""

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]  # natural logarithm, the model's own
    finish_reason: FinishReason
    length_penalty: float = 1.0
    ranked_logprob: float | None = None  # where hypotheses are not ranked by `sum_logprob`: what they are ranked by

    @property
    def sum_logprob(self) -> float:
        """Exactly rounded, so that it does not depend on the order of summation."""
        return math.fsum(self.token_logprobs)

    @cached_property
    def score(self) -> float:
        """What hypotheses are ranked by: `sum_logprob / num_tokens ** length_penalty`, as in Hugging Face.

        After a penalty it is the sum of what a beam search saw; tokens that a framing forces are left out of it.
        """
        logprob = self.sum_logprob if self.ranked_logprob is None else self.ranked_logprob
        return float(logprob / max(len(self.token_ids), 1) ** self.length_penalty)  # 0 where all was banned at once


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request: hypotheses, best first, and where the time went."""

    hypotheses: tuple[Hypothesis, ...]
    queue_seconds: float
    encode_seconds: float  # duration of the encoder run this source was part of
    decode_seconds: float  # from joining the running batch to finishing


@dataclass(slots=True, eq=False)
class Sequence:
    """A row being decoded: one of the candidates of its group."""

    group: "SequenceGroup"
    row: int = -1  # of the KV pool; kept by `Slots`
    token_ids: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    ranked_logprob: float = 0.0  # sum of what the search saw: the model's log-probs after penalties
    generator: random.Random | None = None  # of a sample, from its first drawn token on

    def append(self, token_id: int, logprob: float, ranked_logprob: float) -> None:
        self.token_ids.append(token_id)
        self.token_logprobs.append(logprob)
        self.ranked_logprob += ranked_logprob

    def continued(self, token_id: int, logprob: float, ranked_logprob: float) -> "Sequence":
        """A sequence with one token more, in the same row for now; this one stays as it is."""
        token_ids, token_logprobs = [*self.token_ids, token_id], [*self.token_logprobs, logprob]
        return Sequence(self.group, self.row, token_ids, token_logprobs, self.ranked_logprob + ranked_logprob)

    def hypothesis(self, finish_reason: FinishReason) -> Hypothesis:
        options = self.group.request.options
        is_penalised = options.beam_size > 1 and options.repetition_penalty != 1.0
        ranked_logprob = self.ranked_logprob if is_penalised else None
        if not is_penalised and self.group.request.num_framing_ids:
            ranked_logprob = math.fsum(self.token_logprobs[self.group.request.num_framing_ids :])
        return Hypothesis(
            tuple(self.token_ids), tuple(self.token_logprobs), finish_reason, options.length_penalty, ranked_logprob
        )


Progress = Callable[[tuple[int, ...]], None]


@dataclass(slots=True, weakref_slot=True, eq=False)
class SequenceGroup:
    """A request on its way, with all its candidates. Times are on the `time.monotonic` clock.

    `future` is the way home. A caller that no longer wants the answer cancels it; the engine then drops the group at
    its next step. It keeps what it calls when it is done: that must not hold the group, else only the garbage collector
    frees both.
    """

    request: Request
    arrived: float
    caller: object = None  # the call: those of one call take turns with those of others
    identity: object = None  # who calls: those of one caller take turns with those of others; None: the call itself
    on_progress: Progress | None = None  # is told the target's beginning whenever more of it has become certain
    is_unlimited: bool = False  # whether it takes no room from others in the queue
    future: "Future[Completion]" = field(default_factory=Future)
    lane: int = -1  # that it was dealt to
    live: list[Sequence] = field(default_factory=list)  # best first
    finished: list[Hypothesis] = field(default_factory=list)  # best first
    joined: float = 0.0  # when its encoding began
    encode_seconds: float = 0.0
    num_reported: int = 0  # tokens that `on_progress` was told
    is_plain: bool = field(init=False)  # whether the same is asked about every token behind the prefix
    weight: int = field(init=False)  # of the work, as far as it is known before

    def __post_init__(self) -> None:
        self.is_plain = self.request.options.is_plain
        self.identity = self.caller if self.identity is None else self.identity
        self.weight = self.request.size * self.request.options.num_rows

    @property
    def num_source_tokens(self) -> int:
        return len(self.request.source_ids)

    def is_abandoned(self, now: float) -> bool:
        """Nobody waits for it any more, or nobody can still be answered in time."""
        return self.future.cancelled() or now >= self.request.deadline

    def completion(self, now: float) -> Completion:
        hypotheses = tuple(self.finished[: self.request.options.num_hypotheses])
        decode_seconds = now - self.joined - self.encode_seconds
        return Completion(hypotheses, self.joined - self.arrived, self.encode_seconds, decode_seconds)
