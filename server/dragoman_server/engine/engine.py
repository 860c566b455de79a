"""Continuous batching: one thread that, step by step, lets finished rows leave and waiting requests join.

    schedule -> encode arrivals -> decode_step over all rows -> update -> deliver

The thread owns the scheduler and the runner; everybody else talks to it through `submit` and the futures it returns.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import Future
from dataclasses import dataclass

from dragoman_server.config import EngineOptions
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.sequence import Completion, FinishReason, Request, Sequence
from dragoman_server.errors import DeadlineError, DragomanError, EngineDeadError, InferenceError, QueueFullError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, for metrics. Durations are 0 for a phase that did not run."""

    num_waiting: int  # after the step
    num_running: int  # after the step
    num_cached_tokens: int  # source and target tokens of the running, after the step: what the KV pool holds
    num_encoded_tokens: int  # without padding
    num_decoded: int  # rows of the decode step, each of which gained a token
    encode_seconds: float
    decode_seconds: float
    queue_seconds: tuple[float, ...]  # how long each sequence that was encoded had waited
    first_token_seconds: tuple[float, ...]  # from arrival, of each sequence that got its first token
    num_cancelled: int  # dropped because their callers left
    num_expired: int  # dropped because their deadlines passed


class Engine:
    """Translates token ids into token ids.

    Args:
        runner: the model; only the engine's thread calls it once `start` was called.
        decoder_start_token_id: what every row is fed first.
        eos_token_id: what ends a row.
        on_step: called on the engine's thread after every step; must be quick.
        on_death: called on the engine's thread when an error ends it, after all callers were answered.
    """

    def __init__(
        self,
        runner: Runner,
        decoder_start_token_id: int,
        eos_token_id: int,
        options: EngineOptions,
        on_step: Callable[[StepReport], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._decoder_start_token_id = decoder_start_token_id
        self._eos_token_id = eos_token_id
        self._options = options
        self._on_step, self._on_death = on_step, on_death
        self._scheduler = Scheduler(options.max_running, options.max_encoder_tokens)
        self._changed = threading.Condition()  # guards the six below
        self._inbox: list[Sequence] = []
        self._pending: set[Sequence] = set()  # submitted and not yet answered
        self._is_stopping = False
        self._next_check = math.inf  # no sequence is abandoned before this time; -inf once a caller has left
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
        """Sequences submitted and not yet answered."""
        return len(self._pending)

    @property
    def stalled_seconds(self) -> float:
        """How long there has been work and no step was finished: the engine's heartbeat, upside down."""
        return time.monotonic() - self._last_progress if self._pending else 0.0

    def submit(self, requests: Rows[Request]) -> list["Future[Completion]"]:
        """Queues all requests or none; never blocks. Cancelling a future withdraws its request.

        Raises:
            QueueFullError: more would wait than `max_waiting`.
            EngineDeadError: the engine has ended or was stopped.
        """
        arrived = time.monotonic()
        sequences = [Sequence(request, arrived) for request in requests]
        with self._changed:
            if self._refusal:
                raise EngineDeadError(self._refusal)
            num_waiting = len(self._pending) - self._scheduler.num_running
            if num_waiting + len(sequences) > self._options.max_waiting:
                raise QueueFullError(
                    f"{num_waiting} segments are waiting and {len(sequences)} more would exceed the limit of "
                    f"{self._options.max_waiting}",
                    retry_after_seconds=1.0,
                )
            if not self._pending:
                self._last_progress = arrived  # until now there was nothing to do
            self._pending.update(sequences)
            self._next_check = min([self._next_check, *(request.deadline for request in requests)])
            self._inbox.extend(sequences)
            self._changed.notify()
        for sequence in sequences:
            sequence.future.add_done_callback(self._note_cancellation)
        return [sequence.future for sequence in sequences]

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
        decoded, decode_seconds = self._decode()
        self._last_progress = now = time.monotonic()
        self._on_step(
            StepReport(
                num_waiting=self._scheduler.num_waiting,
                num_running=self._scheduler.num_running,
                num_cached_tokens=sum(s.num_source_tokens + s.num_target_tokens for s in self._scheduler.running),
                num_encoded_tokens=sum(s.num_source_tokens for s in encoded),
                num_decoded=len(decoded),
                encode_seconds=encode_seconds,
                decode_seconds=decode_seconds,
                queue_seconds=tuple(s.joined - s.arrived for s in encoded),
                first_token_seconds=tuple(now - s.arrived for s in decoded if s.num_target_tokens == 1),
                num_cancelled=num_cancelled,
                num_expired=num_expired,
            )
        )

    def _drop_abandoned(self) -> tuple[int, int]:
        """Forgets what is cancelled or past its deadline, wherever it is; returns how many of each."""
        now = time.monotonic()
        with self._changed:
            if now < self._next_check:
                return 0, 0  # asking thousands of waiting sequences would take as long as the step
            # What has come in since this step began is not looked at, so there must be another look at the next.
            self._next_check = -math.inf if self._inbox else math.inf
        scheduled = (*self._scheduler.waiting, *self._scheduler.running)
        abandoned = {s for s in scheduled if s.is_abandoned(now)}
        next_deadline = min((s.request.deadline for s in scheduled if s not in abandoned), default=math.inf)
        with self._changed:  # a caller may have left meanwhile
            self._next_check = min(self._next_check, next_deadline)
        if abandoned:
            self._scheduler.remove_waiting(abandoned)
            self._runner.move_rows(self._scheduler.remove_running(abandoned))
            for sequence in abandoned:
                self._answer(sequence, DeadlineError("the deadline passed before the translation was finished"))
        num_cancelled = sum(sequence.future.cancelled() for sequence in abandoned)
        return num_cancelled, len(abandoned) - num_cancelled

    def _encode(self, arrivals: Rows[Sequence]) -> tuple[Rows[Sequence], float]:
        """Encodes the arrivals, which hold the last rows; returns those encoded and the seconds it took."""
        if not arrivals:
            return (), 0.0
        started = time.monotonic()
        first_row = self._scheduler.num_running - len(arrivals)
        try:
            self._runner.encode([sequence.request.source_ids for sequence in arrivals], first_row)
        except Exception as error:
            self._fail(arrivals, error)
            return (), 0.0
        seconds = time.monotonic() - started
        for sequence in arrivals:
            sequence.joined, sequence.encode_seconds = started, seconds
        return arrivals, seconds

    def _decode(self) -> tuple[Rows[Sequence], float]:
        """One token more for every running sequence, and an answer for the finished ones.

        Returns the sequences that gained a token and the seconds it took.
        """
        rows = self._scheduler.running
        if not rows:
            return (), 0.0
        started = time.monotonic()
        try:
            output = self._runner.decode_step(
                [s.token_ids[-1] if s.token_ids else self._decoder_start_token_id for s in rows],
                [s.num_target_tokens for s in rows],
            )
        except Exception as error:
            self._fail(rows, error)
            return (), 0.0
        now = time.monotonic()
        finished: dict[Sequence, FinishReason] = {}
        for sequence, token_id, logprob in zip(
            rows, output.top_ids[:, 0].tolist(), output.top_logprobs[:, 0].tolist(), strict=True
        ):
            if finish_reason := sequence.append(token_id, logprob, self._eos_token_id):
                finished[sequence] = finish_reason
        self._runner.move_rows(self._scheduler.remove_running(finished.keys()))
        for sequence, finish_reason in finished.items():
            self._answer(sequence, sequence.completion(finish_reason, now))
        return rows, now - started

    def _fail(self, sequences: Rows[Sequence], cause: Exception) -> None:
        """A failed batch answers all its members and nobody else."""
        logger.error("inference failed for %d sequences", len(sequences), exc_info=cause)
        failed = set(sequences)
        self._runner.move_rows(self._scheduler.remove_running(failed))
        for sequence in failed:
            self._answer(sequence, InferenceError("the model could not be run on this batch"))

    def _fail_everything(self) -> None:
        # Not from the scheduler: an error may have come between leaving it and being answered.
        with self._changed:
            self._inbox.clear()
            pending, reason = tuple(self._pending), self._refusal
        for sequence in pending:
            self._answer(sequence, EngineDeadError(reason))

    def _answer(self, sequence: Sequence, answer: Completion | DragomanError) -> None:
        """Every sequence ends here, exactly once."""
        with self._changed:
            self._pending.remove(sequence)
        if not sequence.future.set_running_or_notify_cancel():
            return  # cancelled: nobody listens
        if isinstance(answer, Completion):
            sequence.future.set_result(answer)
        else:
            sequence.future.set_exception(answer)
