"""The command `dragoman-export`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dragoman._extras import require_extra
from dragoman_export.printable import printable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ends the program; unfinished output is deleted on the way out."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal.Signals(signal_number)


def main() -> None:
    """Runs the command line.

    Exits with 2 and one line on stderr after an error that the user can correct, with 128 + N after signal N.
    """
    try:
        with _stopped_by_signals():
            with require_extra("export"):
                from dragoman_export.commands import EXPECTED_ERRORS, app
            try:
                app(prog_name="dragoman-export")
            except EXPECTED_ERRORS as error:
                # Messages of other libraries may have several lines.
                print(f"dragoman-export: {printable(' '.join(_text(error).split()))}", file=sys.stderr)
                sys.exit(2)
    except Stopped as stop:
        print(f"dragoman-export: stopped by {stop.signal.name}", file=sys.stderr)
        sys.exit(128 + stop.signal)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:  # without its number
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turns the first signal that asks for the end into an exception; later signals must not disturb the cleanup."""
    received: list[int] = []

    def stop(signal_number: int, _: FrameType | None) -> None:
        received.append(signal_number)
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(signal_number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        yield
    except (Exception, SystemExit) as error:
        if received:  # libraries in C turn the exception into one of their own, as NumPy while it is imported
            raise Stopped(received[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
