"""A model without a model: what a row answers follows from what is in its row of the pool, and from nothing else."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.config import EngineOptions
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.search import Search, StepOutput
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Request, SequenceGroup
from dragoman_server.engine.sequence import Sequence as Candidate
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.device import Device

START_ID, EOS_ID, VOCABULARY_SIZE = 2, 3, 128
SEARCH = Search(START_ID, EOS_ID)
LOGIT_OFFSET = 5.0  # logits are log-probs plus this

# Log-probs [V] of what follows a source and what was fed so far, the start token first.
Distribution = Callable[[Sequence[int], Sequence[int]], NDArray[np.float32]]


def reversing(source: Sequence[int], fed: Sequence[int]) -> NDArray[np.float32]:
    """The source backwards, then the end: that token has the log-prob -1 / (1 + id), others are far below."""
    logprobs = -_random(source, fed).uniform(2.0, 9.0, VOCABULARY_SIZE).astype(np.float32)
    token_id = source[-len(fed)] if len(fed) <= len(source) else EOS_ID
    logprobs[token_id] = logprob(token_id)
    return logprobs


def wild(source: Sequence[int], fed: Sequence[int]) -> NDArray[np.float32]:
    """Anything may follow of 12 tokens; about every sixth is the end."""
    logits = _random(source, fed).normal(0.0, 1.5, 12)
    logits[EOS_ID] += 0.5
    return np.asarray(logits - np.log(np.exp(logits).sum()), np.float32)


def _random(source: Sequence[int], fed: Sequence[int]) -> np.random.Generator:
    return np.random.default_rng(abs(hash((tuple(source), tuple(fed)))))


@dataclass
class Row:
    source: tuple[int, ...]
    fed: list[int] = field(default_factory=list)


class FakeRunner:
    """Answers by a distribution. A row that was mixed up with another says something else.

    Args:
        on_encode: called with the sources before they are encoded; may raise or block.
        on_decode: called with the number of rows before a step; may raise or block.
        distribution: of the next token.
    """

    kv_bytes_per_token = 1
    is_alone = False

    def __init__(
        self,
        on_encode: Callable[[Sequence[Sequence[int]]], None] = lambda _: None,
        on_decode: Callable[[int], None] = lambda _: None,
        distribution: Distribution = reversing,
    ) -> None:
        self.pool: dict[int, Row] = {}
        self.on_encode, self.on_decode, self.distribution = on_encode, on_decode, distribution
        self.batch_sizes: list[int] = []
        self.candidates: list[Sequence[Candidates | None]] = []
        self.num_given_back = 0

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        self.on_encode(sources)
        for i, source in enumerate(sources):
            self.pool[first_row + i] = Row(tuple(source))

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
        candidates: Sequence[Candidates | None] = (),
    ) -> StepOutput:
        self.candidates.append(candidates)
        self.on_decode(len(token_ids))
        self.batch_sizes.append(len(token_ids))
        rows = []
        for row, (token_id, position) in enumerate(zip(token_ids, positions, strict=True)):
            state = self.pool[row]
            # The engine must feed what it decided, position by position.
            assert position == len(state.fed)
            assert position or token_id == START_ID
            state.fed.append(token_id)
            rows.append(self.distribution(state.source, state.fed))
        return _step_output(np.stack(rows), top_k, score_ids, all_rows)

    def give_back_memory(self) -> None:
        self.num_given_back += 1
        self.pool.clear()

    def move_rows(self, moves: Sequence[Move]) -> None:
        for source, target, is_sibling in moves:
            row = self.pool[source]
            if is_sibling:
                assert self.pool[target].source == row.source
            self.pool[target] = Row(row.source, list(row.fed))


@contextmanager
def running_engine(runner: Runner | Sequence[Runner], search: Search = SEARCH, /, **options: int) -> Iterator[Engine]:
    """An engine with a lane for each runner and these `EngineOptions`, stopped in the end."""
    runners = runner if isinstance(runner, Sequence) else [runner]
    with Device(len(runners)) as device, engine_on(device, runners, search, **options) as engine:
        yield engine


@contextmanager
def engine_on(
    device: Device,
    runners: Sequence[Runner],
    search: Search = SEARCH,
    budget: KvBudget | None = None,
    /,
    **options: Any,
) -> Iterator[Engine]:
    """An engine on a device, which others may be on as well, with these `EngineOptions`, stopped in the end."""
    engine = Engine(runners, search, EngineOptions(**options), device, budget)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def decode_alone(
    request: Request,
    distribution: Distribution,
    search: Search = SEARCH,
    on_step: Callable[[SequenceGroup], None] = lambda _: None,
) -> tuple[Hypothesis, ...]:
    """What a request must be answered with: the search by itself, without a batch, a pool or threads."""
    group = SequenceGroup(request, arrived=0.0)
    group.live = [Candidate(group)]
    while group.live:
        for row, sequence in enumerate(group.live):
            sequence.row = row
        questions = [search.question(sequence) for sequence in group.live]
        all_rows = [row for row, question in enumerate(questions) if question.needs_all]
        fed = [(search.decoder_start_token_id, *sequence.token_ids) for sequence in group.live]
        logprobs = np.stack([distribution(request.source_ids, ids) for ids in fed])
        top_k = max(1, *(question.num_candidates for question in questions))  # no more than what was asked for
        output = _step_output(logprobs, top_k, [question.forced_id or 0 for question in questions], all_rows)
        search.advance([group], questions, all_rows, output)
        on_step(group)
    return group.completion(now=0.0).hypotheses


def _step_output(
    logprobs: NDArray[np.float32], top_k: int, score_ids: Sequence[int], all_rows: Sequence[int]
) -> StepOutput:
    """What a runner gives where these [rows, V] are the log-probs."""
    top_ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :top_k]
    scored = logprobs[range(len(logprobs)), score_ids] if score_ids else np.zeros(len(logprobs), np.float32)
    every = logprobs[list(all_rows)]
    return StepOutput(top_ids, np.take_along_axis(logprobs, top_ids, 1), scored, every + LOGIT_OFFSET, every)


def random_options(rng: random.Random, max_rows: int = 5) -> SearchOptions:
    """Any kind of search that a caller may ask for; samples have a seed."""
    kind = rng.choice(("greedy", "beam", "sampling"))
    options = SearchOptions(
        beam_size=rng.randint(min(2, max_rows), max_rows) if kind == "beam" else 1,
        length_penalty=rng.choice((-0.5, 0.0, 0.6, 1.0, 2.0)),
        early_stopping=rng.choice(list(EarlyStopping)),
        is_sampling=kind == "sampling",
        temperature=rng.choice((0.3, 1.0, 1.5)),
        top_k=rng.choice((0, 1, 5, 50)),
        top_p=rng.choice((0.5, 0.9, 1.0)),
        seed=rng.randrange(1000),
        min_target_tokens=rng.choice((0, 0, 4)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3, 0.8)),
        no_repeat_ngram_size=rng.choice((0, 0, 1, 2, 3)),
        suppressed=rng.choice(((), (), ((5,), (6, 7)), ((8, 8), (4, 9, 4)))),
    )
    most = max_rows if options.is_sampling else options.beam_size
    may_wait = options.beam_size > 1 and options.early_stopping is not EarlyStopping.NARROWING
    patience = rng.choice((0.5, 1.0, 2.0)) if may_wait else 1.0
    return replace(options, num_hypotheses=rng.randint(1, most), patience=patience)


def logprob(token_id: int) -> float:
    return float(np.float32(-1.0 / (1 + token_id)))


def expected(request: Request) -> Hypothesis:
    """What the engine must answer to a request for greedy search where the source is reversed."""
    whole = [*reversed(request.source_ids), EOS_ID]
    token_ids = tuple(whole[: request.max_target_tokens])
    reason = FinishReason.STOP if token_ids[-1] == EOS_ID else FinishReason.LENGTH
    return Hypothesis(token_ids, tuple(map(logprob, token_ids)), reason)


class Gate:
    """Holds a thread up at a known place: `reached` is set when it arrives, it goes on when `open` is set."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self.open.wait(timeout=30)
