"""The command `dragoman-server make-token`."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dragoman_server.access.tokens import make_token as new_token
from dragoman_server.access.tokens import read_lines, text_of
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
    if given.file is None:
        _print(f"{token}\n{line}")
        return 0
    is_new = not os.path.lexists(given.file)
    try:
        _add(given.file, line, lambda: _print(token))
    except OSError as error:
        raise StartError(f"{given.file} cannot be written: {error.strerror}. No token was added.") from error
    except StartError:
        if is_new:
            given.file.unlink(missing_ok=True)
        raise
    return 0


def _add(path: Path, line: str, print_token: Callable[[], None]) -> None:
    """Puts a line at the end of a file whose other lines are as they must be, once the token is printed.

    Raises:
        OSError: the file cannot be read or written.
        StartError: it is no file for tokens, would have a line that is not as it must be, or the token cannot be
            printed.
    """
    # Of a pipe, open would wait for who reads.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, _MODE), "r+b", buffering=0) as file:
        size, text = os.fstat(file.fileno()).st_size, text_of(file, path)
        added = f"{line}\n" if text.endswith("\n") or not text else f"\n{line}\n"
        read_lines(text + added, path)
        # A token that nobody has seen is lost; one without a line can be made again.
        print_token()
        raw = added.encode()
        if file.write(raw) != len(raw):
            os.ftruncate(file.fileno(), size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _print(text: str) -> None:
    try:
        if sys.stdout is None:  # it is closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, flush=True)
    except OSError as error:
        raise StartError(f"the token cannot be printed: {error.strerror}. It was not added to a file.") from error
