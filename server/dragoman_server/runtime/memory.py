"""What is done about memory that Python, NumPy and ONNX Runtime would keep, or take too much of."""

import contextlib
import ctypes
import math
import mmap
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

# Of an array, from where on it has pages of its own.
_LARGE_ARRAY_BYTES = 1 << 20


def empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array whose memory the system gets back with it, where it is large: the allocator would keep some of it."""
    num_bytes = 4 * math.prod(shape)
    if num_bytes < _LARGE_ARRAY_BYTES:
        return np.empty(shape, np.float32)
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.float32).reshape(shape)


def give_back_memory() -> None:
    """Has the allocator return what is free, which glibc keeps where large arrays of many sizes come and go."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def shrinking_run() -> ort.RunOptions:
    """Options of a run of a session that gives its memory back at its end."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


@contextlib.contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """Lets no allocation succeed that makes this process larger by more than `num_bytes`.

    A graph could ask for all the memory there is, and the kernel end any process for it.
    """
    if sys.platform != "linux":  # elsewhere this limit is another one
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    kilobytes = re.search(r"^VmData:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert kilobytes is not None
    limit = 1024 * int(kilobytes[1]) + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
