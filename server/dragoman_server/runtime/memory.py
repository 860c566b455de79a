"""What is done about memory that Python, NumPy and ONNX Runtime would keep, or take too much of."""

import contextlib
import ctypes
import math
import mmap
import re
import resource
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
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
    _LIMIT.make_room(num_bytes)
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
def memory_limit(num_bytes: int, max_seconds: float = 60.0) -> Iterator[None]:
    """Lets no allocation succeed that makes this process larger by more than `num_bytes`.

    A graph could ask for all the memory there is, and the kernel end any process for it. The limit holds for all
    threads. Those outside of the context that call `zeros` raise it by as much; what else they allocate must be little
    beside `num_bytes`.

    Args:
        num_bytes: beside what others in such a context may allocate.
        max_seconds: the limit is lifted then, though the thread inside hangs, which would leave it to all others.
    """
    if sys.platform != "linux":  # elsewhere this limit is another one
        yield
        return
    share = _LIMIT.enter(num_bytes)
    timer = threading.Timer(max_seconds, _LIMIT.leave, (share,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _LIMIT.leave(share)


def limit_memory(num_bytes: int) -> None:
    """Lets no allocation succeed from now on that makes this process larger by more than `num_bytes`."""
    if sys.platform == "linux":
        _set_data_limit(_data_bytes() + num_bytes)


@dataclass(frozen=True, eq=False)  # each is another
class _Share:
    """What a thread inside of `memory_limit` may allocate."""

    thread: int
    num_bytes: int


class _DataLimit:
    """The limit of this process's memory (RLIMIT_DATA), while threads are inside of `memory_limit`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: set[_Share] = set()
        self._before = self._limit = 0  # what it was, and what it would be if it had not been lower

    def enter(self, num_bytes: int) -> _Share:
        """Begins to limit what the calling thread allocates."""
        share = _Share(threading.get_ident(), num_bytes)
        with self._lock:
            if not self._shares:
                self._before, _ = resource.getrlimit(resource.RLIMIT_DATA)
                self._limit = _data_bytes()
            self._shares.add(share)
            self._raise(num_bytes)
        return share

    def leave(self, share: _Share) -> None:
        """Ends it, once."""
        with self._lock:
            if share not in self._shares:
                return
            self._shares.remove(share)
            if self._shares:
                self._raise(-share.num_bytes)
            else:
                _set_data_limit(self._before)

    def make_room(self, num_bytes: int) -> None:
        """For what a thread allocates that is not limited."""
        if not self._shares:  # without the lock, which nearly nobody needs
            return
        with self._lock:
            if self._shares and all(share.thread != threading.get_ident() for share in self._shares):
                self._raise(num_bytes)

    def _raise(self, num_bytes: int) -> None:
        self._limit += num_bytes
        is_unlimited = self._before == resource.RLIM_INFINITY
        _set_data_limit(self._limit if is_unlimited else min(self._limit, self._before))


def _data_bytes() -> int:
    kilobytes = re.search(r"^VmData:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert kilobytes is not None
    return 1024 * int(kilobytes[1])


def _set_data_limit(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))


_LIMIT = _DataLimit()
