"""The command `dragoman-server`."""

import sys

from dragoman._extras import require_extra
from dragoman_server.errors import StartError

EXIT_START_ERROR = 2


def main() -> None:
    """Runs the server.

    Exits with 0 after SIGTERM or SIGINT, with 2 and one line on stderr where it cannot start,
    with 70 where its engine has died.
    """
    with require_extra("server"):
        from dragoman_server.cli import app
    try:
        app(prog_name="dragoman-server")
    except StartError as error:
        # Texts of other libraries may be in it, of several lines.
        print(f"dragoman-server: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_START_ERROR)


if __name__ == "__main__":
    main()
