"""How the process ends where something in it hangs that nothing can end, such as a run of a graph."""

import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn

logger = logging.getLogger(__name__)

# Of the thread that loads a model, which may hang in a graph.
LOADING_THREAD_NAME = "dragoman-loading"


def leave(code: str | int | None) -> NoReturn:
    """As `sys.exit`; at once where a thread was left behind, which might crash while libraries are taken down."""
    if any(thread.name == LOADING_THREAD_NAME for thread in threading.enumerate()):
        _end(int(code or 0))
    sys.exit(code)


class LastResort:
    """Ends the process when what should end it does not."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float, code: int) -> None:
        """Has the process end with this code so much later, in place of an earlier time, unless `close` comes first."""
        self.close()
        self._timer = threading.Timer(seconds, self._give_up, (code,))
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Lets the process end by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self, code: int) -> None:
        logger.critical("the server hangs while it stops: the process ends at once")
        _end(code)


def _end(code: int) -> NoReturn:
    logging.shutdown()  # writes what waits to be written; none of the server's handlers takes long
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
