"""How far a process and a fleet get, simulated from the costs of a sentence. No clock, no model of translation.

A process has one lane for each core, and an event loop. A lane computes a step on a core without the interpreter's
lock, then does the step's Python with it; the event loop needs a core and the lock for every sentence. Threads wait for
the lock and for cores in the order in which they come.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_ROWS_PER_LANE = 64
_NUM_STEPS = 200  # that a lane alone would do in the time that is simulated
_SPREAD = (0.5, 1.5)  # of the times of a step around their mean
_ROOM = 0.7  # of the throughput is planned for: above it, queues grow long
_WORTH = 0.9  # of what the first core of a process gives
_MOST_CORES = 64


@dataclass(frozen=True, slots=True)
class Sentence:
    """What an average sentence costs in a lane, in CPU time."""

    core_seconds: float
    """All of it."""

    lock_seconds: float
    """Of that, in Python."""

    num_tokens: float
    """Of its translation: as many steps."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What an average sentence costs a server."""

    lane: Sentence
    """With the lanes full."""

    loop_seconds: float
    """CPU time of the event loop: parsing, answering, tokens to text."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What a process with always enough to do gives."""

    per_second: float
    """Sentences."""

    cores_busy: float
    """Share of the time of all cores."""

    lock_busy: float
    """Share of the time in which a thread has the lock."""

    @property
    def limit(self) -> str:
        """What there is too little of."""
        return "lock" if self.lock_busy > self.cores_busy else "cores"


class _Clock:
    """The time of the simulation, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Does it so much later."""
        self._num_events += 1
        heapq.heappush(self._events, (self.now + seconds, self._num_events, do))

    def run(self, end: float) -> None:
        """Until then."""
        while self._events and self._events[0][0] <= end:
            self.now, _, do = heapq.heappop(self._events)
            do()


class _Resource:
    """Some of a kind, of which each thread takes one for a while, first come, first served."""

    def __init__(self, number: int) -> None:
        self.num_free = number
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, do: Callable[[], None]) -> None:
        """Does it when there is one."""
        if self.num_free:
            self.num_free -= 1
            do()
        else:
            self._waiting.append(do)

    def give_back(self) -> None:
        """To be called for each that was taken."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self.num_free += 1


class _Process:
    """One with so many cores and lanes, whose callers always have enough for it."""

    def __init__(self, costs: Costs, num_cores: int) -> None:
        self.num_sentences, self.core_seconds, self.lock_seconds = 0.0, 0.0, 0.0
        self.clock, self._rng = _Clock(), random.Random(0)
        self._costs, self._num_cores = costs, num_cores
        self._cores, self._lock = _Resource(num_cores), _Resource(1)
        self._per_step = _ROWS_PER_LANE / costs.lane.num_tokens  # sentences that a step of a lane finishes
        self._num_unanswered = 0  # steps whose sentences the loop has to answer, and to replace by others
        self._idle: deque[Callable[[], None]] = deque()  # lanes that wait for those
        for lane in range(num_cores):
            # Not all at once, as they would be at no other time.
            self.clock.after(lane * self._computing / num_cores, self._compute)

    @property
    def _computing(self) -> float:
        return self._per_step * (self._costs.lane.core_seconds - self._costs.lane.lock_seconds)

    def _compute(self) -> None:
        self._on_core(self._computing, lambda: self._with_lock(self._costs.lane.lock_seconds, self._finish_step))

    def _finish_step(self) -> None:
        self._num_unanswered += 1
        if self._num_unanswered == 1:
            self._answer()
        # Callers are so many that lanes go on until the loop is as many steps behind as there are lanes.
        if self._num_unanswered > self._num_cores:
            self._idle.append(self._compute)
        else:
            self._compute()

    def _answer(self) -> None:
        """All that waits, in one turn of the lock."""
        number = self._num_unanswered

        def done() -> None:
            self.num_sentences += number * self._per_step
            self._num_unanswered -= number
            if self._num_unanswered:
                self._answer()
            idle, self._idle = self._idle, deque()
            for compute in idle:
                compute()

        self._with_lock(number * self._costs.loop_seconds, done)

    def _with_lock(self, seconds_per_sentence: float, then: Callable[[], None]) -> None:
        seconds = self._per_step * seconds_per_sentence

        def locked() -> None:
            began = self.clock.now

            def done() -> None:
                self._lock.give_back()
                self.lock_seconds += self.clock.now - began
                then()

            self._on_core(seconds, done)

        self._lock.take(locked)

    def _on_core(self, mean_seconds: float, then: Callable[[], None]) -> None:
        seconds = mean_seconds * self._rng.uniform(*_SPREAD)

        def done() -> None:
            self._cores.give_back()
            self.core_seconds += seconds
            then()

        self._cores.take(lambda: self.clock.after(seconds, done))


def throughput(costs: Costs, num_cores: int) -> Throughput:
    """Of a process with so many cores and lanes, whose callers always have enough for it."""
    process = _Process(costs, num_cores)
    step = _ROWS_PER_LANE / costs.lane.num_tokens * (costs.lane.core_seconds + costs.loop_seconds)
    end = _NUM_STEPS * step
    process.clock.run(end)
    return Throughput(process.num_sentences / end, process.core_seconds / (num_cores * end), process.lock_seconds / end)


def cores_worth_having(costs: Costs) -> int:
    """How many cores a process can have that give, each, nearly what one alone gives."""
    alone = throughput(costs, 1).per_second
    best = 1
    for num_cores in range(2, _MOST_CORES + 1):
        if throughput(costs, num_cores).per_second < _WORTH * num_cores * alone:
            break
        best = num_cores
    return best


def num_processes(costs: Costs, num_cores: int, rate: float) -> int:
    """How many processes of so many cores translate so many sentences a second, with room for the hours with more."""
    return max(1, math.ceil(rate / (_ROOM * throughput(costs, num_cores).per_second)))
