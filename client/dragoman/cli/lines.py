"""Texts line by line, as they come in, and how they are grouped into calls."""

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, cast

import typer

from dragoman._requests import MAX_INPUT_BYTES
from dragoman.errors import DragomanError, InvalidArgumentError

# What goes out in one call: enough to fill half of a server's batches, so little that a model of 70 million
# parameters on two CPUs answers within seconds, with a beam of 4 too.
LINES_PER_GROUP = 128
CHARACTERS_PER_GROUP = 8_000

# Of a file at a time. A pipe gives what is in it, which is less.
_READ_BYTES = 1024 * 1024


class Input(NamedTuple):
    """What a command asks the server about."""

    source: str
    target: str | None = None


Line: TypeAlias = Input | DragomanError
"""A line, or why it cannot be sent."""


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes:
        """At most `size` bytes, and of a pipe those that are in it; waits for the first."""


def standard_input(instead: str) -> _Readable:
    """Standard input, which is a pipe or a file.

    Raises:
        typer.BadParameter: it is a terminal or closed; `instead` says what to give.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise typer.BadParameter(instead)
    return cast(_Readable, sys.stdin.buffer)


def argument(text: str, name: str = "text") -> Line:
    """A text of the command line, where what is not UTF-8 has become surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _decoded(os.fsencode(text), name)
    return Input(text)


def count_lines(path: Path) -> int | None:
    """How many lines a file has; None for a pipe, which can be read only once."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def read_lines(file: _Readable, name: str = "line") -> Iterator[list[Line]]:
    """The lines of a file or a pipe, as many at a time as are there; waits only where there is none.

    Lines are cut at line feeds alone: any other line break is part of the text. A byte order mark
    at the beginning is left out. A line that is not UTF-8 is an InvalidArgumentError in its place,
    which calls it `name`; so is one that is too long for any message, whatever memory it would take.
    """
    begun: list[bytes] = []  # of a line whose end is not read yet
    too_long: DragomanError | None = None  # where that line is
    mark = codecs.BOM_UTF8
    while chunk := file.read1(_READ_BYTES):
        ended, line_feed, rest = chunk.rpartition(b"\n")
        if line_feed:
            text = b"".join((*begun, ended)).removeprefix(mark)
            lines = [_decoded(line, name) for line in text.split(b"\n")]
            yield [too_long, *lines[1:]] if too_long else lines
            begun.clear()
            mark, too_long = b"", None
        begun.append(rest)
        if sum(map(len, begun)) > MAX_INPUT_BYTES:
            too_long = InvalidArgumentError(f"The {name} has more than {MAX_INPUT_BYTES:,} bytes")
            begun.clear()
    if too_long:
        yield [too_long]
    elif last := b"".join(begun).removeprefix(mark):
        yield [_decoded(last, name)]


def pair(source: Line, target: Line | None) -> Line:
    """A source with its target, if there is one; or what is wrong with either."""
    if isinstance(source, DragomanError) or target is None:
        return source
    return target if isinstance(target, DragomanError) else Input(source.source, target.source)


def groups(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The lines, so many at a time as are sent together."""
    group: list[Line] = []
    num_characters = 0
    for line in lines:
        length = 0 if isinstance(line, DragomanError) else len(line.source) + len(line.target or "")
        if group and (len(group) == LINES_PER_GROUP or num_characters + length > CHARACTERS_PER_GROUP):
            yield group
            group, num_characters = [], 0
        group.append(line)
        num_characters += length
    if group:
        yield group


def _decoded(line: bytes, name: str) -> Line:
    try:
        return Input(line.decode())
    except UnicodeDecodeError as error:
        return InvalidArgumentError(f"The {name} is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}")
