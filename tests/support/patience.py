"""A guard against work that grows with the square of its input."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 3.0  # of the processor: some thirty times what the inputs of these tests take


@contextmanager
def ends_soon() -> Iterator[None]:
    """Holds what the block does to `PATIENCE_SECONDS` of this thread, however busy the machine is.

    Inputs have to be long enough for work of the square of their length to take several times that.
    """
    started = time.thread_time()
    yield
    assert time.thread_time() - started < PATIENCE_SECONDS
