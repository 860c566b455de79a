"""The command `dragoman`."""

import sys

from dragoman._extras import require_extra
from dragoman.errors import DragomanError


def main() -> None:
    """Runs the command line.

    Exits with 0, with 1 and one line on stderr where something failed, or with 2 where the
    command was called in a wrong way.
    """
    with require_extra("cli"):
        from dragoman.cli.answers import describe
        from dragoman.cli.commands import app
    try:
        app(prog_name="dragoman")
    except (DragomanError, OSError) as error:
        sys.exit(f"dragoman: {describe(error)}")
