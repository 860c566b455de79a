"""Entry points that say which extra to install, where a traceback would be no help."""

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
        missing = (error.name or "").partition(".")[0]
        if missing in _OWN_PACKAGES:
            raise
        # The same package comes with the server (dragoman) or without it (dragoman-client).
        distribution = metadata.packages_distributions().get("dragoman", ["dragoman"])[0]
        raise SystemExit(
            f"This command needs the package {missing!r}. Install it with:\n    pip install '{distribution}[{extra}]'"
        ) from None
