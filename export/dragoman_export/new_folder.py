"""Writing a folder completely or not at all."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPLACED = "-replaced"  # behind the name of a hidden folder: what it was written in place of


def require_absent(folder: Path, *, unless_has: str | None = None) -> None:
    """Raises FileExistsError if anything has this name, even a broken link.

    Args:
        folder: to be written.
        unless_has: a file by which a folder is known that may be replaced.
    """
    if not os.path.lexists(folder):
        return
    if unless_has is None:
        raise FileExistsError(errno.EEXIST, "exists already; --force replaces a bundle", str(folder))
    if folder.is_symlink() or not (folder / unless_has).is_file():
        raise FileExistsError(errno.EEXIST, f"exists and has no {unless_has}: it is not replaced", str(folder))


@contextmanager
def new_folder(folder: Path, *, unless_has: str | None = None) -> Iterator[Path]:
    """Yields a hidden folder beside `folder`, which takes that name at the end.

    A folder that is there with the file `unless_has` is then deleted.

    If an exception ends the block, the hidden folder is deleted. That of a killed process of this machine is deleted by
    the next process that writes a folder of the same name.

    Raises:
        FileExistsError: the folder exists.
        OSError: it cannot be written, as where the disk is full.
    """
    require_absent(folder, unless_has=unless_has)
    folder = folder.absolute()
    try:
        if folder.parent.exists() and not folder.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.partial-{socket.gethostname()}-"
        _delete_abandoned(folder.parent, prefix)
        partial = folder.with_name(f"{prefix}{os.getpid()}")
        try:
            partial.mkdir()
            yield partial
            require_absent(folder, unless_has=unless_has)
            if folder.exists():
                _replace(folder, partial)
            else:
                partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        if error.filename is None:  # as when a write fails
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise


def _replace(folder: Path, new: Path) -> None:
    """Between two calls of the system there is no folder of this name: a server that follows it looks again."""
    old = new.with_name(f"{new.name}{_REPLACED}")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _delete_abandoned(parent: Path, prefix: str) -> None:
    for path in parent.iterdir():
        process_id = path.name.removeprefix(prefix).removesuffix(_REPLACED)
        if path.name.startswith(prefix) and process_id.isdecimal() and not _runs(int(process_id)):
            shutil.rmtree(path)


def _runs(process_id: int) -> bool:
    """Whether another process of this number runs: one of our own number is gone."""
    if process_id == os.getpid():
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
