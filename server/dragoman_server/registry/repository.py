"""A folder of model bundles: which there are, and what has changed.

    REPOSITORY/NAME/manifest.json            one version, named by the bundle's contents
    REPOSITORY/NAME/VERSION/manifest.json    any number of versions, named by their folders

The exporter writes the manifest last, so that a folder without one is not there yet.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dragoman_server.bundle.manifest import MANIFEST_FILE
from dragoman_server.errors import FieldViolation, InvalidInputError, ModelNotFoundError, Reason, StartError
from dragoman_server.option_texts import is_model_name

Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle is, and what it is served as."""

    folder: Path
    name: str = ""
    """Of the model; empty: that in the bundle."""

    version: str = ""
    """Of the model; empty: that of the bundle's contents."""

    fault: str = field(default="", compare=False)
    """Why the bundle may not be served."""

    def signature(self) -> Signature:
        """Name, size, times of change and inode of every file: what is the same has not changed.

        Empty where the folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError:
            return ()
        return tuple(sorted((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in found))

    def is_gone(self) -> bool:
        """Whether there is certainly no bundle any more; not where that cannot be seen at present."""
        try:
            (self.folder / MANIFEST_FILE).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False


class Repository:
    """A folder of model bundles.

    Args:
        root: the folder.

    Raises:
        StartError: it is not a folder, or is a bundle itself.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise StartError(f"the repository {root} is not a directory; it is one of model bundles.")
        if (root / MANIFEST_FILE).exists():
            raise StartError(
                f"the repository {root} is a bundle itself, which --model serves; it is a folder of bundles."
            )
        self.root = root.resolve()

    def places(self) -> list[Place]:
        """The bundles there are at present, by name, and of a name by version: numbers in them by their values.

        What cannot be looked into is among them, with its fault.

        Raises:
            OSError: the repository itself cannot be read.
        """
        return [place for folder in _folders(self.root) for place in self._places_of(folder)]

    def _places_of(self, folder: Path) -> Iterator[Place]:
        """The bundle that a folder is, or those in it."""
        try:
            if not folder.is_dir():
                return
            if (folder / MANIFEST_FILE).exists():
                yield self._checked(folder)
                return
            for inner in _folders(folder):
                try:
                    if inner.is_dir() and (inner / MANIFEST_FILE).exists():
                        yield self._checked(folder, inner)
                except OSError as error:
                    yield self._checked(folder, inner, fault=_unreadable(error))
        except OSError as error:
            yield self._checked(folder, fault=_unreadable(error))

    def place(self, path: str) -> Place:
        """The bundle at a path below the repository.

        Raises:
            InvalidInputError: the path is none of the repository.
            ModelNotFoundError: there is no bundle at this path.
        """
        parts = Path(path).parts
        if len(parts) not in (1, 2) or Path(path).is_absolute() or not all(map(is_model_name, parts)):
            raise _path_violation("must be NAME or NAME/VERSION, a folder of the repository")
        name, *version = parts
        place = self._checked(self.root / name, *(self.root / name / part for part in version))
        if place.fault:
            raise _path_violation(place.fault)
        if place.is_gone():
            names = ", ".join(str(found.folder.relative_to(self.root)) for found in self.places() if not found.fault)
            raise ModelNotFoundError(path[:256], f"there is no bundle at this path; there are {names or 'none':.500}")
        return place

    def _checked(self, folder: Path, inner: Path | None = None, *, fault: str = "") -> Place:
        """The place of a bundle, with its fault where it has one."""
        name, version = folder.name, inner.name if inner else ""
        if not all(map(is_model_name, filter(None, (name, version)))):
            fault = fault or "the names of its folders must be of letters, digits and .+_- alone"
        elif not fault:
            fault = self._fault_of_link(inner or folder)
        return Place(inner or folder, _printable(name), _printable(version), fault)

    def _fault_of_link(self, folder: Path) -> str:
        try:
            is_inside = folder.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):  # the latter of a link that leads to itself
            return "is a link that cannot be followed"
        return "" if is_inside else "is a link that leads out of the repository"


def _folders(folder: Path) -> list[Path]:
    """What is in a folder, without hidden ones, such as those that tools copy into; raises OSError."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders "2" before "10"."""
    return [(int(digits or -1), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)]


def _printable(name: str) -> str:
    """A name as it can be shown and sent: it may be of any bytes."""
    return name if name.isprintable() else repr(name)[1:-1]


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror}"


def _path_violation(description: str) -> InvalidInputError:
    return InvalidInputError(FieldViolation("path", description, Reason.PATH_OUTSIDE_REPOSITORY))
