"""The command `dragoman-export`."""

import sys

from dragoman._extras import require_extra


def main() -> None:
    """Runs the command line; an error that the user can mend is one line on stderr and exit code 2."""
    with require_extra("export"):
        from dragoman_export.commands import EXPECTED_ERRORS, app
    try:
        app(prog_name="dragoman-export")
    except EXPECTED_ERRORS as error:
        print(f"dragoman-export: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
