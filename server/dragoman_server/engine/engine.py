"""Continuous batching: requests come in, are dealt to lanes, and are answered through futures.

    submit -> wait -> deal to a lane -> steps of that lane -> answer

The threads are those of the device, which calls `step` for a lane that has work.
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

from dragoman_server.config import EngineOptions
from dragoman_server.engine.admission import Admission
from dragoman_server.engine.deadlines import has_passed
from dragoman_server.engine.departures import Departures
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.engine.lane import Lane, LaneStep
from dragoman_server.engine.room import Usage
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.scheduler import Scheduler
from dragoman_server.engine.search import Search
from dragoman_server.engine.sequence import Completion, Outline, Request, SequenceGroup
from dragoman_server.errors import DeadlineError, DragomanError, EngineDeadError

logger = logging.getLogger(__name__)


class StepReport(NamedTuple):
    """What one step of a lane did, for metrics, and how the engine stands after it."""

    step: LaneStep
    num_cached_tokens: int  # in all lanes
    num_waiting: int  # requests
    num_running: int  # requests, in all lanes
    num_cancelled: int  # dropped because their callers left
    num_expired: int  # dropped because their deadlines passed, or would have passed too soon
    num_expired_waiting: int = 0  # of these, before they were encoded


class Device(Protocol):
    """Threads that run lanes: what the engine needs of them."""

    def attach(self, stepper: "Engine") -> None:
        """Runs the stepper's lanes from now on."""

    def detach(self, stepper: "Engine") -> None:
        """Returns when no lane of the stepper is run any more."""

    def wake(self, stepper: "Engine", lane: int) -> None:
        """Tells that a lane of the stepper has work."""

    def num_others(self, stepper: "Engine") -> Rows[int]:
        """How many other steppers have work, by lane."""


