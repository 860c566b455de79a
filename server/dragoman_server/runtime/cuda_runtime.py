"""Memory of GPUs, by the CUDA runtime that ONNX Runtime has loaded.

ONNX Runtime's own values take theirs from an arena that doubles and is never given back.
"""

import ctypes
import threading
from functools import cache
from typing import Any

from numpy.typing import NDArray

from dragoman_server.errors import DeviceLostError

_LIBRARY = "libcudart.so.13"
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_TO_DEVICE, _TO_HOST = 1, 2  # of cudaMemcpyKind
_RELAXED = 2  # of cudaStreamCaptureMode
_DEFAULT_STREAM = None

_this_thread = threading.local()


def use_device(number: int) -> None:
    """Has the calling thread use a device, and lets it do so while other threads capture CUDA graphs.

    ONNX Runtime captures in the mode that forbids all other threads to take up memory or to copy it meanwhile, and
    breaks the capture where one does, unless that thread has said that it takes care of itself.

    Raises:
        DeviceLostError: the device cannot be used any more.
    """
    _call("cudaSetDevice", number)  # each time: ONNX Runtime sets it, too
    if not hasattr(_this_thread, "is_relaxed"):
        # What stands in for CUDA in tests has no captures to disturb.
        if hasattr(_library(), "cudaThreadExchangeStreamCaptureMode"):
            _call("cudaThreadExchangeStreamCaptureMode", ctypes.pointer(ctypes.c_int(_RELAXED)))
        _this_thread.is_relaxed = True


def allocate(number: int, num_bytes: int) -> int:
    """The address of so many bytes of a device, all zero.

    Raises:
        MemoryError: it has not as many.
        DeviceLostError: the device cannot be used any more.
    """
    use_device(number)
    pointer = ctypes.c_void_p()
    _call("cudaMalloc", ctypes.pointer(pointer), ctypes.c_size_t(max(1, num_bytes)))
    assert pointer.value is not None
    _call("cudaMemset", pointer, 0, ctypes.c_size_t(num_bytes))
    _call("cudaStreamSynchronize", _DEFAULT_STREAM)
    return pointer.value


def free(number: int, pointer: int) -> None:
    """Gives back what `allocate` gave; of a device that is lost there is nothing to give."""
    try:
        use_device(number)
        _call("cudaFree", ctypes.c_void_p(pointer))
    except DeviceLostError:
        pass


def memory_info(number: int) -> tuple[int, int]:
    """Bytes of a device that are free, and all that it has.

    Raises:
        DeviceLostError: the device cannot be used any more.
    """
    use_device(number)
    free_bytes, num_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cudaMemGetInfo", ctypes.pointer(free_bytes), ctypes.pointer(num_bytes))
    return free_bytes.value, num_bytes.value


def copy_to_device(number: int, pointer: int, array: NDArray[Any]) -> None:
    """Copies an array, in C order; the device has it when this returns.

    Raises:
        DeviceLostError: the device cannot be used any more.
    """
    use_device(number)
    size = ctypes.c_size_t(array.nbytes)
    _call("cudaMemcpy", ctypes.c_void_p(pointer), ctypes.c_void_p(array.ctypes.data), size, _TO_DEVICE)
    _call("cudaStreamSynchronize", _DEFAULT_STREAM)  # the copy may be on its way still


def copy_to_host(number: int, pointer: int, array: NDArray[Any]) -> None:
    """Fills an array, in C order.

    Raises:
        DeviceLostError: the device cannot be used any more.
    """
    use_device(number)
    size = ctypes.c_size_t(array.nbytes)
    _call("cudaMemcpy", ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(pointer), size, _TO_HOST)


def require_device(number: int) -> None:
    """Raises DeviceLostError where the device computes nothing any more, as after an error in a kernel."""
    use_device(number)
    _call("cudaStreamSynchronize", _DEFAULT_STREAM)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _call(function: str, *arguments: Any) -> None:
    library = _library()
    if code := getattr(library, function)(*arguments):
        text = f"{function}: {library.cudaGetErrorString(code).decode(errors='replace')}"
        library.cudaGetLastError()  # which forgets an error that only this call had
        raise MemoryError(text) if code == _OUT_OF_MEMORY else DeviceLostError(text)
