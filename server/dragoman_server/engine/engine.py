"""Continuous batching: one thread that, step by step, lets finished rows leave and waiting requests join.

    schedule -> encode arrivals -> decode_step over all rows -> search -> deliver

The thread owns the scheduler and the runner; everybody else talks to it through `submit` and the futures it returns.
"""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Rows
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from dragoman_server.config import EngineOptions
from dragoman_server.deadlines import has_passed
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.search import Search
from dragoman_server.engine.sequence import Completion, Request, SequenceGroup
from dragoman_server.errors import DeadlineError, DragomanError, EngineDeadError, InferenceError, QueueFullError

logger = logging.getLogger(__name__)

_BATCH_FAILED = "the model could not be run on this batch"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, for metrics. Durations are 0 for a phase that did not run."""

    num_waiting: int  # requests, after the step
    num_running: int  # requests, after the step
    num_cached_tokens: int  # source and target tokens of the live rows, after the step: what the KV pool holds
    num_encoded_tokens: int  # without padding
    num_decoded: int  # rows of the decode step, each of which gained a token
    encode_seconds: float
    decode_seconds: float
    queue_seconds: tuple[float, ...]  # how long each request that was encoded had waited
    first_token_seconds: tuple[float, ...]  # from arrival, of each request that got its first token
    num_cancelled: int  # dropped because their callers left
    num_expired: int  # dropped because their deadlines passed


class Engine:
    """Translates token ids into token ids.

    Args:
        runner: the model; only the engine's thread calls it once `start` was called.
        search: which tokens come next.
        on_step: called on the engine's thread after every step; must be quick.
        on_death: called on the engine's thread when an error ends it, after all callers were answered.
    """

    def __init__(
        self,
        runner: Runner,
        search: Search,
        options: EngineOptions,
        on_step: Callable[[StepReport], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._search = search
        self._options = options
        self._on_step, self._on_death = on_step, on_death
        max_kv_tokens = options.max_kv_bytes / runner.kv_bytes_per_token if options.max_kv_bytes else math.inf
        self._scheduler = Scheduler(options.max_running, options.max_encoder_tokens, max_kv_tokens)
        self._changed = threading.Condition()  # guards the seven below
        self._inbox: list[SequenceGroup] = []
        self._pending: set[SequenceGroup] = set()  # submitted and not yet answered
        self._num_unlimited = 0  # of them
        self._is_stopping = False
        self._next_check = math.inf  # no request is abandoned before this time; -inf once a caller has left
        self._last_progress = time.monotonic()
        self._refusal = "the engine has not been started"  # why it takes no requests; empty when it does
        self._thread = threading.Thread(target=self._run, name="dragoman-engine", daemon=True)

    # -- any thread ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Raises RuntimeError when the engine was started before."""
        self._thread.start()
        with self._changed:
            if not self._is_stopping:
                self._refusal = ""

    @property
    def is_alive(self) -> bool:
        return not self._refusal

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet answered."""
        return len(self._pending)

    @property
    def stalled_seconds(self) -> float:
        """How long there has been work and no step was finished: the engine's heartbeat, upside down."""
        return time.monotonic() - self._last_progress if self._pending else 0.0

    def submit(
        self,
        requests: Rows[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        is_unlimited: bool = False,
    ) -> list["Future[Completion]"]:
        """Queues all requests or none; never blocks. Cancelling a future withdraws its request.

        Args:
            requests: each is answered by the future at the same place.
            caller: requests of the same caller (by equality) take turns with those of others. None: one of its own.
            on_progress: called on the engine's thread with the index of a request and the ids, without
                end-of-sentence, that its best hypothesis is now certain to begin with; must be quick and not raise.
            is_unlimited: whether `max_waiting` neither holds for nor counts these, whose caller limits them.

        Raises:
            QueueFullError: more would wait than `max_waiting`.
            EngineDeadError: the engine has ended or was stopped.
            ValueError: a request needs more rows than there are.
        """
        arrived = time.monotonic()
        caller = object() if caller is None else caller
        groups = [
            SequenceGroup(request, arrived, caller, partial(on_progress, index) if on_progress else None, is_unlimited)
            for index, request in enumerate(requests)
        ]
        num_rows = max((request.options.num_rows for request in requests), default=0)
        if num_rows > self._options.max_running:
            raise ValueError(f"a request needs {num_rows} rows, max_running is {self._options.max_running}")
        with self._changed:
            if self._refusal:
                raise EngineDeadError(self._refusal)
            # Some of those that run may be unlimited, which makes this number too small, by at most `max_running`.
            num_waiting = len(self._pending) - self._num_unlimited - self._scheduler.num_running
            if not is_unlimited and num_waiting + len(groups) > self._options.max_waiting:
                raise QueueFullError(
                    f"{num_waiting} segments are waiting and {len(groups)} more would exceed the limit of "
                    f"{self._options.max_waiting}",
                    retry_after_seconds=1.0,
                )
            if not self._pending:
                self._last_progress = arrived  # until now there was nothing to do
            self._pending.update(groups)
            self._num_unlimited += len(groups) if is_unlimited else 0
            self._next_check = min([self._next_check, *(request.deadline for request in requests)])
            self._inbox.extend(groups)
            self._changed.notify()
        for group in groups:
            group.future.add_done_callback(self._note_cancellation)
        return [group.future for group in groups]

    def _note_cancellation(self, future: "Future[Completion]") -> None:
        if future.cancelled():
            with self._changed:
                self._next_check = -math.inf

    def stop(self) -> None:
        """Ends the thread after its current step; requests not finished by then get an EngineDeadError."""
        with self._changed:
            self._is_stopping = True
            self._refusal = "the engine was stopped"
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._receive():
                self._step()
            self._fail_everything()
        except BaseException:
            logger.critical("the engine has died", exc_info=True)
            with self._changed:
                self._refusal = "the engine has died"
            self._fail_everything()
            self._on_death()

    def _receive(self) -> bool:
        """Takes what was submitted, waiting for it when idle; False when the engine shall stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._scheduler.has_work or self._is_stopping)
            self._scheduler.add(self._inbox)
            self._inbox.clear()
            return not self._is_stopping

    def _step(self) -> None:
        num_cancelled, num_expired = self._drop_abandoned()
        encoded, encode_seconds = self._encode(self._scheduler.schedule())
        num_decoded, decode_seconds = self._decode()
        self._last_progress = now = time.monotonic()
        running = self._scheduler.running
        self._on_step(
            StepReport(
                num_waiting=self._scheduler.num_waiting,
                num_running=self._scheduler.num_running,
                num_cached_tokens=sum(
                    len(g.live) * (g.num_source_tokens + g.live[0].num_target_tokens) for g in running
                ),
                num_encoded_tokens=sum(group.num_source_tokens for group in encoded),
                num_decoded=num_decoded,
                encode_seconds=encode_seconds,
                decode_seconds=decode_seconds,
                queue_seconds=tuple(group.joined - group.arrived for group in encoded),
                # Those that were encoded in this step have their first token, unless the batch failed.
                first_token_seconds=tuple(now - group.arrived for group in encoded) if num_decoded else (),
                num_cancelled=num_cancelled,
                num_expired=num_expired,
            )
        )

    def _drop_abandoned(self) -> tuple[int, int]:
        """Forgets what is cancelled or past its deadline, wherever it is; returns how many of each."""
        now = time.monotonic()
        with self._changed:
            if now < self._next_check:
                return 0, 0  # asking thousands of waiting groups would take as long as the step
            # What has come in since this step began is not looked at, so there must be another look at the next.
            self._next_check = -math.inf if self._inbox else math.inf
        scheduled = (*self._scheduler.waiting, *self._scheduler.running)
        abandoned = {group for group in scheduled if group.is_abandoned(now)}
        next_deadline = min((g.request.deadline for g in scheduled if g not in abandoned), default=math.inf)
        with self._changed:  # a caller may have left meanwhile
            self._next_check = min(self._next_check, next_deadline)
        if abandoned:
            self._scheduler.remove_waiting(abandoned)
            self._remove(abandoned, DeadlineError, "the deadline passed before the translation was finished")
        num_expired = sum(has_passed(group.request.deadline, group.arrived, now) for group in abandoned)
        return len(abandoned) - num_expired, num_expired

    def _encode(self, batches: Rows[Rows[SequenceGroup]]) -> tuple[Rows[SequenceGroup], float]:
        """Encodes the arrivals, batch by batch; returns those encoded and the seconds it took."""
        if not batches:
            return (), 0.0
        started = time.monotonic()
        encoded: list[SequenceGroup] = []
        failed: list[SequenceGroup] = []
        for batch in batches:
            began = time.monotonic()
            try:
                self._runner.encode([group.request.source_ids for group in batch], batch[0].live[0].row)
            except Exception as error:
                logger.error("inference failed for %d sources", len(batch), exc_info=error)
                failed += batch
                continue
            seconds = time.monotonic() - began
            for group in batch:
                group.joined, group.encode_seconds = began, seconds
            encoded += batch
        if failed:  # not before all rows are filled, for this moves some
            self._remove(failed, InferenceError, _BATCH_FAILED)
        return encoded, time.monotonic() - started

    def _decode(self) -> tuple[int, float]:
        """One token more for every row, and answers for what is finished; returns the rows and the seconds it took."""
        rows = self._scheduler.rows
        if not rows:
            return 0, 0.0
        started = time.monotonic()
        questions = [self._search.question(sequence) for sequence in rows]
        all_rows = [row for row, question in enumerate(questions) if question.needs_all]
        try:
            output = self._runner.decode_step(
                [s.token_ids[-1] if s.token_ids else self._search.decoder_start_token_id for s in rows],
                [s.num_target_tokens for s in rows],
                max(1, *(q.num_candidates for q in questions)),
                [q.forced_id or 0 for q in questions],
                all_rows,
            )
        except Exception as error:
            logger.error("inference failed for %d rows", len(rows), exc_info=error)
            self._remove(list(self._scheduler.running), InferenceError, _BATCH_FAILED)
            return 0, 0.0
        broken = {rows[row].group for row in np.flatnonzero(np.isnan(output.top_logprobs[:, 0])).tolist()}
        running = self._scheduler.running
        self._search.advance(
            [group for group in running if group not in broken] if broken else running, questions, all_rows, output
        )
        done = [group for group in self._scheduler.running if not group.live]
        self._runner.move_rows(self._scheduler.update())
        self._deliver(done)
        if broken:
            logger.error("the model gave no numbers for %d requests", len(broken))
            self._remove(broken, InferenceError, _BATCH_FAILED)
        return len(questions), time.monotonic() - started

    def _deliver(self, done: Rows[SequenceGroup]) -> None:
        now = time.monotonic()
        for group in itertools.chain(done, self._scheduler.running):
            if group.on_progress is not None:
                certain_ids = self._search.certain_ids(group)
                if len(certain_ids) > group.num_reported:
                    group.num_reported = len(certain_ids)
                    group.on_progress(certain_ids)
        for group in done:
            self._answer(group, group.completion(now))

    def _remove(self, groups: Collection[SequenceGroup], error: type[DragomanError], message: str) -> None:
        """Frees the rows of groups and answers these, and nobody else."""
        for group in groups:
            group.live = []
        self._runner.move_rows(self._scheduler.update())
        for group in groups:
            self._answer(group, error(message))

    def _fail_everything(self) -> None:
        # Not from the scheduler: an error may have come between leaving it and being answered.
        with self._changed:
            self._inbox.clear()
            pending, reason = tuple(self._pending), self._refusal
        for group in pending:
            self._answer(group, EngineDeadError(reason))

    def _answer(self, group: SequenceGroup, answer: Completion | DragomanError) -> None:
        """Every request ends here, exactly once."""
        with self._changed:
            self._pending.remove(group)
            self._num_unlimited -= group.is_unlimited
        if not group.future.set_running_or_notify_cancel():
            return  # cancelled: nobody listens
        if isinstance(answer, Completion):
            group.future.set_result(answer)
        else:
            group.future.set_exception(answer)
