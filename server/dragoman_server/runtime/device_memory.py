"""Memory that graphs for CUDA work in: that of a GPU, or, where they run on a CPU, the host's."""

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dragoman_server.runtime import cuda_runtime
from dragoman_server.runtime.memory import zeros


class Memory(NamedTuple):
    """Of which device."""

    kind: Literal["cpu", "cuda"]
    number: int = 0

    def use(self) -> None:
        """To be called before sessions are opened, run or closed on the device, by each thread that does so."""
        if self.kind == "cuda":
            cuda_runtime.use_device(self.number)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Where a session runs on the device.

        Raises:
            DeviceLostError: the run has failed, and so will all others.
        """
        self.use()
        try:
            yield
        except Exception:
            if self.kind == "cuda":
                cuda_runtime.require_device(self.number)
            raise


class Buffer:
    """An array of zeros in the memory of a device, bound by its address, and given back with the last reference.

    Args:
        memory: where it is.
        shape: of the array.
        dtype: of the array.

    Raises:
        MemoryError: the device has not as much.
        DeviceLostError: it cannot be used any more.
    """

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._memory, self.shape, self.dtype = memory, shape, np.dtype(dtype)
        self.num_bytes = math.prod(shape) * self.dtype.itemsize
        self._on_host: NDArray[Any] | None = None
        if memory.kind == "cpu":
            self._on_host = zeros(shape, dtype)
            self.pointer = int(self._on_host.ctypes.data)
        else:
            self.pointer = cuda_runtime.allocate(memory.number, self.num_bytes)
            weakref.finalize(self, cuda_runtime.free, memory.number, self.pointer).atexit = False

    def write(self, array: NDArray[Any]) -> None:
        """Puts an array of the same type at the beginning; a GPU has it when this returns."""
        if self._on_host is not None:
            self._on_host.reshape(-1)[: array.size] = array.reshape(-1)
        else:
            cuda_runtime.copy_to_device(self._memory.number, self.pointer, np.ascontiguousarray(array))

    def read(self) -> NDArray[Any]:
        """The contents; in the host's memory they are those of any later time, too."""
        if self._on_host is not None:
            return self._on_host
        array = np.empty(self.shape, self.dtype)
        cuda_runtime.copy_to_host(self._memory.number, self.pointer, array)
        return array

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


class Staging:
    """What runs are given, by name, in memory that the next run uses again."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._buffers: dict[str, Buffer] = {}

    def clear(self) -> None:
        """Gives the memory back."""
        self._buffers.clear()

    def bind(self, bind: Any, name: str, array: NDArray[Any]) -> None:
        """Puts an array there, and binds it; valid until the next of this name."""
        if name not in self._buffers or self._buffers[name].num_bytes < array.nbytes:
            self._buffers[name] = Buffer(self._memory, (2 * array.size,), array.dtype)
        self._buffers[name].write(array)
        self._buffers[name].bind(bind, name, array.shape)
