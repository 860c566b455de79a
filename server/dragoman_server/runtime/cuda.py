"""The CUDA devices that ONNX Runtime can use here; where it can use none, what is missing.

ONNX Runtime itself falls back to the CPU then, with lines in a log.
"""

import contextlib
import ctypes
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from dragoman_server.errors import StartError
from dragoman_server.runtime.cuda_session import PROVIDER

logger = logging.getLogger(__name__)

# What the provider is linked to, in the order of their own needs; of cuDNN it loads more when it has to.
_LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
_DRIVER = "libcuda.so.1"
_LEAST_VERSION = 13_000  # of the driver's interface: 1000 * major + 10 * minor
_INSTALL = "pip install '.[gpu]' in a checkout of Dragoman"
_CONTAINER = "a container needs the NVIDIA Container Toolkit on its host, and --gpus all"

# Of cuda.h.
_NO_DEVICE = 100
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class CudaDevice:
    """A GPU, as its driver describes it."""

    number: int
    """As CUDA counts, which knows only those in CUDA_VISIBLE_DEVICES where that is set."""

    name: str
    num_bytes: int
    """Size of its memory."""

    compute_capability: tuple[int, int]


def _preload() -> None:
    """Loads the libraries that are installed as Python packages, which the system's loader does not find."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it cannot load
        ort.preload_dlls(cuda=True, cudnn=True)
    for line in said.getvalue().splitlines():
        logger.debug("onnxruntime.preload_dlls: %s", line)


@dataclass(frozen=True)
class CudaSystem:
    """What is installed on this machine; tests make up others."""

    providers: Callable[[], Sequence[str]] = ort.get_available_providers
    preload: Callable[[], None] = _preload
    load: Callable[[str], Any] = ctypes.CDLL
    """Loads a shared library by its name, or raises OSError."""


def find_devices(numbers: Sequence[int], system: CudaSystem | None = None) -> tuple[CudaDevice, ...]:
    """The CUDA devices with these numbers, in this order.

    No CUDA context is created: nothing takes up memory on a device.

    Args:
        numbers: of devices, as CUDA counts.
        system: where they are looked for; None is this machine.

    Raises:
        StartError: which of these holds, and what to install: this ONNX Runtime is built for the CPU alone; there is no
            driver, or an old one; libraries of CUDA are missing; there is no device with one of these numbers.
    """
    system = system or CudaSystem()
    if PROVIDER not in system.providers():
        raise StartError(
            "The ONNX Runtime that is installed is the one for CPUs alone, and both are the same Python module: "
            f"pip uninstall onnxruntime onnxruntime-gpu, then {_INSTALL}."
        )
    driver = _driver(system)
    if missing := _missing_libraries(system):
        raise StartError(f"Libraries of CUDA 13 are missing, {', '.join(missing)}: {_INSTALL} brings them.")
    devices = _devices(driver)
    for number in numbers:
        if number >= len(devices):
            raise StartError(_absent(number, devices))
    return tuple(devices[number] for number in numbers)


def _driver(system: CudaSystem) -> Any:
    try:
        driver = system.load(_DRIVER)
    except OSError as error:
        raise StartError(
            f"There is no NVIDIA driver, as {_DRIVER} cannot be loaded ({error}): install driver R580 or newer; "
            f"{_CONTAINER}."
        ) from error
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.pointer(version))
    if version.value < _LEAST_VERSION:
        found = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise StartError(f"The NVIDIA driver is too old, for CUDA {found}: CUDA 13 needs driver R580 or newer.")
    if (code := driver.cuInit(0)) not in (0, _NO_DEVICE):
        raise StartError(
            f"The NVIDIA driver does not start, as cuInit says {_error_name(driver, code)}: see whether nvidia-smi "
            f"works; {_CONTAINER}."
        )
    return driver


def _missing_libraries(system: CudaSystem) -> list[str]:
    system.preload()
    missing = []
    for name in _LIBRARIES:
        try:
            system.load(name)
        except OSError as error:
            logger.debug("%s", error)
            missing.append(name)
    return missing


def _devices(driver: Any) -> list[CudaDevice]:
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.pointer(count))  # leaves 0 where cuInit has found no device
    return [_device(driver, number) for number in range(count.value)]


def _device(driver: Any, number: int) -> CudaDevice:
    handle, num_bytes, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.pointer(handle), number)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.pointer(num_bytes), handle)
    capability = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(capability, (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.pointer(value), attribute, handle)
    major, minor = (value.value for value in capability)
    return CudaDevice(number, name.value.decode(errors="replace"), num_bytes.value, (major, minor))


def _absent(number: int, devices: Sequence[CudaDevice]) -> str:
    named = ", ".join(f"{device.number} ({device.name})" for device in devices)
    there_are = f"those there are: {named}" if devices else "the driver knows none"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r:.200} and hides all others"
    return f"There is no CUDA device {number}; {there_are}{hidden}."


def _error_name(driver: Any, code: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.pointer(name))
    return name.value.decode() if name.value else f"error {code}"
