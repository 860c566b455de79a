"""Writing answers: a line for every line, and complaints elsewhere."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import BinaryIO, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dragoman.cli.calls import in_order
from dragoman.cli.lines import Input, Line, groups
from dragoman.errors import DeadlineExceededError, DragomanError

# While the last lines of one group finish, the server already works on the next.
_CALLS_IN_FLIGHT = 2

_INPUT_FIELD = re.compile(r"\binputs\[\d+\]\.")

_Result = TypeVar("_Result")


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
    batches: Iterable[Sequence[Line]],
    num_lines: int | None,
    answer: Callable[[list[Input]], Iterable[_Result | DragomanError]],
    show: Callable[[_Result], str],
    out: BinaryIO,
    *,
    as_json: bool,
    is_visible: bool,
    remark: Callable[[_Result], str] = lambda _: "",
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

    Raises:
        DragomanError: `answer` failed as a whole. All lines before are written.
    """
    num_done = num_failed = 0
    answered = in_order(partial(_answered, answer), map(groups, batches), num_in_flight=_CALLS_IN_FLIGHT)
    with progress_bar(visible=is_visible) as progress, closing(answered):
        task = progress.add_task("Working", total=num_lines)
        try:
            for results in answered:
                for result in results:
                    num_done += 1
                    if isinstance(result, DragomanError):
                        num_failed += 1
                        progress.console.print(complaint(num_done, result))
                        line = _error_to_json(result) if as_json else ""
                    else:
                        line = show(result)
                        if said := remark(result):
                            progress.console.print(f"dragoman: line {num_done}: {said}")
                    out.write(line.encode() + b"\n")
                out.flush()
                progress.update(task, completed=num_done)
        except DragomanError:
            if num_done:
                progress.console.print(unanswered(num_done + 1))
            raise
    return num_failed


def progress_bar(*, visible: bool) -> Progress:
    """A progress bar on standard error, whose console is for messages too."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        # In a log it would be noise, whatever FORCE_COLOR says, and among translations on the screen a mess.
        disable=not (visible and console.file.isatty()),
    )


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
