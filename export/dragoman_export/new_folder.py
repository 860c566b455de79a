"""Writing a folder completely or not at all."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_absent(folder: Path) -> None:
    """Raises FileExistsError if anything has this name, even a broken link."""
    if os.path.lexists(folder):
        raise FileExistsError(errno.EEXIST, "exists already; a bundle is never overwritten", str(folder))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `folder`, which takes that name at the end.

    If an exception ends the block, the hidden folder is deleted. That of a killed process of this machine is deleted by
    the next process that writes a folder of the same name.

    Raises:
        FileExistsError: the folder exists.
        OSError: it cannot be written, as where the disk is full.
    """
    require_absent(folder)
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
            require_absent(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        if error.filename is None:  # as when a write fails
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise


def _delete_abandoned(parent: Path, prefix: str) -> None:
    for path in parent.iterdir():
        process_id = path.name.removeprefix(prefix)
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
