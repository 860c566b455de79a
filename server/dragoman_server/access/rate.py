"""A token bucket of texts that may go into debt."""

import math
import time
from collections.abc import Callable

_BURST_SECONDS = 1.0
# Of the burst, what is kept for calls where streams wait for the bucket, too: calls cannot wait.
_SHARE_OF_STREAMS = 0.5
# What the clock, and the whole nanoseconds of a RetryInfo, may be out by.
_TOLERANCE_SECONDS = 1e-6


class Rate:
    """Holds an average of texts a second, with a burst of one second's worth.

    A call is let in while the bucket is not in debt, and takes all of its texts at once, so that a call of more texts
    than the burst gets in, too, and others wait the longer. In any window of T seconds no more than `per_second * (T +
    1)` texts are let in, and beside them those of the last call.

    The bucket is kept as one number (the generic cell rate algorithm, ITU-T I.371): when it will be full again.

    Args:
        per_second: texts; infinity is no limit.
        clock: in seconds.
    """

    def __init__(self, per_second: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._full_at = -math.inf

    @property
    def per_second(self) -> float:
        """May be changed. The part of the burst that is used stays the same part.

        Texts that are owed are paid for at the new rate where that is sooner: nobody has to wait longer than they were
        told, and with no limit they owe nothing.
        """
        return self._per_second

    @per_second.setter
    def per_second(self, per_second: float) -> None:
        now = self._clock()
        owed_seconds = self._full_at - _BURST_SECONDS - now
        if math.isinf(per_second):
            self._full_at = -math.inf
        elif owed_seconds > 0 and per_second > self._per_second:
            self._full_at = now + _BURST_SECONDS + owed_seconds * self._per_second / per_second
        self._per_second = per_second

    def seconds_until_free(self, *, for_stream: bool = False) -> float:
        """When the bucket takes a call, or a text of a stream, if nobody else comes before it; 0 is now."""
        burst_seconds = _BURST_SECONDS * (_SHARE_OF_STREAMS if for_stream else 1.0)
        seconds = self._full_at - burst_seconds - self._clock()
        return seconds if seconds > _TOLERANCE_SECONDS else 0.0

    def take(self, num_texts: int) -> None:
        """Takes the texts out, whether the bucket has as many or not."""
        self._full_at = max(self._full_at, self._clock()) + num_texts / self._per_second
