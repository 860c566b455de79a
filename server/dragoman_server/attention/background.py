"""A thread that computes while nobody else wants the processor."""

import logging
import os
import sys
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundThread:
    """Does one piece of work at a time, while no other thread of the process or of its container wants the processor.

    For what computes outside Python. Who is kept from running must not hold Python's lock, for which all others wait.
    So this thread runs hardly any Python, and above all does not wake anybody up while it has the lock, since who wakes
    up takes its processor: it is called and reports through pipes, whose reads and writes let the lock go.
    """

    def __init__(self) -> None:
        self._work: Callable[[], None]
        self._error: BaseException | None
        (self._calls, self._call), (self._reports, self._report) = os.pipe(), os.pipe()
        self._thread = threading.Thread(target=self._loop, name="dragoman-background", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], None]) -> None:
        """Returns when the work is done, and raises what it raises. For one caller at a time."""
        self._work, self._error = work, None
        os.write(self._call, b"1")
        os.read(self._reports, 1)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the thread; nothing may run."""
        os.close(self._call)
        self._thread.join()
        for pipe in (self._calls, self._reports, self._report):
            os.close(pipe)

    def _loop(self) -> None:
        _stand_back()
        while os.read(self._calls, 1):
            try:
                self._work()
            except BaseException as error:
                self._error = error
            os.write(self._report, b"1")


def _stand_back() -> None:
    if sys.platform != "linux":  # the others have policies of processes alone
        return
    try:
        # A low nice value is not enough: beside long runs the slowest translations took twice as long.
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:  # some sandboxes refuse it
        logger.warning("attention is computed at full priority, as the system refuses to lower it: %s", error)
