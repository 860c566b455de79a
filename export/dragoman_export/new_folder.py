"""Writing a folder completely or not at all."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPLACED = "-replaced"  # behind the name of a hidden folder: the old folder, while the new one takes its name


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

    If an exception ends the block, the hidden folder is deleted. What a killed process of this machine left is cleared
    by the next process that writes a folder of the same name. An old folder that had lost its name gets it back then.

    Raises:
        FileExistsError: the folder exists, or exists again.
        OSError: it cannot be written, as where the disk is full.
    """
    require_absent(folder, unless_has=unless_has)
    folder = folder.absolute()
    try:
        if folder.parent.exists() and not folder.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.partial-{socket.gethostname()}-"
        _clear_abandoned(folder, prefix)
        require_absent(folder, unless_has=unless_has)
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
    """Between two calls of the system there is no folder of this name: a server that follows it looks again.

    If the process is killed there, `_clear_abandoned` gives the old folder its name back.
    """
    old = new.with_name(f"{new.name}{_REPLACED}")
    try:
        folder.rename(old)
        new.rename(folder)
    except BaseException:
        if not os.path.lexists(folder):
            old.rename(folder)
        raise
    old.rename(new)  # so that what is half deleted is never taken for the old folder
    shutil.rmtree(new)


def _clear_abandoned(folder: Path, prefix: str) -> None:
    """Deletes what ended processes left; an old folder, only if there is a folder of its name."""
    for path in list(folder.parent.iterdir()):
        process_id = path.name.removeprefix(prefix).removesuffix(_REPLACED)
        if not path.name.startswith(prefix) or not process_id.isdecimal() or _runs(int(process_id)):
            continue
        if path.name.endswith(_REPLACED) and not os.path.lexists(folder):
            path.rename(folder)
        else:
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
