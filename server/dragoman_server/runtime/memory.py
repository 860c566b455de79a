"""What is done about memory that Python, NumPy and ONNX Runtime would keep, or take too much of."""

import contextlib
import ctypes
import math
import mmap
import re
import resource
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

_HUGE_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of Linux; the latter since 6.1

# Of an array, from where on it has pages of its own.
_LARGE_ARRAY_BYTES = 1 << 20


@cache
def libc() -> ctypes.CDLL:
    """The C library, opened once: each object of this class is garbage that waits for the collector."""
    return ctypes.CDLL(None)


def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An array whose memory the system gets back with it, where it is large: the allocator would keep some of it.

    What is never used takes up none, to the size of a page.
    """
    num_bytes = np.dtype(dtype).itemsize * math.prod(shape)
    if num_bytes < _LARGE_ARRAY_BYTES:
        return np.zeros(shape, dtype)
    # Private, so that `memory_limit` counts it; on large pages, as NumPy has its own.
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without large pages
            buffer.madvise(_MADV_HUGEPAGE)
    return np.frombuffer(buffer, dtype).reshape(shape)


def give_back_memory() -> None:
    """Has the allocator return what is free, which glibc keeps where large arrays of many sizes come and go."""
    with contextlib.suppress(AttributeError):  # another C library
        libc().malloc_trim(0)


def use_huge_pages() -> None:
    """Puts what is in memory on pages of 2 MiB, where the system has these: to be called when weights were loaded.

    A step of few rows does little but read all weights once, and to look up the addresses of small pages takes up to a
    sixth of its time.
    """
    if sys.platform != "linux":
        return
    madvise = libc().madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end in _filled_regions(Path("/proc/self/smaps").read_text()):
        begin = -(-begin // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        end = end // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
        if begin < end:
            for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):  # what cannot be done is left as it is
                madvise(begin, end - begin, advice)
    give_back_memory()  # a large page fills the holes, too, that the allocator holds ready


def _filled_regions(smaps: str) -> Iterator[tuple[int, int]]:
    """Addresses, from and to, of what is private, without a file, and more than half in memory.

    So stacks, and what the allocator holds ready, are left out: huge pages would fill them.
    """
    pattern = r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n(?:.*\n)*?Rss: +(\d+) kB$"
    for match in re.finditer(pattern, smaps, re.MULTILINE):
        begin, end = int(match[1], 16), int(match[2], 16)
        if 2 * 1024 * int(match[3]) > end - begin:
            yield begin, end


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
