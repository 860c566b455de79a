"""Imports of packages that come with an extra, and how to install them where one is missing."""

import re
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
    hint = f"the package {missing!r}, which comes with the extra {distribution}[{extra}]"
    if packages := _packages(distribution, extra):
        hint += f". Install it with:\n    pip install {packages}"
    return hint


def _packages(distribution: str, extra: str) -> str:
    """What an extra consists of, for a shell: it can be installed wherever the distribution itself came from."""
    try:
        requirements = [requirement.partition(";") for requirement in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:  # imported from a folder of sources
        return ""
    is_wanted = re.compile(rf"""extra\s*==\s*["']{extra}["']""").search
    return " ".join(f"'{package.strip()}'" for package, _, marker in requirements if is_wanted(marker))
