"""A model without a model: what a row answers follows from what is in its row of the pool, and from nothing else."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dragoman_server.engine.runner import StepOutput
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Request
from dragoman_server.engine.slots import Move

START_ID, EOS_ID = 2, 3


@dataclass
class Row:
    source: tuple[int, ...]
    fed: list[int] = field(default_factory=list)


class FakeRunner:
    """Repeats the source backwards, then ends. A row that was mixed up with another says something else.

    Args:
        on_encode: called with the sources before they are encoded; may raise or block.
        on_decode: called with the number of rows before a step; may raise or block.
    """

    def __init__(
        self,
        on_encode: Callable[[Sequence[Sequence[int]]], None] = lambda _: None,
        on_decode: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.pool: dict[int, Row] = {}
        self.on_encode, self.on_decode = on_encode, on_decode
        self.batch_sizes: list[int] = []

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        self.on_encode(sources)
        for i, source in enumerate(sources):
            self.pool[first_row + i] = Row(tuple(source))

    def decode_step(
        self, token_ids: Sequence[int], positions: Sequence[int], score_ids: Sequence[int] | None = None
    ) -> StepOutput:
        self.on_decode(len(token_ids))
        self.batch_sizes.append(len(token_ids))
        chosen = []
        for row, (token_id, position) in enumerate(zip(token_ids, positions, strict=True)):
            state = self.pool[row]
            # The engine must feed back what the row itself said, position by position.
            assert position == len(state.fed)
            assert token_id == (START_ID if position == 0 else answer(state.source, position - 1))
            state.fed.append(token_id)
            chosen.append(answer(state.source, position))
        logprobs = np.array([[-1.0 / (1 + token)] for token in chosen], np.float32)
        return StepOutput(np.array(chosen, np.int64)[:, None], logprobs, np.zeros(len(chosen), np.float32))

    def move_rows(self, moves: Sequence[Move]) -> None:
        for source, target in moves:
            row = self.pool[source]
            self.pool[target] = Row(row.source, list(row.fed))


def answer(source: Sequence[int], position: int) -> int:
    """The token that follows at this position of the translation of a source."""
    return source[-1 - position] if position < len(source) else EOS_ID


def expected(request: Request) -> Hypothesis:
    """What the engine must answer to a request."""
    whole = [*reversed(request.source_ids), EOS_ID]
    token_ids = tuple(whole[: request.max_target_tokens])
    reason = FinishReason.STOP if token_ids[-1] == EOS_ID else FinishReason.LENGTH
    return Hypothesis(token_ids, tuple(float(np.float32(-1.0 / (1 + t))) for t in token_ids), reason)


class Gate:
    """Holds a thread up at a known place: `reached` is set when it arrives, it goes on when `open` is set."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self.open.wait(timeout=30)
