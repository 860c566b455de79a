import os
import subprocess
import sys
from pathlib import Path

import pytest

from dragoman_export.new_folder import new_folder

REPLACING = """
import os, sys
from pathlib import Path
from dragoman_export.new_folder import new_folder

rename, left = Path.rename, [int(sys.argv[2])]

def rename_or_die(path, target):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    return rename(path, target)

Path.rename = rename_or_die
with new_folder(Path(sys.argv[1]), unless_has="mark") as partial:
    (partial / "mark").write_text("killed")
"""


def partial_folder(folder: Path, process_id: int) -> Path:
    with new_folder(folder) as own:
        name = own.name
    folder.rmdir()
    return folder.with_name(name.removesuffix(str(os.getpid())) + str(process_id))


@pytest.fixture
def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_folder_is_there_when_all_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with new_folder(folder) as partial:
        (partial / "file").write_text("contents")
        assert not folder.exists()
        assert partial.parent == folder.parent  # so that renaming is all that is left to do
    assert (folder / "file").read_text() == "contents"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with new_folder(tmp_path / "folder") as partial:
            (partial / "file").write_text("contents")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted(tmp_path: Path, ended_process: int) -> None:
    for process_id in (ended_process, os.getpid()):
        left = partial_folder(tmp_path / "folder", process_id)
        left.mkdir()
        (left / "file").write_text("half")
        with new_folder(tmp_path / "folder"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        (tmp_path / "folder").rmdir()


def test_what_others_write_is_left_alone(tmp_path: Path, ended_process: int) -> None:
    of_a_running_process = partial_folder(tmp_path / "folder", os.getppid())
    of_another_folder = partial_folder(tmp_path / "folders", ended_process)
    of_a_user = tmp_path / ".folder.partial-mine"
    for path in (of_a_running_process, of_another_folder, of_a_user):
        path.mkdir()
    with new_folder(tmp_path / "folder"):
        pass
    assert all(path.exists() for path in (of_a_running_process, of_another_folder, of_a_user))


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "link"):
        with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / name):
            pass


def test_a_folder_that_has_the_file_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mark").write_text("old")
    with new_folder(folder, unless_has="mark") as partial:
        (partial / "mark").write_text("new")
        assert (folder / "mark").read_text() == "old"
    assert (folder / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_where_it_cannot_be_replaced_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mark").write_text("old")
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if target == folder and path.name.isascii() and path.name.split("-")[-1].isdecimal():
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError), new_folder(folder, unless_has="mark") as partial:
        (partial / "mark").write_text("new")
    assert (folder / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(("num_renames", "left"), [(0, "old"), (1, None), (2, "killed")])
def test_a_process_that_is_killed_while_it_replaces_a_folder_loses_neither(
    tmp_path: Path, num_renames: int, left: str | None
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mark").write_text("old")
    process = subprocess.run([sys.executable, "-c", REPLACING, str(folder), str(num_renames)], check=False)
    assert process.returncode == 9
    assert folder.exists() == (left is not None)

    with pytest.raises(FileExistsError, match="--force"), new_folder(folder):
        pass
    assert (folder / "mark").read_text() == (left or "old")
    with pytest.raises(KeyboardInterrupt), new_folder(folder, unless_has="mark"):
        raise KeyboardInterrupt
    assert (folder / "mark").read_text() == (left or "old")
    with new_folder(folder, unless_has="mark") as partial:
        (partial / "mark").write_text("new")
    assert (folder / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_nor_is_what_came_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "folder"):
        (tmp_path / "folder").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_without_a_name_gets_that_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="folder") as raised, new_folder(tmp_path / "folder"):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "folder")


def test_a_folder_within_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"), new_folder(tmp_path / "file" / "folder"):
        pass
