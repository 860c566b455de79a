"""How fast the engine works, as it was seen lately, and so how long things will take."""

# Of what was seen, half of the weight is that of the latest so many seconds in which the queue was not empty.
_HALF_LIFE_SECONDS = 2.0
# Before so much has been seen, nothing is known.
_LEAST_SECONDS = 0.1
# An estimate that is not renewed grows by the factor 2 in so many seconds, up to where it refuses nothing: other models
# may have become idle, and whom an old estimate refuses cannot renew it.
_DOUBLING_SECONDS = 2.0
_MAX_DOUBLINGS = 40.0
# Each answered request takes this share of their weight from all before.
_FORGOTTEN_SHARE = 0.01
# Where no request was answered yet: a target token for each source token, with the weight of so many.
_PRIOR_TOKENS = 100.0


class Pace:
    """Exponentially weighted averages. Times are on a clock that never goes back, in seconds. Not thread-safe.

    The size of a request is known before it is decoded: the tokens of its source, or of its longest target where that
    is shorter; its weight is this by rows. How many steps of decoding that takes is learned from requests that
    were answered.

    The rate is that of an engine with a queue, whose rows are full: one that waits for work does less than it could.
    """

    def __init__(self) -> None:
        self._work = self._work_seconds = 0.0  # row-steps, and the time that they took
        self._last = 0.0  # when the latest step with a queue ended
        self._is_saturated = False  # whether there has been a queue since then
        self._num_tokens = self._num_steps = _PRIOR_TOKENS  # of requests that were answered
        self._num_answered = 0.0  # of these, weighted alike
        self._step_seconds = 0.0  # of these steps, all together
        self._num_timed_steps = 0.0

    def note_step(self, now: float, num_rows: int, is_saturated: bool) -> None:
        """Tells that some lane has decoded a token more for so many rows.

        Args:
            now: when the step ended.
            num_rows: of the lane's batch.
            is_saturated: whether requests wait that found no room.
        """
        if self._is_saturated and (seconds := now - self._last) > 0:
            kept = 2.0 ** (-seconds / _HALF_LIFE_SECONDS)
            self._work = self._work * kept + num_rows
            self._work_seconds = self._work_seconds * kept + seconds
        elif self._is_saturated:
            self._work += num_rows
        if self._is_saturated or is_saturated:
            self._last = max(self._last, now)
        self._is_saturated = is_saturated

    def note_answer(self, size: int, num_steps: int, seconds: float) -> None:
        """Tells of a request that was decoded.

        Args:
            size: its tokens, as known before.
            num_steps: that it took.
            seconds: from the beginning of its encoding to its answer.
        """
        kept = 1.0 - _FORGOTTEN_SHARE
        self._num_answered = self._num_answered * kept + 1.0
        self._num_tokens = self._num_tokens * kept + size
        self._num_steps = self._num_steps * kept + num_steps
        self._num_timed_steps = self._num_timed_steps * kept + num_steps
        self._step_seconds = self._step_seconds * kept + seconds

    def seconds_of(self, weight: float, now: float) -> float:
        """How long requests of this weight keep the engine busy; 0 where nothing is known."""
        if self._work_seconds < _LEAST_SECONDS or not self._work:
            return 0.0
        num_doublings = min(_MAX_DOUBLINGS, max(0.0, now - self._last) / _DOUBLING_SECONDS)
        rate: float = self._work / self._work_seconds * 2.0**num_doublings
        return weight * self._steps_per_token / rate

    def decoding_seconds(self, size: float) -> float:
        """How long a request of this size takes from its encoding to its answer; 0 where nothing is known."""
        if not self._num_timed_steps:
            return 0.0
        return size * self._steps_per_token * self._step_seconds / self._num_timed_steps

    @property
    def usual_size(self) -> float:
        """Of a request that was answered lately; 0 where there was none."""
        return self._num_tokens / self._num_answered if self._num_answered else 0.0

    @property
    def _steps_per_token(self) -> float:
        return self._num_steps / self._num_tokens
