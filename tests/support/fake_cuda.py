"""A machine with CUDA that does not exist: its driver and its libraries."""

import ctypes
from collections.abc import Collection
from typing import Any

from dragoman_server.runtime.cuda import CudaDevice, CudaSystem

_NO_DEVICE = 100
_ATTRIBUTES = {75: 0, 76: 1}  # places in the compute capability, by their numbers in cuda.h


class FakeDriver:
    """The functions of libcuda that are called.

    Args:
        devices: of the machine, numbered from 0.
        version: of its interface.
        init_code: what cuInit gives where there are devices.
    """

    def __init__(self, *devices: CudaDevice, version: int = 13_000, init_code: int = 0) -> None:
        self._devices, self._version = devices, version
        self._init_code = init_code if devices else _NO_DEVICE

    def cuDriverGetVersion(self, version: Any) -> int:
        version.contents.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._init_code

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name.contents.value = b"CUDA_ERROR_UNKNOWN" if code == 999 else None
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        if self._init_code:
            return 3  # not initialised
        count.contents.value = len(self._devices)
        return 0

    def cuDeviceGet(self, handle: Any, number: int) -> int:
        handle.contents.value = 10 + number  # a handle is no number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = self._devices[handle.value - 10].name.encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, num_bytes: Any, handle: ctypes.c_int) -> int:
        num_bytes.contents.value = self._devices[handle.value - 10].num_bytes
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        device = self._devices[handle.value - 10]
        value.contents.value = device.compute_capability[_ATTRIBUTES[attribute]]
        return 0


def fake_cuda(driver: FakeDriver | None, *, missing: Collection[str] = (), log: list[str] | None = None) -> CudaSystem:
    """A machine with ONNX Runtime for CUDA.

    Args:
        driver: that is installed; None where there is none.
        missing: libraries that are not there.
        log: is told of all that is loaded.
    """
    done = [] if log is None else log

    def load(name: str) -> Any:
        done.append(name)
        if name in missing or (name == "libcuda.so.1" and driver is None):
            raise OSError(f"{name}: not found")
        return driver

    return CudaSystem(lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"], lambda: done.append("preload"), load)
