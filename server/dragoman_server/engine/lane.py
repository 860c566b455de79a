"""One lane of the engine: a batch that finished rows leave and waiting requests join between two steps.

    drop -> join -> encode arrivals -> decode_step over all rows -> search -> deliver

A lane belongs to one thread at a time. What it shares with others, the scheduler and the answers, is behind a lock.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Rows
from typing import NamedTuple

from dragoman_server.engine.runner import Runner
from dragoman_server.engine.scheduler import LaneSchedule
from dragoman_server.engine.search import Search
from dragoman_server.engine.sequence import Completion, SequenceGroup
from dragoman_server.errors import DeadlineError, DeviceLostError, DragomanError, InferenceError

logger = logging.getLogger(__name__)

_BATCH_FAILED = "the model could not be run on this batch"


class Answer(NamedTuple):
    """How long a segment took that was answered with a translation."""

    seconds: float  # from its arrival
    seconds_per_token: float  # of decoding, for each token of the best translation


class LaneStep(NamedTuple):
    """What one step of a lane did. Durations are 0 for a phase that did not run."""

    num_cached_tokens: int  # source and target tokens of the live rows, after the step: what the lane's KV pool holds
    num_decoded: int  # rows of the decode step, each of which gained a token
    decode_seconds: float
    encode_seconds: float
    num_encoded_tokens: int = 0  # without padding
    queue_seconds: tuple[float, ...] = ()  # how long each request that was encoded had waited
    first_token_seconds: tuple[float, ...] = ()  # from arrival, of each request that got its first token
    num_padding_tokens: int = 0  # that the encoder read beside these
    answers: tuple[Answer, ...] = ()  # of those that were translated and whose callers were still there
    num_wasted_tokens: int = 0  # decoded for requests that were given up, or have failed


class Lane:
    """Runs what the scheduler has dealt to it.

    Args:
        schedule: the lane's part of the scheduler.
        lock: guards the scheduler.
        runner: the model, with rows of its own.
        search: which tokens come next.
        answer: gives a request its answer; called without the lock.
    """

    def __init__(
        self,
        schedule: LaneSchedule,
        lock: threading.Lock,
        runner: Runner,
        search: Search,
        answer: Callable[[SequenceGroup, Completion | DragomanError], None],
    ) -> None:
        self._schedule, self._lock = schedule, lock
        self._runner, self._search, self._answer = runner, search, answer
        self.departed: list[SequenceGroup] = []  # running groups to be dropped at the next step; behind the lock
        self._num_cached_tokens = self._num_wasted_tokens = self._num_padding_tokens = 0
        self._answers: list[Answer] = []  # of the present step
        self._has_failed = False  # whether the latest step could not be run

    @property
    def has_work(self) -> bool:
        return self._schedule.has_work

    def give_back_memory(self) -> None:
        """Gives back what keys and values have grown to. The lane must have no work, and get none meanwhile."""
        self._runner.give_back_memory()

    def step(self, is_alone: bool = False) -> LaneStep:
        """Drops who has left, encodes who arrives, and decodes one token more for every row.

        Args:
            is_alone: whether no other lane has work.
        """
        self._runner.is_alone = is_alone
        if self.departed:
            with self._lock:
                departed, self.departed = self.departed, []
            message = "the deadline passed before the translation was finished"
            self._remove([group for group in departed if group.live], DeadlineError, message)
        with self._lock:
            batches = self._schedule.join()
        encoded, encode_seconds = self._encode(batches) if batches else ((), 0.0)
        num_decoded, decode_seconds = self._decode()
        step = LaneStep(self._num_cached_tokens, num_decoded, decode_seconds, encode_seconds)
        if self._answers or self._num_wasted_tokens:
            step = step._replace(answers=tuple(self._answers), num_wasted_tokens=self._num_wasted_tokens)
            self._answers, self._num_wasted_tokens = [], 0
        if not encoded:
            return step
        now = time.monotonic()
        num_padding_tokens, self._num_padding_tokens = self._num_padding_tokens, 0
        return step._replace(
            num_encoded_tokens=sum(group.num_source_tokens for group in encoded),
            num_padding_tokens=num_padding_tokens,
            queue_seconds=tuple(group.joined - group.arrived for group in encoded),
            # Those that were encoded in this step have their first token, unless the batch failed.
            first_token_seconds=tuple(now - group.arrived for group in encoded) if num_decoded else (),
        )

    def _encode(self, batches: Rows[Rows[SequenceGroup]]) -> tuple[Rows[SequenceGroup], float]:
        """Encodes the arrivals, batch by batch; returns those encoded and the seconds it took."""
        started = time.monotonic()
        encoded: list[SequenceGroup] = []
        failed: list[SequenceGroup] = []
        untried = list(reversed(batches))
        while untried:
            batch = untried.pop()
            began = time.monotonic()
            try:
                self._runner.encode([group.request.source_ids for group in batch], batch[0].live[0].row)
            except DeviceLostError:
                raise
            except Exception as error:
                logger.error("inference failed for %d sources", len(batch), exc_info=error)
                if len(batch) > 1:  # one alone may be at fault, or all together too large
                    untried += [[group] for group in reversed(batch)]
                else:
                    failed += batch
                continue
            seconds = time.monotonic() - began
            for group in batch:
                group.joined, group.encode_seconds = began, seconds
            encoded += batch
            lengths = [group.num_source_tokens for group in batch]
            self._num_padding_tokens += len(lengths) * max(lengths) - sum(lengths)
        self._num_cached_tokens += sum(group.num_source_tokens for group in encoded)
        if failed:  # not before all rows are filled, for this moves some
            self._remove(failed, InferenceError, _BATCH_FAILED)
        return encoded, time.monotonic() - started

    def _decode(self) -> tuple[int, float]:
        """One token more for every row, and answers for what is finished; returns the rows and the seconds it took."""
        rows = self._schedule.rows
        if not rows:
            return 0, 0.0
        started = time.monotonic()
        questions = [self._search.question(sequence) for sequence in rows]
        all_rows = [row for row, question in enumerate(questions) if question.needs_all]
        is_forced = any(question.forced_id is not None for question in questions)
        try:
            output = self._runner.decode_step(
                [s.token_ids[-1] if s.token_ids else self._search.decoder_start_token_id for s in rows],
                [len(s.token_ids) for s in rows],
                max(1, max(question.num_candidates for question in questions)),
                [question.forced_id or 0 for question in questions] if is_forced else (),
                all_rows,
                lists if any(lists := [s.group.request.candidates for s in rows]) else (),
            )
        except DeviceLostError:
            raise
        except Exception as error:
            logger.error("inference failed for %d rows", len(rows), exc_info=error)
            self._note_failure()
            return 0, 0.0
        self._has_failed = False
        running = self._schedule.running
        broken = self._search.advance(running, questions, all_rows, output)
        done = [group for group in running if not group.live]
        if done or self._schedule.has_forking:
            self._move_rows()
        else:
            self._num_cached_tokens += len(rows)
        self._deliver(done)
        if broken:
            logger.error("the model gave no numbers for %d requests", len(broken))
            self._remove(broken, InferenceError, _BATCH_FAILED)
        return len(questions), time.monotonic() - started

    def _note_failure(self) -> None:
        """The step is run again as it was: memory may have been short for a moment. Then with half of the requests."""
        if not self._has_failed:
            self._has_failed = True
            return
        self._has_failed = False
        running = list(self._schedule.running)
        self._remove(running[len(running) // 2 :], InferenceError, _BATCH_FAILED)

    def _deliver(self, done: Rows[SequenceGroup]) -> None:
        now = time.monotonic()
        for group in itertools.chain(done, self._schedule.running):
            if group.on_progress is not None:
                certain_ids = self._search.certain_ids(group)
                if len(certain_ids) > group.num_reported:
                    group.num_reported = len(certain_ids)
                    group.on_progress(certain_ids)
        for group in done:
            completion = group.completion(now)
            num_tokens = len(completion.hypotheses[0].token_ids)
            if group.future.cancelled():
                self._num_wasted_tokens += sum(len(hypothesis.token_ids) for hypothesis in group.finished)
            else:
                self._answers.append(Answer(now - group.arrived, completion.decode_seconds / max(1, num_tokens)))
            self._answer(group, completion)

    def _remove(self, groups: Collection[SequenceGroup], error: type[DragomanError], message: str) -> None:
        """Frees the rows of groups and answers these, and nobody else."""
        for group in groups:
            self._waste(group)
        self._move_rows()
        for group in groups:
            self._answer(group, error(message))

    def _fail_running(self) -> None:
        """Answers all that run: who knows what is in their rows."""
        failed = list(self._schedule.running)
        for group in failed:
            self._waste(group)
        with self._lock:
            self._schedule.update()  # moves nothing, as nothing is left
        for group in failed:
            self._answer(group, InferenceError(_BATCH_FAILED))

    def _waste(self, group: SequenceGroup) -> None:
        """Ends a group without an answer: what was decoded of it is of no use to anybody."""
        self._num_wasted_tokens += sum(len(sequence.token_ids) for sequence in group.live)
        self._num_wasted_tokens += sum(len(hypothesis.token_ids) for hypothesis in group.finished)
        group.live = []

    def _move_rows(self) -> None:
        """Lets those without live sequences leave, and moves the others together."""
        with self._lock:
            moves = self._schedule.update()
        try:
            self._runner.move_rows(moves)
        except DeviceLostError:
            raise
        except Exception as error:
            logger.error("%d rows could not be moved", len(moves), exc_info=error)
            self._fail_running()
        self._num_cached_tokens = sum(
            len(group.live) * (len(group.request.source_ids) + len(group.live[0].token_ids))
            for group in self._schedule.running
        )
