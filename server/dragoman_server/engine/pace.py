"""How fast the engine works, as it was seen lately, and so how long things will take."""

# Of what was seen, half of the weight is that of the latest so many seconds in which it had enough to do.
_HALF_LIFE_SECONDS = 2.0
# Before so much has been seen, nothing is known: the first steps have few rows, and much to encode.
_LEAST_SECONDS = 0.1
_LEAST_STEPS = 8
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
    is shorter; its weight is this by rows. How many steps of decoding that takes is learned from requests that were
    answered.

    The rate is that of an engine that has enough to do: one whose rows are empty does less than it could.
    """

    def __init__(self) -> None:
        self._work = self._work_seconds = 0.0  # row-steps, and the time that they took
        self._num_steps_seen = 0  # by which these are known
        self._last = 0.0  # when the latest step of a busy engine ended
        self._is_busy = False  # whether it has been since then
        self._num_tokens = self._num_steps = _PRIOR_TOKENS  # of requests that were answered
        self._num_answered = 0.0  # of these, weighted alike

    def note_step(self, now: float, num_rows: int, is_busy: bool) -> None:
        """Tells that some lane has decoded a token more for so many rows.

        Args:
            now: when the step ended.
            num_rows: of the lane's batch.
            is_busy: whether the engine has enough to do until its next step.
        """
        if self._is_busy:
            seconds = max(0.0, now - self._last)
            kept = 2.0 ** (-seconds / _HALF_LIFE_SECONDS)
            self._work = self._work * kept + num_rows
            self._work_seconds = self._work_seconds * kept + seconds
            self._num_steps_seen += 1
        if self._is_busy or is_busy:
            self._last = max(self._last, now)
        self._is_busy = is_busy

    def note_answer(self, size: int, num_steps: int) -> None:
        """Tells of a request that was decoded: its tokens, as known before, and the steps that it took."""
        kept = 1.0 - _FORGOTTEN_SHARE
        self._num_answered = self._num_answered * kept + 1.0
        self._num_tokens = self._num_tokens * kept + size
        self._num_steps = self._num_steps * kept + num_steps

    def seconds_of(self, weight: float, now: float) -> float:
        """How long requests of this weight keep the engine busy; 0 where nothing is known."""
        if self._work_seconds < _LEAST_SECONDS or self._num_steps_seen < _LEAST_STEPS or not self._work:
            return 0.0
        num_doublings = min(_MAX_DOUBLINGS, max(0.0, now - self._last) / _DOUBLING_SECONDS)
        rate: float = self._work / self._work_seconds * 2.0**num_doublings
        return weight * self._num_steps / self._num_tokens / rate

    def decoding_seconds(self, size: float, num_rows: int, now: float) -> float:
        """How long a request takes from its encoding to its answer; 0 where nothing is known.

        Args:
            size: of the request.
            num_rows: that are decoded together, in all lanes. Each of its steps is one of all of them.
            now: the time.
        """
        return self.seconds_of(size * num_rows, now)

    @property
    def usual_size(self) -> float:
        """Of a request that was answered lately; 0 where there was none."""
        return self._num_tokens / self._num_answered if self._num_answered else 0.0
