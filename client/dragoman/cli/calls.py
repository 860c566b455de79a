"""Calls to the server, several at a time, whose answers come in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_order(
    answer: Callable[[_Job], _Result], batches: Iterable[Iterable[_Job]], *, num_in_flight: int, num_ahead: int = 0
) -> Generator[_Result, None, None]:
    """The answers to all jobs.

    A batch is answered before the next one is asked for, which may take any time. Whoever leaves
    early waits for no call: closing the client ends those under way.

    Args:
        answer: makes the call for a job, on a thread. What it raises is raised here, after the answers before.
        batches: the jobs, as many at a time as are there.
        num_in_flight: how many calls are under way at a time.
        num_ahead: how many more jobs are taken while the first answer is waited for, so that one that is slow in coming
            does not hold up the others.
    """
    pool = ThreadPoolExecutor(num_in_flight)
    under_way: deque[Future[_Result]] = deque()
    try:
        for batch in batches:
            for job in batch:
                under_way.append(pool.submit(answer, job))
                if len(under_way) == num_in_flight + num_ahead:
                    yield _result(under_way.popleft())
            while under_way:
                yield _result(under_way.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(future: Future[_Result]) -> _Result:
    # In steps: Python loses a signal that comes just before a wait without end.
    while not wait([future], timeout=0.2).done:
        pass
    return future.result()
