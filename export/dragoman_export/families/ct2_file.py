"""The binary file of CTranslate2's models, `model.bin`: named variables, read where they are and never run.

Source: `ctranslate2/specs/model_spec.py`, which writes it, and `src/models/model.cc`, which reads it.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_export.reading import listed, require_file

MODEL_FILE = "model.bin"
# Version 4 is the first that names the types of its variables, version 6 the first beside a config.json.
_VERSIONS = range(4, 7)
FIRST_WITH_CONFIG = 6
_BFLOAT16 = np.dtype("V2")  # which NumPy does not have
_TYPES = (*map(np.dtype, ("<f4", "i1", "<i2", "<i4", "<f2")), _BFLOAT16)
_MAX_RANK = 2
# Hundreds of layers have fewer.
_MAX_VARIABLES = 1 << 16
_ROWS = 4096  # that are checked at a time
_INT16_SCALE = np.float32(1000)  # of int16 weights that have none
_MIN_SCALE = 1e-28  # 2^31 divided by it is a float32


class Variable(NamedTuple):
    """A variable as it is stored."""

    array: NDArray[Any]
    scale: NDArray[Any] | None  # by which the numbers of each row, or all, were multiplied before they were rounded

    @property
    def is_number(self) -> bool:
        """Whether it is one number, which is a setting and no weight."""
        return self.array.ndim == 0

    def floats(self) -> NDArray[np.float32]:
        """The numbers as float32, of the same shape."""
        if self.array.dtype.kind == "i" and not self.is_number:
            scale = np.array(_INT16_SCALE) if self.scale is None else _floats(self.scale)
            return (self.array / (scale[:, None] if scale.ndim else scale)).astype(np.float32, copy=False)
        return _floats(self.array)


@dataclass(frozen=True)
class ModelFile:
    """The contents of a file: settings, weights, and which name stands for which variable."""

    path: Path
    version: int
    spec: str  # the class of the model, such as TransformerSpec
    revision: int
    variables: Mapping[str, Variable]  # also under their other names

    def number(self, name: str, default: float | None = None) -> float:
        """A setting, which is a number.

        Raises:
            ValueError: it is missing and there is no default, or it is no number.
        """
        variable = self.variables.get(name)
        if variable is None and default is not None:
            return default
        if variable is None or not variable.is_number:
            raise ValueError(f"{self.path} has no number {name}")
        return float(variable.floats())

    def text(self, name: str, default: str) -> str:
        """A setting in words, as older files have them."""
        variable = self.variables.get(name)
        return default if variable is None else variable.array.tobytes().decode(errors="replace")


def read_model_file(path: Path) -> ModelFile:
    """Reads a file; the weights stay in it until they are used.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, of another version, or has weights that are no finite numbers.
    """
    require_file(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    with path.open("rb") as file:
        cursor = _Cursor(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    version = cursor.integer("I")
    if version not in _VERSIONS:
        raise ValueError(
            f"{path} is not a model of CTranslate2 that can be read: it begins with {version}, which must be a version "
            f"from {_VERSIONS[0]} to {_VERSIONS[-1]}"
        )
    spec, revision = cursor.string(), cursor.integer("I")
    stored = {}
    for name, array in cursor.variables():
        if name in stored:
            raise ValueError(f"{path} has the variable {name} twice")
        stored[name] = array
    others: dict[str, str] = {}
    for alias, name in cursor.aliases():
        if name not in stored or alias in stored or others.get(alias, name) != name:
            raise ValueError(f"{path} has the name {alias} for {name}, which is no variable or not its only meaning")
        others[alias] = name
    if cursor.num_left:
        raise ValueError(f"{path} goes on for {cursor.num_left} bytes after its end")
    variables = {name: Variable(array, stored.get(f"{name}_scale")) for name, array in stored.items()}
    _check(path, variables)
    are_scales = {f"{name}_scale" for name in stored} & stored.keys()
    named = {name: variable for name, variable in variables.items() if name not in are_scales}
    named |= {alias: variables[name] for alias, name in others.items() if name not in are_scales}
    return ModelFile(path, version, spec, revision, named)


class _Cursor:
    """A place in the file, up to which it has been read; nothing is read beyond its end."""

    def __init__(self, path: Path, contents: memoryview) -> None:
        self._path, self._contents, self._place = path, contents, 0

    @property
    def num_left(self) -> int:
        return len(self._contents) - self._place

    def integer(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]
        return value

    def string(self) -> str:
        contents = bytes(self._take(self.integer("H")))
        if not contents.endswith(b"\0"):
            raise ValueError(f"{self._path} is damaged: the text before byte {self._place} has no end")
        try:
            return contents[:-1].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path} is damaged: the text before byte {self._place} is not UTF-8") from error

    def variables(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for _ in range(self._count("variables")):
            name = self.string()
            rank = self.integer("B")
            if rank > _MAX_RANK:
                raise ValueError(f"{self._path}: {name} has {rank} axes; a Transformer has variables of at most two")
            shape = [self.integer("I") for _ in range(rank)]
            kind = self.integer("B")
            if kind >= len(_TYPES):
                raise ValueError(f"{self._path}: {name} has the type {kind}, which is not known")
            num_bytes, expected = self.integer("I"), math.prod(shape) * _TYPES[kind].itemsize
            if num_bytes != expected:
                raise ValueError(f"{self._path}: {name} has {num_bytes} bytes, but its shape {shape} takes {expected}")
            yield name, np.frombuffer(self._take(num_bytes), _TYPES[kind]).reshape(shape)

    def aliases(self) -> Iterator[tuple[str, str]]:
        for _ in range(self._count("other names")):
            yield self.string(), self.string()

    def _count(self, things: str) -> int:
        count = self.integer("I")
        if count > _MAX_VARIABLES:
            raise ValueError(f"{self._path} has {count} {things}; at most {_MAX_VARIABLES} are read")
        return count

    def _take(self, num_bytes: int) -> memoryview:
        if num_bytes > self.num_left:
            raise ValueError(
                f"{self._path} is cut off: {num_bytes} bytes are to follow byte {self._place}, but {self.num_left} do"
            )
        self._place += num_bytes
        return self._contents[self._place - num_bytes : self._place]


def _floats(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype == _BFLOAT16:  # the upper half of a float32
        return (array.view("<u2").astype("<u4") << 16).view("<f4")
    return array.astype(np.float32)


def _parts(array: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """The numbers as float32, some rows at a time: all at once would take as much memory as the model."""
    rows = np.atleast_1d(array)
    for begin in range(0, len(rows), _ROWS):
        yield _floats(rows[begin : begin + _ROWS])


def _check(path: Path, variables: Mapping[str, Variable]) -> None:
    faults = [f"{name} {fault}" for name, variable in variables.items() if (fault := _fault_of(variable))]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")


def _fault_of(variable: Variable) -> str | None:
    array, scale = variable
    if array.size == 0:
        return f"has shape {list(array.shape)}, which holds nothing"
    if array.dtype.kind != "i" and not all(np.isfinite(part).all() for part in _parts(array)):
        return "has NaN or infinite values"
    if scale is not None:
        if array.dtype.kind != "i":
            return "is not quantised, but has a scale"
        if scale.shape not in ((), array.shape[:1]) or scale.dtype.kind == "i":
            return f"has scales of shape {list(scale.shape)}, one number for each of its {len(array)} rows is needed"
        # Of a number below this, the quotient may be beyond float32.
        if not (_floats(scale) >= _MIN_SCALE).all():
            return f"has a scale below {_MIN_SCALE:g}"
    elif array.ndim == 2 and array.dtype.kind == "i" and array.dtype != np.int16:
        return "is quantised, but has no scale"
    return None
