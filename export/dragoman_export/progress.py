"""Progress of a long command: a bar in a terminal, a line now and then in a file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET = Console(quiet=True)
_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]


@contextmanager
def phase(name: str, total: int, console: Console, units: str = "sentences") -> Iterator[Advance]:
    """Yields a function to be called with the number of units that were done since its last call."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        console.print(f"{name}: {total} {units}")
        yield _Lines(name, total, console)


class _Lines:
    def __init__(self, name: str, total: int, console: Console) -> None:
        self._name, self._total, self._console = name, total, console
        self._num_done = 0
        self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        self._num_done += count
        if (now := time.monotonic()) - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            self._console.print(f"{self._name}: {self._num_done} of {self._total}")
