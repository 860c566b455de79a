"""Copies of rows in many arrays at a time: in one call of compiled code, where NumPy would take hundreds."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_server.kernels import LIBRARY


class _RowArrays(ctypes.Structure):
    """`RowArrays` of kernels.h."""

    _fields_ = (
        ("first", ctypes.POINTER(ctypes.c_void_p)),
        *((name, ctypes.c_size_t) for name in ("count", "heads", "head_bytes", "position_bytes")),
    )


class RowArrays:
    """Arrays [rows, heads, capacity, width] of one shape and type, contiguous. Keeps them."""

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = tuple(arrays)
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        _, heads, _, _ = arrays[0].shape
        _, head_bytes, position_bytes, _ = arrays[0].strides
        self._described = _RowArrays(pointers, len(arrays), heads, head_bytes, position_bytes)

    def move(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Copies the first positions of rows to others, in all arrays.

        Args:
            moves: from which row, to which, and how many positions; none reads a row that another writes.
        """
        if moves:
            table = np.array(moves, np.int64)
            _move_rows()(ctypes.byref(self._described), table.ctypes.data, len(moves))


@cache
def _move_rows() -> Any:
    function = ctypes.CDLL(str(LIBRARY)).move_rows
    function.argtypes, function.restype = [ctypes.POINTER(_RowArrays), ctypes.c_void_p, ctypes.c_size_t], None
    return function
