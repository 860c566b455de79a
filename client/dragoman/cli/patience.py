"""Answers for a whole file, however long its servers are away in between."""

import threading
import time
from collections.abc import Callable, Sequence

import typer

from dragoman.cli.answers import describe
from dragoman.cli.lines import Input
from dragoman.errors import (
    DeadlineExceededError,
    DragomanError,
    InternalError,
    InvalidArgumentError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnavailableError,
)
from dragoman.types import Translation

PATIENCE_SECONDS = 600.0
"""How long a line is asked for in vain."""

_PAUSE_SECONDS = 1.0
_SECONDS_PER_REMARK = 60.0

Answer = Translation | DragomanError


class Patient:
    """Asks again for what had no answer because of its servers, until there is one; may be called by several threads.

    What it returns depends on the line alone: a translation, or the reason why that line has none.

    Args:
        ask: gives the results of some lines, in order.

    Attributes:
        is_over: to be set when nobody waits any more.
    """

    def __init__(self, ask: Callable[[list[Input]], Sequence[Answer]]) -> None:
        self.is_over = threading.Event()
        self._ask = ask
        self._remarked_at = -_SECONDS_PER_REMARK

    def __call__(self, lines: list[Input]) -> list[Answer]:
        """The results of the lines, in order.

        Raises:
            DragomanError: no line can be answered, as with a model that there is not; or one waited for too long.
        """
        results: dict[int, Answer] = {}
        left, since = list(range(len(lines))), time.monotonic()
        while left:
            try:
                answers = self._ask([lines[index] for index in left])
            except DragomanError as error:
                if not _passes(error):
                    raise
                answers = [error] * len(left)
            results.update(zip(left, answers, strict=True))
            waiting = [index for index in left if _passes(results[index])]
            if len(waiting) < len(left):
                since = time.monotonic()
            left = waiting
            if left:
                self._wait(results[left[0]], since)
        for index, result in results.items():
            # A fault of the server's may be that of another line of the call.
            if isinstance(result, InternalError) and len(lines) > 1:
                results[index] = self([lines[index]])[0]
            elif isinstance(result, DragomanError) and not _is_of_line(result):
                raise result
        return [results[index] for index in range(len(lines))]

    def _wait(self, error: Answer, since: float) -> None:
        assert isinstance(error, DragomanError)
        now = time.monotonic()
        if self.is_over.is_set() or now - since > PATIENCE_SECONDS:
            raise error
        if now - self._remarked_at > _SECONDS_PER_REMARK:
            self._remarked_at = now
            typer.echo(f"dragoman: asking again for {PATIENCE_SECONDS:g} s: {describe(error)}", err=True)
        self.is_over.wait(_PAUSE_SECONDS)


def _passes(result: Answer) -> bool:
    """Whether the same may have an answer later."""
    if isinstance(result, ResourceExhaustedError):
        return result.retry_after is not None
    return isinstance(result, UnavailableError | RequestCancelledError | DeadlineExceededError)


def _is_of_line(error: DragomanError) -> bool:
    """Whether it is the line that has no answer; other errors are the same for all."""
    return isinstance(error, InvalidArgumentError | ResourceExhaustedError | InternalError)
