"""The subcommands of `dragoman`."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dragoman._channel import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from dragoman.client import Client
from dragoman.errors import DragomanError, InvalidArgumentError
from dragoman.types import Translation

# Enough for the server to batch well, few enough that progress is seen and that the
# deadline of a call, which holds for one group, does not depend on the size of a file.
LINES_PER_GROUP = 256

# A health check is asked by machines that have a limit of their own.
HEALTH_TIMEOUT_SECONDS = 5.0

app = typer.Typer(
    help="Translate through a Dragoman server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Address = Annotated[
    str,
    typer.Option(
        envvar=ADDRESS_VARIABLE,
        metavar="HOST:PORT",
        help="Address of the server.",
        show_envvar=True,
    ),
]


@app.command()
def translate(
    source: Annotated[str, typer.Option("--from", help="Language code of the texts.")],
    target: Annotated[str, typer.Option("--to", help="Language code to translate into.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to translate. Without any, each line of standard input."),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", dir_okay=False, exists=True, help="Translate each line of FILE."),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", dir_okay=False, help="Write to FILE, not to standard output."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object per text, with all details.")] = False,
) -> None:
    """Translate texts, the lines of a file, or the lines of standard input.

    The answer to line i is line i. It stays empty where that line cannot be translated, with
    the reason on standard error; the exit status is then 1.
    """
    if texts and input_file:
        raise typer.BadParameter("Give texts or --input, not both.")
    if not texts and not input_file and sys.stdin.isatty():
        raise typer.BadParameter("Give texts, or --input FILE, or pipe lines in.")
    if input_file and output_file and output_file.exists() and output_file.samefile(input_file):
        raise typer.BadParameter("--output would overwrite --input.")

    num_failed = 0
    with ExitStack() as stack:
        client = stack.enter_context(Client(address))
        items: Iterable[str] = texts or ()
        num_items = len(texts) if texts else None
        if input_file:
            num_items = _count_lines(input_file)
            items = _decode(stack.enter_context(input_file.open("rb")))
        elif not texts:
            items = _decode(sys.stdin.buffer)
        # Bytes, for the answer is UTF-8 whatever the locale.
        out = stack.enter_context(output_file.open("wb")) if output_file else sys.stdout.buffer
        progress = stack.enter_context(_progress_bar(visible=output_file is not None))
        task = progress.add_task("Translating", total=num_items)

        num_done = 0
        for group in _groups(items):
            for result in client.translate(group, source=source, target=target, errors="return"):
                num_done += 1
                if isinstance(result, DragomanError):
                    num_failed += 1
                    result.input_index = None  # of the group, and of no interest here
                    progress.console.print(f"dragoman: line {num_done}: {describe(result)}")
                line = _to_json(result) if as_json else _to_text(result)
                out.write(line.encode() + b"\n")
            out.flush()
            progress.update(task, completed=num_done)
    if num_failed:
        raise typer.Exit(1)


@app.command()
def health(address: Address = DEFAULT_ADDRESS) -> None:
    """Say whether the server is ready; the exit status is 0 if it is, else 1."""
    with Client(address, timeout=HEALTH_TIMEOUT_SECONDS) as client:
        is_serving = client.health()
    typer.echo("SERVING" if is_serving else "NOT_SERVING")
    if not is_serving:
        raise typer.Exit(1)


def describe(error: Exception) -> str:
    """The error in one line, with its status code where it has one."""
    code = f"{error.code.name}: " if isinstance(error, DragomanError) else ""
    return code + " ".join(str(error).split())


def _progress_bar(*, visible: bool) -> Progress:
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


def _count_lines(path: Path) -> int | None:
    if not path.is_file():
        return None  # a pipe can be read only once
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _decode(lines: BinaryIO) -> Iterator[str]:
    """The lines, cut at line feeds alone: any other line break is part of the text."""
    for number, line in enumerate(lines, start=1):
        try:
            yield line.removesuffix(b"\n").decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"line {number} of the input is not UTF-8") from None


def _groups(items: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(items)
    while group := list(islice(iterator, LINES_PER_GROUP)):
        yield group


def _to_text(result: Translation | DragomanError) -> str:
    return "" if isinstance(result, DragomanError) else result.text


def _to_json(result: Translation | DragomanError) -> str:
    value: dict[str, Any]
    if isinstance(result, DragomanError):
        value = {
            "error": {
                "code": result.code.name,
                "reason": result.reason,
                "message": result.message,
            }
        }
    else:
        value = {
            "text": result.text,
            "score": result.score,
            "sum_logprob": result.sum_logprob,
            "finish_reason": result.finish_reason,
            **dataclasses.asdict(result),
        }
    return json.dumps(value, ensure_ascii=False)
