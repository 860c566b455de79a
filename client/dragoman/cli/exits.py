"""How a command ends: its exit code, and one line on standard error where something failed."""

import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from dragoman.cli.answers import describe
from dragoman.errors import DragomanError

FAILED = 1
"""A call failed, or a line."""

UNREACHABLE = 69
"""`health` reached no server: EX_UNAVAILABLE of sysexits.h. Wrong usage is 2, by Typer."""

_BROKEN_PIPE = 128 + signal.SIGPIPE


class Commands(TyperGroup):
    """The commands, all of which end in the same way."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named; no error leaves it but those of usage."""
        try:
            return super().invoke(ctx)
        except DragomanError as error:  # before OSError, which that of a deadline is too
            _complain(error)
        except BrokenPipeError:
            # As with `| head`: who read the output has seen enough.
            _discard_output()
            raise typer.Exit(_BROKEN_PIPE) from None
        except OSError as error:
            _discard_output()
            _complain(error)
        except KeyboardInterrupt:
            # All is closed by now. A shell ends its loop only where the signal itself ends the program.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)


def _complain(error: Exception) -> NoReturn:
    typer.echo(f"dragoman: {describe(error)}", err=True)
    raise typer.Exit(FAILED) from None


def _discard_output() -> None:
    """Lets go of what could not be written, which the interpreter would try again at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
