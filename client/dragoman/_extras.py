"""Imports of packages that come with an extra, and which to install where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

_OWN_PACKAGES = frozenset({"dragoman", "dragoman_server", "dragoman_export"})


@contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Ends the program with a line that names `extra` when an import inside fails.

    Only for the imports of a command line: it raises SystemExit. A module of our own that
    is missing is a fault of ours, and raises as it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (hint := _hint(error, extra)) is None:
            raise
        raise SystemExit(f"This command needs {hint}") from None


@contextmanager
def name_extra(extra: str) -> Iterator[None]:
    """Says which extra to install when an import inside fails: the same for a library."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (hint := _hint(error, extra)) is None:
            raise
        raise ModuleNotFoundError(f"This needs {hint}", name=error.name) from None


def _hint(error: ModuleNotFoundError, extra: str) -> str | None:
    """What is missing and how to get it; None for a module of our own."""
    missing = (error.name or "").partition(".")[0]
    if missing in _OWN_PACKAGES:
        return None
    # The same package comes with the server (dragoman) or without it (dragoman-client).
    distribution = metadata.packages_distributions().get("dragoman", ["dragoman"])[0]
    return f"the package {missing!r}. Install it with:\n    pip install '{distribution}[{extra}]'"
