"""Memory that graphs for CUDA work in: that of a GPU, or, where they run on a CPU, the host's."""

from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from dragoman_server.runtime.memory import zeros


class Memory(NamedTuple):
    """Of which device."""

    kind: Literal["cpu", "cuda"]
    number: int = 0

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> "Buffer":
        """A buffer of zeros: a GPU's memory has what was there before, of which NaN would survive being masked."""
        return Buffer(self, zeros(shape, dtype))

    def copy(self, array: NDArray[Any]) -> "Buffer":
        """A buffer with these contents, in C order."""
        return Buffer(self, np.ascontiguousarray(array))


class Buffer:
    """An array in the memory of a device, bound by its address.

    Args:
        memory: where it is.
        array: what it holds at first; in the host's memory it is this array.
    """

    def __init__(self, memory: Memory, array: NDArray[Any]) -> None:
        self._memory = memory
        self._on_device = ort.OrtValue.ortvalue_from_numpy(array, *memory) if memory.kind == "cuda" else None
        self._on_host = array if memory.kind == "cpu" else np.empty(0, array.dtype)
        self.shape, self.dtype, self.num_bytes = array.shape, array.dtype, array.nbytes

    @property
    def pointer(self) -> int:
        """Its address, which stays."""
        return int(self._on_host.ctypes.data if self._on_device is None else self._on_device.data_ptr())

    def write(self, array: NDArray[Any]) -> None:
        """Replaces the contents by an array of the same shape and type; a GPU has them when this returns."""
        if self._on_device is None:
            self._on_host[...] = array
        else:
            self._on_device.update_inplace(array)

    def read(self) -> NDArray[Any]:
        """The contents; in the host's memory they are those of any later time, too."""
        return self._on_host if self._on_device is None else self._on_device.numpy()

    def bind(self, bind: Any, name: str, shape: tuple[int, ...], element_type: Any = None, offset: int = 0) -> None:
        """Has a binding use this memory, which must stay for as long.

        Args:
            bind: `bind_input` or `bind_output` of the binding.
            name: of the graph's input or output.
            shape: of the part that is used.
            element_type: that it is read as; None is its own.
            offset: of the part, in bytes.
        """
        bind(name, *self._memory, self.dtype if element_type is None else element_type, shape, self.pointer + offset)
