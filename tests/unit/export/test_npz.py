"""Archives of arrays that are damaged or made to do harm."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman_export.npz import read_npz

HUGE = 1 << 40


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A file of an array with this header."""
    text = header.encode() + b"\n"
    size = struct.pack("<H", len(text)) if version == (1, 0) else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def described(dtype: str = "<f4", shape: str = "(2,)", order: str = "False") -> str:
    return f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}"


def write_zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in members.items():
            archive.writestr(f"{name}.npy", contents)


def test_arrays_are_as_numpy_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 4)).astype(np.float32)
    arrays: dict[str, Any] = {
        "matrix": matrix,
        "transposed": np.asfortranarray(matrix),
        "half": matrix.astype(np.float16),
        "special:model.yml": np.frombuffer(b"type: transformer\0", np.int8),
        "scalar": np.float64(3.0),
        "empty": np.zeros((0, 4), np.float32),
    }
    np.savez(tmp_path / "model.npz", **arrays)
    found = read_npz(tmp_path / "model.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_the_second_version_of_the_format_is_read(tmp_path: Path) -> None:
    data = np.arange(2, dtype=np.float32)
    write_zip(tmp_path / "model.npz", w=npy(described(), data.tobytes(), version=(2, 0)))
    np.testing.assert_array_equal(read_npz(tmp_path / "model.npz")["w"], data)


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        (b"", "w.npy is not an array"),
        (b"\x93NUMPY\x01", "w.npy is not an array"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "w.npy is not an array"),
        (npy("{'descr': "), "w.npy is not an array"),
        (npy("__import__('os').system('true')"), "w.npy is not an array"),
        (npy(described() + " " * 60_000), "w.npy is not an array"),
        (npy("[" * 5000), "w.npy is not an array"),
        (npy(described(dtype="|O"), bytes(16)), "w.npy is of object, not of numbers"),
        (npy(described(dtype="<U4"), bytes(32)), "w.npy is of <U4, not of numbers"),
        (npy(described(dtype="<c8"), bytes(16)), "w.npy is of complex64, not of numbers"),
        (npy(described(shape="(3,)"), bytes(8)), r"w.npy has shape \[3\], which its 8 bytes are not"),
        (npy(described(shape="(1,)"), bytes(8)), r"w.npy has shape \[1\], which its 8 bytes are not"),
        (npy(described(shape=f"({HUGE}, {HUGE})"), bytes(8)), "w.npy has shape .*, which its 8 bytes are not"),
        (npy(described(shape="(-1, -2)"), bytes(8)), r"w.npy has shape \[-1, -2\], which its 8 bytes are not"),
    ],
)
def test_an_array_that_is_none_is_refused(tmp_path: Path, contents: bytes, fault: str) -> None:
    write_zip(tmp_path / "model.npz", w=contents)
    with pytest.raises(ValueError, match=f"model.npz: {fault}"):
        read_npz(tmp_path / "model.npz")


def test_all_arrays_at_fault_are_named(tmp_path: Path) -> None:
    write_zip(tmp_path / "model.npz", a=b"", b=npy(described(dtype="|O"), bytes(16)))
    with pytest.raises(ValueError, match=r"a\.npy is not an array; b\.npy is of object"):
        read_npz(tmp_path / "model.npz")


def compressed(path: Path) -> None:
    np.savez_compressed(path, w=np.zeros(10))


def bomb(path: Path) -> None:
    """Its directory says that a stored file is larger than the archive."""
    np.savez(path, w=np.zeros(10, np.float32))
    contents = bytearray(path.read_bytes())
    place = contents.rindex(b"PK\x01\x02")
    contents[place + 20 : place + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(contents)


def doubled(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", npy(described(), bytes(8)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w.npy", npy(described(), bytes(8)))


def truncated(path: Path) -> None:
    np.savez(path, w=np.zeros(10))
    path.write_bytes(path.read_bytes()[:-30])


def flipped(path: Path) -> None:
    np.savez(path, w=np.zeros(10))
    contents = bytearray(path.read_bytes())
    contents[150] ^= 1
    path.write_bytes(contents)


def encrypted(path: Path) -> None:
    np.savez(path, w=np.zeros(10))
    contents = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        contents[contents.index(mark) + offset] |= 1
    path.write_bytes(contents)


def many(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range((1 << 16) + 1):
            archive.writestr(str(index), b"")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"no archive"), "is damaged"),
        (compressed, "is compressed; models are not"),
        (bomb, "is damaged: its arrays are larger than the file"),
        (doubled, "has two arrays of one name"),
        (truncated, "is damaged"),
        (flipped, "is damaged: Bad CRC-32"),
        (encrypted, "is damaged: .*encrypted"),
        (many, "has 65537 arrays; at most 65536 are read"),
        (lambda path: path.mkdir(), "is not a file"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[Path], object], fault: str) -> None:
    damage(tmp_path / "model.npz")
    with pytest.raises(ValueError, match=f"model.npz {fault}"):
        read_npz(tmp_path / "model.npz")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.npz"):
        read_npz(tmp_path / "model.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Exploding()], dtype=object), allow_pickle=True)
    write_zip(tmp_path / "model.npz", w=stream.getvalue())
    with pytest.raises(ValueError, match="is of object"):
        read_npz(tmp_path / "model.npz")


class Exploding:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)
