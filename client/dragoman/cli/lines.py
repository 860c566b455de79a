"""Reading texts line by line, and showing how far they are."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dragoman.errors import InvalidArgumentError

# Enough for the server to batch well, few enough that progress is seen and that the
# deadline of a call, which holds for one group, does not depend on the size of a file.
LINES_PER_GROUP = 256

_Item = TypeVar("_Item")


def count_lines(path: Path) -> int | None:
    """How many lines a file has; None for a pipe, which can be read only once."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def decode(lines: BinaryIO) -> Iterator[str]:
    """The lines, cut at line feeds alone: any other line break is part of the text.

    Raises:
        InvalidArgumentError: a line is not UTF-8.
    """
    for number, line in enumerate(lines, start=1):
        try:
            yield line.removesuffix(b"\n").decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"line {number} of the input is not UTF-8") from None


def groups(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """The items, so many at a time as are sent together."""
    iterator = iter(items)
    while group := list(islice(iterator, LINES_PER_GROUP)):
        yield group


def progress_bar(*, visible: bool) -> Progress:
    """A progress bar on standard error, whose console is for messages too."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        # In a log it would be noise, and among translations on the screen a mess.
        disable=not (visible and console.is_terminal),
    )
