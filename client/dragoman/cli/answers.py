"""Writing answers: a line for every item, and complaints elsewhere."""

import json
from collections.abc import Callable, Iterable
from typing import BinaryIO, TypeVar

from dragoman.cli.lines import groups, progress_bar
from dragoman.errors import DragomanError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def describe(error: Exception) -> str:
    """The error in one line, with its status code where it has one."""
    code = f"{error.code.name}: " if isinstance(error, DragomanError) else ""
    return code + " ".join(str(error).split())


def write_all(
    items: Iterable[_Item],
    num_items: int | None,
    answer: Callable[[list[_Item]], Iterable[_Result | DragomanError]],
    show: Callable[[_Result], str],
    out: BinaryIO,
    *,
    as_json: bool,
    is_visible: bool,
    remark: Callable[[_Result], str] = lambda _: "",
) -> int:
    """Writes a line for every item, and to standard error what failed; returns how many did.

    Args:
        items: what to answer.
        num_items: how many there are, if that is known.
        answer: gives the results of some items, in order.
        show: gives the line of a result.
        out: where lines go.
        as_json: whether failures are lines of JSON too, else empty lines.
        is_visible: whether to show a progress bar.
        remark: what to say of a result on standard error, if anything.
    """
    num_done = num_failed = 0
    with progress_bar(visible=is_visible) as progress:
        task = progress.add_task("Working", total=num_items)
        for group in groups(items):
            for result in answer(group):
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
    return num_failed


def complaint(number: int, error: DragomanError) -> str:
    """What is said of a line that failed."""
    error.input_index = None  # of the group, and of no interest here
    return f"dragoman: line {number}: {describe(error)}"


def _error_to_json(error: DragomanError) -> str:
    value = {"code": error.code.name, "reason": error.reason, "message": error.message}
    return json.dumps({"error": value}, ensure_ascii=False)
