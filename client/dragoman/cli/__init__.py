"""The command `dragoman`."""

from dragoman._extras import require_extra


def main() -> None:
    """Runs the command line: see `dragoman.cli.exits` for how it ends."""
    with require_extra("cli"):
        from dragoman.cli.commands import app
    app(prog_name="dragoman")
