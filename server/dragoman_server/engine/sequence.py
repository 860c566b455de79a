"""What moves through the engine: a `Request` comes in, a `Sequence` is decoded, a `Completion` goes back."""

import enum
import math
from concurrent.futures import Future
from dataclasses import dataclass, field


class FinishReason(enum.Enum):
    """Why a hypothesis ended."""

    STOP = "stop"  # the model emitted end-of-sentence
    LENGTH = "length"  # max_target_tokens was reached first


@dataclass(frozen=True, slots=True)
class Request:
    """One source segment to translate. `deadline` is on the `time.monotonic` clock, in seconds."""

    source_ids: tuple[int, ...]  # with language tag and end-of-sentence, as the encoder reads them
    max_target_tokens: int
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished target; `token_ids` includes end-of-sentence when it was emitted."""

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]  # natural logarithm, the model's own
    finish_reason: FinishReason

    @property
    def sum_logprob(self) -> float:
        return math.fsum(self.token_logprobs)

    @property
    def score(self) -> float:
        """`sum_logprob / num_tokens`: Hugging Face's sequence score at length_penalty 1.0."""
        return self.sum_logprob / len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a request: hypotheses, best first, and where the time went."""

    hypotheses: tuple[Hypothesis, ...]
    queue_seconds: float
    encode_seconds: float  # duration of the encoder run this source was part of
    decode_seconds: float  # from joining the running batch to finishing


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. Times are on the `time.monotonic` clock; `future` is the way home.

    A caller that no longer wants the answer cancels the future; the engine then drops the sequence at its next step.
    """

    request: Request
    arrived: float
    future: "Future[Completion]" = field(default_factory=Future)
    token_ids: list[int] = field(default_factory=list)
    token_logprobs: list[float] = field(default_factory=list)
    joined: float = 0.0  # when its encoding began
    encode_seconds: float = 0.0

    @property
    def num_source_tokens(self) -> int:
        return len(self.request.source_ids)

    @property
    def num_target_tokens(self) -> int:
        return len(self.token_ids)

    def is_abandoned(self, now: float) -> bool:
        """Nobody waits for it any more, or nobody can still be answered in time."""
        return self.future.cancelled() or now >= self.request.deadline

    def append(self, token_id: int, logprob: float, eos_token_id: int) -> FinishReason | None:
        """Adds a decoded token; returns why the sequence is finished now, or None."""
        self.token_ids.append(token_id)
        self.token_logprobs.append(logprob)
        if token_id == eos_token_id:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_target_tokens >= self.request.max_target_tokens else None

    def completion(self, finish_reason: FinishReason, now: float) -> Completion:
        hypothesis = Hypothesis(tuple(self.token_ids), tuple(self.token_logprobs), finish_reason)
        decode_seconds = now - self.joined - self.encode_seconds
        return Completion((hypothesis,), self.joined - self.arrived, self.encode_seconds, decode_seconds)
