"""Writing answers: a line for every line, and complaints elsewhere."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Protocol, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dragoman.cli.calls import in_order
from dragoman.cli.lines import Input, Line, groups
from dragoman.errors import DeadlineExceededError, DragomanError, UnavailableError

# While the last lines of one group finish, the server already works on the next.
CALLS_IN_FLIGHT = 2

_INPUT_FIELD = re.compile(r"\binputs\[\d+\]\.")

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Tally:
    """Lines that are written, and how many of them failed."""

    num_done: int = 0
    num_failed: int = 0


class Output(Protocol):
    """Where lines go."""

    def write(self, line: bytes, /) -> object:
        """Takes a line."""

    def flush(self) -> object:
        """To be called when the lines of a group are written."""


def describe(error: Exception) -> str:
    """The error in one line, with its status code where it has one."""
    code = f"{error.code.name}: " if isinstance(error, DragomanError) else ""
    hint = " (--timeout gives a call more time)" if isinstance(error, DeadlineExceededError) else ""
    return code + one_line(str(error)) + hint


def one_line(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def complaint(number: int, error: DragomanError) -> str:
    """What is said of a line that failed."""
    error.input_index = None  # of the group, and of no interest here, like that in the field's name
    return f"dragoman: line {number}: {_INPUT_FIELD.sub('', describe(error))}"


def unanswered(number: int) -> str:
    """What is said where a command ends before all lines are answered."""
    return f"dragoman: line {number} and all after it are not answered"


def standard_output() -> BinaryIO:
    """Standard output for bytes, for it is UTF-8 whatever the locale.

    Raises:
        typer.BadParameter: it is closed.
    """
    if sys.stdout is None:
        raise typer.BadParameter("Standard output is closed.")
    return sys.stdout.buffer


def print_text(text: str) -> None:
    """Writes a text and a line feed to standard output."""
    out = standard_output()
    out.write(text.encode() + b"\n")
    out.flush()


def write_all(
    batches: Iterable[Iterable[Line]],
    num_lines: int | None,
    answer: Callable[[list[Input]], Iterable[_Result | DragomanError]],
    show: Callable[[_Result], str],
    out: Output,
    *,
    as_json: bool,
    is_visible: bool,
    remark: Callable[[_Result], str] = lambda _: "",
    num_calls: int = CALLS_IN_FLIGHT,
    tally: Tally | None = None,
) -> int:
    """Writes a line for every line, and to standard error what failed; returns how many did.

    Args:
        batches: the lines. A batch is answered before the next one is asked for, which may
            take any time.
        num_lines: how many there are, if that is known.
        answer: gives the results of some lines, in order.
        show: gives the line of a result.
        out: where lines go.
        as_json: whether failures are lines of JSON too, else empty lines.
        is_visible: whether to show a progress bar.
        remark: what to say of a result on standard error, if anything.
        num_calls: how many calls are under way at a time.
        tally: the lines before, to which these are added.

    Raises:
        DragomanError: `answer` failed as a whole. All lines before are written.
    """
    tally = tally or Tally()
    num_before = tally.num_done
    ask, jobs = partial(_answered, answer), map(groups, batches)
    answered = in_order(ask, jobs, num_in_flight=num_calls, num_ahead=num_calls)
    with progress_bar(visible=is_visible) as progress, closing(answered):
        task = progress.add_task("Working", total=num_lines, completed=num_before)
        try:
            for results in answered:
                for result in results:
                    tally.num_done += 1
                    if isinstance(result, DragomanError):
                        tally.num_failed += 1
                        progress.console.print(complaint(tally.num_done, result))
                        line = _error_to_json(result) if as_json else ""
                    else:
                        line = show(result)
                        if said := remark(result):
                            progress.console.print(f"dragoman: line {tally.num_done}: {said}")
                    out.write(line.encode() + b"\n")
                out.flush()
                progress.update(task, completed=tally.num_done)
        except DragomanError:
            if tally.num_done > num_before:
                progress.console.print(unanswered(tally.num_done + 1))
            raise
    return tally.num_failed


def stream_all(lines: Iterable[Line], stream: Callable[[str], Iterable[str]], out: BinaryIO) -> int:
    """Writes a line for every line, piece by piece; otherwise as `write_all`.

    Raises:
        UnavailableError: no server is left.
    """
    num_failed = 0
    for number, line in enumerate(lines, start=1):
        try:
            if isinstance(line, DragomanError):
                raise line
            for piece in stream(line.source):
                out.write(piece.encode())
                out.flush()
        except UnavailableError:
            if number > 1:
                typer.echo(unanswered(number), err=True)
            raise
        except DragomanError as error:
            num_failed += 1
            typer.echo(complaint(number, error), err=True)
        out.write(b"\n")
        out.flush()
    return num_failed


def progress_bar(*, visible: bool) -> Progress:
    """A progress bar on standard error, whose console is for messages too."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        # In a log it would be noise, whatever FORCE_COLOR says, and among translations on the screen a mess.
        disable=not (visible and console.file.isatty()),
    )


class _Rate(ProgressColumn):
    """How many are done in a second."""

    def render(self, task: Task) -> Text:
        """Of late, or on average where all are done."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.0f}/s")


def _answered(
    answer: Callable[[list[Input]], Iterable[_Result | DragomanError]], group: Sequence[Line]
) -> list[_Result | DragomanError]:
    """The results of a group, in order. What cannot be sent is its own."""
    sent = [line for line in group if not isinstance(line, DragomanError)]
    results = iter(answer(sent) if sent else ())
    return [line if isinstance(line, DragomanError) else next(results) for line in group]


def _error_to_json(error: DragomanError) -> str:
    value = {"code": error.code.name, "reason": error.reason, "message": error.message}
    return json.dumps({"error": value}, ensure_ascii=False)
