"""Runs of a session while nobody else wants the processor."""

import contextlib
import logging
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator

import onnxruntime as ort

from dragoman_server.runtime.memory import shrinking_run
from dragoman_server.runtime.session import flush_denormals

logger = logging.getLogger(__name__)

Run = Callable[[ort.RunOptions], None]
"""Runs a session; may be called again after a run that was terminated."""

# Of one processor. Runs that others leave less are owed it, and are not waited for any longer than this.
_LEAST_SHARE = 0.1
_PATIENCE_SECONDS = 2.0
# What is not worth another thread, whose memory the allocator keeps apart.
_LEAST_DEBT_SECONDS = 0.01


class Background:
    """Runs a session while no other thread of the process, or of its container, wants the processor.

    Where they leave less than a tenth of one, the difference is computed on the caller's thread: runs are slow then,
    not lost. The threads of several models may call it. Their runs are done one at a time, in the order of their calls,
    so that together they are owed no more than that tenth.
    """

    def __init__(self) -> None:
        self._idle = _IdleThread()
        self._owed_seconds = 0.0  # of computing
        self._turn = threading.Condition()  # guards the next two
        self._num_called = self._num_ended = 0

    def run(self, run: Run) -> None:
        """Returns when the run is done, and raises what it raises."""
        with self._in_turn():
            if self._owed_seconds < _LEAST_DEBT_SECONDS and self._run_idle(run):
                return
            before = time.thread_time()
            try:
                run(shrinking_run())
            finally:
                self._owed_seconds -= time.thread_time() - before

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Waits for all who called before; with a lock, a thread with many runs would take it again and again."""
        with self._turn:
            number = self._num_called
            self._num_called += 1
            self._turn.wait_for(lambda: self._num_ended == number)
        try:
            yield
        finally:
            with self._turn:
                self._num_ended += 1
                self._turn.notify_all()

    def _run_idle(self, run: Run) -> bool:
        """Whether it was done; where it found no processor, it was terminated."""
        options, begun, used = shrinking_run(), time.monotonic(), self._idle.cpu_seconds()
        self._idle.begin(run, options)
        while not self._idle.is_done(_PATIENCE_SECONDS):
            if self._idle.cpu_seconds() - used < _LEAST_SHARE * (time.monotonic() - begun):
                options.terminate = True
                break
        try:
            self._idle.end()
        except Exception:
            if not options.terminate:
                raise
            return False
        finally:
            due = _LEAST_SHARE * (time.monotonic() - begun)
            self._owed_seconds = max(0.0, due - (self._idle.cpu_seconds() - used))
        return True

    def close(self) -> None:
        """Ends the thread; nothing may run."""
        self._idle.close()


class _IdleThread:
    """Does one run at a time, while nobody else wants the processor.

    Who is kept from running must not hold Python's lock, for which all others wait. So this thread runs hardly any
    Python, and above all does not wake anybody up while it has the lock, since who wakes up takes its processor: it is
    called and reports through pipes, whose reads and writes let the lock go.
    """

    def __init__(self) -> None:
        self._run: Run
        self._options: ort.RunOptions
        self._error: BaseException | None
        (self._calls, self._call), (self._reports, self._report) = os.pipe(), os.pipe()
        self._thread = threading.Thread(target=self._loop, name="dragoman-background", daemon=True)
        self._thread.start()

    def begin(self, run: Run, options: ort.RunOptions) -> None:
        self._run, self._options, self._error = run, options, None
        os.write(self._call, b"1")

    def cpu_seconds(self) -> float:
        """That the thread has computed; infinity where the system does not tell, which makes it never look starved."""
        if sys.platform != "linux":
            return math.inf
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def is_done(self, seconds: float) -> bool:
        """Waits so long for the run to end."""
        return bool(select.select([self._reports], [], [], seconds)[0])

    def end(self) -> None:
        """Waits for the run to end, and raises what it raised. Keeps nothing of it: a run refers to its session."""
        os.read(self._reports, 1)
        error = self._error
        del self._run, self._options, self._error
        try:
            if error is not None:
                raise error
        finally:
            del error  # whose traceback refers to this frame

    def close(self) -> None:
        os.close(self._call)
        self._thread.join()
        for pipe in (self._calls, self._reports, self._report):
            os.close(pipe)

    def _loop(self) -> None:
        _stand_back()
        flush_denormals()
        while os.read(self._calls, 1):
            try:
                self._run(self._options)
            except BaseException as error:
                self._error = error
            os.write(self._report, b"1")


def _stand_back() -> None:
    if sys.platform != "linux":  # others have policies of processes alone
        return
    try:
        # A low nice value is not enough: beside long runs the slowest translations took twice as long.
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:  # some sandboxes refuse it
        logger.warning("attention is computed at full priority, as the system refuses to lower it: %s", error)
