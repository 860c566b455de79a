"""NumPy's archives of arrays (`.npz`), read without trust: every size is checked against the file before it is used."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dragoman_export.reading import listed, require_file

_MAX_ARRAYS = 1 << 16
_MAX_HEADER_BYTES = 10_000  # of one array; NumPy's own limit
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an archive by name. They are numbers; nothing is unpickled.

    The archive must be uncompressed, as `numpy.savez` and Marian write it: no file in it can be larger than it is
    itself.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, compressed, or holds anything but arrays of numbers; names all arrays at fault.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            contents = {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    faults = []
    for name, array in contents.items():
        try:
            arrays[name.removesuffix(".npy")] = _array(array)
        except ValueError as error:
            faults.append(f"{name} {error}")
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    return arrays


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > _MAX_ARRAYS:
        raise ValueError(f"{path} has {len(members)} arrays; at most {_MAX_ARRAYS} are read")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"{path} is compressed; models are not")
    if len({member.filename for member in members}) < len(members):
        raise ValueError(f"{path} has two arrays of one name")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError(f"{path} is damaged: its arrays are larger than the file")


def _array(contents: bytes) -> NDArray[Any]:
    """The array in the contents of a `.npy` file, which it shares the memory of."""
    stream = io.BytesIO(contents)
    try:
        read_header = _READERS[npy.read_magic(stream)]
        shape, is_fortran, dtype = read_header(stream, max_header_size=_MAX_HEADER_BYTES)
    except Exception as error:  # damaged headers raise almost anything
        raise ValueError("is not an array") from error
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ValueError(f"is of {dtype}, not of numbers")
    num_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or num_bytes != len(contents) - stream.tell():
        raise ValueError(f"has shape {list(shape)}, which its {len(contents) - stream.tell()} bytes are not")
    return np.frombuffer(contents, dtype, offset=stream.tell()).reshape(shape, order="F" if is_fortran else "C")
