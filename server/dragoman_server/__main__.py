"""The command `dragoman-server`."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dragoman_server.ending import leave
from dragoman_server.errors import StartError

EXIT_START_ERROR = 2
MAKE_TOKEN = "make-token"

_NO_THREAD = "can't start new thread"  # Python's own words


def main() -> None:
    """Runs the server, or makes a token.

    Exits with 0 after SIGTERM or SIGINT, with 2 and one line on stderr where it cannot start,
    with 70 where its engine has died, or hangs while the server stops.
    """
    _open_standard_files()
    try:
        code = _run()
    except StartError as error:
        print(f"dragoman-server: {error}", file=sys.stderr)
        code = EXIT_START_ERROR
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        print("dragoman-server: the system lets it have no more threads, or no memory for one", file=sys.stderr)
        code = EXIT_START_ERROR
    leave(code)


def _open_standard_files() -> None:
    """Has nothing else become the file of an error or a log that goes to stderr where that was closed, as by `2>&-`."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.__stderr__ is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - lasts as long as the process


def _run() -> int:
    with _ending_at_once(), _requiring_the_server():
        # None of these imports gRPC, which reads then what the log is to have of it.
        from dragoman_server.cli import read_config
        from dragoman_server.log import configure

        if sys.argv[1:2] == [MAKE_TOKEN]:
            from dragoman_server.access.make_token import make_token

            return make_token(sys.argv[2:])
        config = read_config(sys.argv[1:], os.environ)
        configure(config.log.log_format, sys.stderr)
        # After the options: it takes most of a second to import, and what is wrong with them is told at once.
        import uvloop

        from dragoman_server.app import serve
    # A call takes a fifth less of the processor than with asyncio's own loop, a refusal too.
    return uvloop.run(serve(config))


@contextmanager
def _requiring_the_server() -> Iterator[None]:
    """Ends the program with a line that names the extra where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        from dragoman._extras import require_extra

        with require_extra("server"):
            raise error


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """A signal ends the process, which has nothing yet. Python's own handler would show where it was interrupted."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, lambda *_: os._exit(0)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
