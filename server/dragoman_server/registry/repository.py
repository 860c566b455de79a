"""A folder of model bundles: which there are, and what has changed.

    REPOSITORY/NAME/manifest.json            one version, named by the bundle's contents
    REPOSITORY/NAME/VERSION/manifest.json    any number of versions, named by their folders

The exporter writes the manifest last, so that a folder without one is not there yet.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dragoman_server.bundle.manifest import MANIFEST_FILE
from dragoman_server.config import is_model_name
from dragoman_server.errors import FieldViolation, InvalidInputError, ModelNotFoundError, Reason, StartError

Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle is, and what it is served as."""

    folder: Path
    name: str = ""
    """Of the model; empty: that in the bundle."""

    version: str = ""
    """Of the model; empty: that of the bundle's contents."""

    fault: str = ""
    """Why the bundle may not be served."""

    def signature(self) -> Signature:
        """Name, size, time of change and inode of every file: what is the same has not changed.

        Empty where the folder is not there.
        """
        try:
            with os.scandir(self.folder) as entries:
                found = [(entry.name, entry.stat()) for entry in entries]
        except OSError:  # gone, or going
            return ()
        return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found))


class Repository:
    """A folder of model bundles.

    Args:
        root: the folder.

    Raises:
        StartError: it is not a folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise StartError(f"the repository {root} is not a directory; it is one of model bundles.")
        self.root = root.resolve()

    def places(self) -> Iterator[Place]:
        """The bundles there are at present, by name, and of a name by version: numbers in them by their values."""
        for folder in _folders(self.root):
            if _has_manifest(folder):
                yield self._checked(Place(folder, folder.name))
                continue
            for inner in _folders(folder):
                if _has_manifest(inner):
                    yield self._checked(Place(inner, folder.name, inner.name))

    def place(self, path: str) -> Place:
        """The bundle at a path below the repository.

        Raises:
            InvalidInputError: the path is none of the repository.
            ModelNotFoundError: there is no bundle at this path.
        """
        parts = Path(path).parts
        if len(parts) not in (1, 2) or Path(path).is_absolute() or not all(map(is_model_name, parts)):
            raise _path_violation("must be NAME or NAME/VERSION, a folder of the repository")
        place = self._checked(Place(self.root.joinpath(*parts), *parts))
        if place.fault:
            raise _path_violation(place.fault)
        if not _has_manifest(place.folder):
            names = ", ".join(sorted({str(found.folder.relative_to(self.root)) for found in self.places()})) or "none"
            raise ModelNotFoundError(path[:256], f"there is no bundle at this path; the repository has {names:.500}")
        return place

    def _checked(self, place: Place) -> Place:
        """The same, with its fault where it has one."""
        fault = ""
        if not all(map(is_model_name, filter(None, (place.name, place.version)))):
            fault = "the names of its folders must be of letters, digits and .+_- alone"
        elif not place.folder.resolve().is_relative_to(self.root):
            fault = "is a link that leads out of the repository"
        return Place(place.folder, place.name, place.version, fault) if fault else place


def _has_manifest(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_FILE).exists()
    except OSError:  # not for us to read
        return False


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, such as those that tools copy into."""
    try:
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:  # gone, or not for us to read
        return []
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders "2" before "10"."""
    return [(int(digits or -1), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", name)]


def _path_violation(description: str) -> InvalidInputError:
    return InvalidInputError(FieldViolation("path", description, Reason.PATH_OUTSIDE_REPOSITORY))
