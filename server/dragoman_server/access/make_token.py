"""The command `dragoman-server make-token`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dragoman_server.access.tokens import make_token as new_token
from dragoman_server.access.tokens import read_lines, read_text
from dragoman_server.errors import StartError

_DESCRIPTION = (
    "Makes a token and prints it, once: no file has it. With --file, the line for it is put at the end of the file of "
    "tokens, and a server that uses the file takes it from then on; without, the line is printed, too."
)
_MODE = 0o600


def make_token(arguments: Sequence[str]) -> int:
    """Makes a token as the arguments of the command say; returns the exit code.

    Raises:
        StartError: a sentence about the argument that is not as it must be, or about the file.
        SystemExit: the help was asked for, or an argument is none.
    """
    parser = argparse.ArgumentParser("dragoman-server make-token", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="Whose token it is, for logs, metrics and turns.")
    parser.add_argument("--file", type=Path, metavar="FILE", help="File of tokens; made where there is none.")
    parser.add_argument("--rate", metavar="NUMBER", help="Texts a second. Default: no limit.")
    parser.add_argument("--concurrency", metavar="NUMBER", help="Calls in flight. Default: no limit.")
    parser.add_argument(
        "--priority",
        metavar="interactive|default|bulk",
        help="The highest priority of its calls; those that ask for more get this one. Default: interactive.",
    )
    parser.add_argument("--models", metavar="NAME[,NAME...]", help="Models that it may use. Default: all.")
    parser.add_argument("--admin", action="store_true", help="It may load and unload models.")
    given = parser.parse_args(arguments)
    options = {key: getattr(given, key) for key in ("rate", "concurrency", "priority", "models")}
    options = {key: value for key, value in options.items() if value is not None}
    token, line = new_token(given.name, options | ({"admin": "yes"} if given.admin else {}))
    if given.file is not None:
        _append(given.file, line)
    print(token if given.file is not None else f"{token}\n{line}")
    return 0


def _append(path: Path, line: str) -> None:
    """Puts a line at the end of a file whose other lines are as they must be."""
    try:
        has_text = path.exists() and path.stat().st_size
        if has_text:
            text = read_text(path)
            line = line if text.endswith("\n") else f"\n{line}"
            read_lines(text + line, path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise StartError(f"{path} cannot be written: {error.strerror}.") from error