class Engine:
    """Translates token ids into token ids.

    Args:
        runners: the model, once for each lane of the device; each is only called by its lane once `start` was called.
        search: which tokens come next.
        options: how much is done at a time.
        device: runs the lanes.
        budget: memory for keys and values, which all engines share; None is `max_kv_bytes` of the options for this one.
        on_step: called by a lane after every step; must be quick, and may be called by several lanes at once.
        on_death: called by a lane when an error ends the engine, after all callers were answered.
    """

    def __init__(
        self,
        runners: Rows[Runner],
        search: Search,
        options: EngineOptions,
        device: Device,
        budget: KvBudget | None = None,
        on_step: Callable[[StepReport], None] = lambda _: None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self._options = options
        self._device = device
        self._budget = budget or KvBudget(options.max_kv_bytes or math.inf)
        self._kv_bytes_per_token = runners[0].kv_bytes_per_token
        self._num_reserved_tokens = 0  # as the budget knows
        self._on_step, self._on_death = on_step, on_death
        self._lock = threading.Lock()  # guards all below but the contents of the lanes' rows
        self._scheduler = Scheduler(len(runners), options.max_running, options.max_encoder_tokens)
        self._lanes = [
            Lane(schedule, self._lock, runner, search, self._answer)
            for schedule, runner in zip(self._scheduler.lanes, runners, strict=True)
        ]
        self._pending: set[SequenceGroup] = set()  # submitted and not yet answered
        self._num_pending_rows = 0  # of these
        self._departures = Departures(self._pending.__contains__)
        limits = Usage(options.max_waiting, options.max_waiting_rows, options.max_waiting_tokens)
        self._admission = Admission(self._scheduler, limits, len(runners) * options.max_running)
        self._late: list[SequenceGroup] = []  # left the queue, to be answered
        self._num_late = 0  # that no step has reported yet
        self._num_cached_tokens = [0] * len(runners)  # by lane
        self._last_progress = [0.0] * len(runners)  # by lane; where it has work, since when it has or its latest step
        self._refusal = "the engine has not been started"  # why it takes no requests; empty when it does

    # -- any thread ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Takes requests from now on."""
        with self._lock:
            self._refusal = ""
        self._device.attach(self)

    @property
    def is_alive(self) -> bool:
        return not self._refusal

    @property
    def num_pending(self) -> int:
        """Requests submitted and not yet answered."""
        return len(self._pending)

    @property
    def num_pending_rows(self) -> int:
        """The rows that these take: a glance, without a lock."""
        return self._num_pending_rows

    @property
    def stalled_seconds(self) -> float:
        """How long a lane has had work and finished no step, the worst of them: the engine's heartbeat, upside down."""
        now = time.monotonic()
        lanes = zip(self._lanes, self._last_progress, strict=False)  # of a stopped engine there are none
        return max((now - since if lane.has_work else 0.0 for lane, since in lanes), default=0.0)

    def check(self, outline: Outline) -> None:
        """Refuses a call before its texts are looked at, as if its requests were as long as those of others lately.

        Raises:
            QueueFullError: there is no room for so many.
            NotInTimeError: they can hardly be finished by the deadline.
        """
        with self._lock:
            self._admission.check_early(outline)

    def seconds(self, outline: Outline) -> float:
        """How long the requests of a call would take, were they as long as those of others lately; 0: unknown."""
        with self._lock:
            return self._admission.seconds(outline)

    @contextmanager
    def expecting(self, outline: Outline) -> Iterator[None]:
        """A call that `check` has let pass is made ready, and counts when the same caller asks again."""
        with self._lock:
            self._admission.expect(outline)
        try:
            yield
        finally:
            with self._lock:
                self._admission.expect(outline, -1)

    def submit(
        self,
        requests: Rows[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list["Future[Completion]"]:
        """Queues all requests or none; never blocks. Cancelling a future withdraws its request.

        Args:
            requests: each is answered by the future at the same place.
            caller: the call. Requests of the same call (by equality) take turns with those of others of the same
                identity. None: a call of its own.
            on_progress: called by a lane with the index of a request and the ids, without end-of-sentence, that its
                best hypothesis is now certain to begin with; must be quick and not raise.
            identity: who calls: takes turns with others, and has a share of the queue. None: nobody else.
            is_unlimited: whether these, whose caller limits them, are refused for no limit and no deadline, and take no
                room from others.

        Raises:
            QueueFullError: more would wait than may.
            NotInTimeError: the requests cannot be finished by their deadline, as far as can be known.
            EngineDeadError: the engine has ended or was stopped.
            ValueError: a request needs more rows than there are.
        """
        arrived = time.monotonic()
        caller = object() if caller is None else caller
        groups = [
            SequenceGroup(
                request, arrived, caller, identity, partial(on_progress, index) if on_progress else None, is_unlimited
            )
            for index, request in enumerate(requests)
        ]
        num_rows = max((request.options.num_rows for request in requests), default=0)
        if num_rows > self._options.max_running:
            raise ValueError(f"a request needs {num_rows} rows, max_running is {self._options.max_running}")
        with self._lock:
            if self._refusal:
                raise EngineDeadError(self._refusal)
            if groups and not is_unlimited:
                self._admission.check(groups)
            self._pending.update(groups)
            self._num_pending_rows += sum(group.request.options.num_rows for group in groups)
            self._departures.expect(groups)
            # Who is not told of progress sees nothing of the order. Similar lengths are encoded with less padding, and
            # few rows are left alone at the end where the longest begin.
            by_length = sorted(groups, key=lambda group: -group.num_source_tokens)
            self._scheduler.add(groups if on_progress else by_length)
            dealt = self._deal()
        self._tell(dealt)
        for group in groups:
            group.future.add_done_callback(partial(self._note_cancellation, weakref.ref(group)))
        return [group.future for group in groups]

    def _note_cancellation(self, about: "weakref.ref[SequenceGroup]", future: "Future[Completion]") -> None:
        if future.cancelled() and (group := about()) is not None:
            with self._lock:
                self._departures.cancel(group)

    def stop(self) -> None:
        """Ends after the current steps; requests not finished by then get an EngineDeadError."""
        with self._lock:
            self._refusal = self._refusal or "the engine was stopped"
        self._device.detach(self)
        with self._budget.lock:
            self._budget.reserve(self, 0)
        self._lanes = []  # and with them the memory of the runners: callers may keep futures, which refer to the engine
        self._fail_everything()

    def give_back_memory(self) -> None:
        """Gives back what keys and values have grown to, in lanes without work."""
        with self._lock:  # a lane touches its runner only between joining and leaving, both behind this lock
            for lane in self._lanes:
                if not lane.has_work:
                    lane.give_back_memory()

    # -- lanes -----------------------------------------------------------------------------------------------------

    def has_work(self, lane: int) -> bool:
        """Whether a step of the lane would do anything."""
        return self._lanes[lane].has_work and not self._refusal

    def step(self, lane: int, is_alone: bool) -> None:
        """One step of a lane. Never raises: an error here is the end of the engine.

        Args:
            lane: which.
            is_alone: whether no other engine computes in another lane.
        """
        try:
            num_cancelled, num_expired, num_expired_waiting = self._drop_abandoned()
            is_alone = is_alone and not any(other.has_work for i, other in enumerate(self._lanes) if i != lane)
            step = self._lanes[lane].step(is_alone)
            with self._lock:
                self._last_progress[lane] = now = time.monotonic()
                self._num_cached_tokens[lane] = step.num_cached_tokens
                dealt = self._deal()
                self._admission.note_step(now, step.num_decoded)
                num_late, self._num_late = self._num_late, 0
                report = StepReport(
                    step,
                    sum(self._num_cached_tokens),
                    self._scheduler.num_waiting,
                    self._scheduler.num_running,
                    num_cancelled,
                    num_expired + num_late,
                    num_expired_waiting + num_late,
                )
            self._tell(dealt - {lane})
            self._on_step(report)
        except BaseException:
            logger.critical("the engine has died", exc_info=True)
            with self._lock:
                is_first = self.is_alive
                self._refusal = self._refusal or "the engine has died"
            if is_first:
                self._fail_everything()
                self._on_death()

    def _deal(self) -> set[int]:
        """Lets the scheduler deal; returns the lanes that were given any. The lock is held."""
        if not self._scheduler.num_waiting and self._scheduler.num_reserved_tokens == self._num_reserved_tokens:
            return set()  # as after most steps
        with self._budget.lock:
            idle = {i for i, lane in enumerate(self._lanes) if not lane.has_work}
            dealt = set[int]()
            if self._scheduler.num_waiting:
                self._scheduler.max_kv_tokens = self._budget.left_to(self) / self._kv_bytes_per_token
                dealt = self._scheduler.deal(self._device.num_others(self), self._is_late)
            self._num_reserved_tokens = self._scheduler.num_reserved_tokens
            self._budget.reserve(self, self._num_reserved_tokens * self._kv_bytes_per_token)
        for lane in idle & dealt:
            self._last_progress[lane] = time.monotonic()  # until now there was nothing to do
        return dealt

    def _is_late(self, group: SequenceGroup) -> bool:
        """Whether it is not worth encoding any more; then it is noted, to be answered."""
        if not self._admission.is_late(group.request):
            return False
        self._late.append(group)
        self._num_late += 1
        return True

    def _tell(self, lanes: set[int]) -> None:
        """Tells lanes that they were dealt something, and callers that they come too late."""
        for lane in lanes:
            self._device.wake(self, lane)
        if self._late:
            with self._lock:
                late, self._late = self._late, []
            for group in late:
                self._answer(group, DeadlineError("the deadline would pass before the translation is finished"))

    def _drop_abandoned(self) -> tuple[int, int, int]:
        """Forgets what is cancelled or past its deadline; returns how many of each, and of the latter of those waiting.

        What runs is left to its lane, which drops it at its next step.
        """
        with self._lock:
            now = time.monotonic()
            abandoned = self._departures.take(now)
            if not abandoned:
                return 0, 0, 0
            withdrawn = self._scheduler.withdraw(abandoned)
            for group in abandoned:
                if group not in withdrawn:
                    self._lanes[group.lane].departed.append(group)
            dealt = self._deal()
        self._tell(dealt)
        for group in withdrawn:
            self._answer(group, DeadlineError("the deadline passed before the translation was begun"))
        expired = [group for group in abandoned if has_passed(group.request.deadline, group.arrived, now)]
        num_waiting = sum(group in withdrawn for group in expired)
        return len(abandoned) - len(expired), len(expired), num_waiting

    def _fail_everything(self) -> None:
        # Not from the scheduler: an error may have come between leaving it and being answered.
        with self._lock:
            pending, reason = tuple(self._pending), self._refusal
        for group in pending:
            self._answer(group, EngineDeadError(reason))

    def _answer(self, group: SequenceGroup, answer: Completion | DragomanError) -> None:
        """Every request ends here, exactly once."""
        with self._lock:
            if group not in self._pending:
                return  # the engine has died meanwhile, in another lane
            self._pending.remove(group)
            self._num_pending_rows -= group.request.options.num_rows
            if isinstance(answer, Completion):
                self._admission.note_answer(group.request, answer)
        if not group.future.set_running_or_notify_cancel():
            return  # cancelled: nobody listens
        if isinstance(answer, Completion):
            group.future.set_result(answer)
        else:
            group.future.set_exception(answer)
