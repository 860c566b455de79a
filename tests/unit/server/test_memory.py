import ctypes
import mmap
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from dragoman_server.runtime.memory import _filled_regions, memory_limit, use_huge_pages, zeros

HUGE = 2 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is another one")

SMAPS = """\
557be31e7000-557be35e9000 rw-p 00000000 00:00 0                          [heap]
Size:               4104 kB
KernelPageSize:        4 kB
Rss:                4000 kB
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                  12 kB
7f1000000000-7f1000800000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                8192 kB
7f2000000000-7f2000800000 r--p 00000000 fe:00 260386                     /usr/lib/a.so
Size:               8192 kB
Rss:                8192 kB
7f3000000000-7f3000800000 rw-p 00000000 fe:00 260387                     /usr/lib/b.so
Size:               8192 kB
Rss:                8192 kB
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]
Size:               8192 kB
Rss:                8192 kB
"""


def test_what_is_filled_is_moved_and_neither_files_nor_stacks_are() -> None:
    assert list(_filled_regions(SMAPS)) == [
        (0x557BE31E7000, 0x557BE35E9000),
        (0x7F1000000000, 0x7F1000800000),
    ]


def _huge_bytes(address: int) -> int:
    regions = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?AnonHugePages: +(\d+) kB$", _smaps(), re.MULTILINE)
    return next(1024 * int(size) for begin, end, size in regions if int(begin, 16) <= address < int(end, 16))


def _smaps() -> str:
    return Path("/proc/self/smaps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are those of Linux")
def test_memory_in_use_lies_on_huge_pages_and_holds_what_it_held() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system has no huge pages")
    block = mmap.mmap(-1, 4 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = (ctypes.c_char * len(block)).from_buffer(block)
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = start // mmap.PAGESIZE % 251
    before = block[:]
    use_huge_pages()
    assert block[:] == before
    if not _huge_bytes(ctypes.addressof(view) + HUGE):
        pytest.skip("the kernel is older than 6.1, or had no huge page left: it follows the advice later")


@LINUX
def test_large_arrays_are_zero_and_count_for_the_limit() -> None:
    array = zeros((2, HUGE))
    assert not array.any()
    array[1] = 1.0
    assert array.sum() == HUGE
    with memory_limit(16 << 20), pytest.raises(OSError, match="allocate memory"):
        zeros((1 << 30,), "uint8")


def limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def on_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@LINUX
def test_others_are_not_limited_in_the_arrays_they_need() -> None:
    with memory_limit(16 << 20):
        arrays = list[object]()
        on_another_thread(lambda: arrays.extend(zeros((1 << 27,), "uint8") for _ in range(4)))
        assert len(arrays) == 4
        with pytest.raises(OSError, match="allocate memory"):
            zeros((1 << 27,), "uint8")


@LINUX
@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_a_limit_lasts_until_the_last_has_left(first_to_leave: int) -> None:
    before = limit()
    contexts = ExitStack(), ExitStack()
    for context in contexts:
        context.enter_context(memory_limit(1 << 30))
    both = limit()
    contexts[first_to_leave].close()
    assert both - limit() == 1 << 30
    contexts[1 - first_to_leave].close()
    assert limit() == before


@LINUX
def test_a_limit_is_no_higher_than_it_was() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    low = 1 << 40
    resource.setrlimit(resource.RLIMIT_DATA, (low, hard))
    try:
        with memory_limit(1 << 41):
            assert limit() == low
        assert limit() == low
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@LINUX
def test_a_thread_that_hangs_leaves_no_limit_behind() -> None:
    before = limit()
    with memory_limit(1 << 30, max_seconds=0.01):
        for _ in range(3000):
            if limit() == before:
                break
            time.sleep(0.01)
        with memory_limit(1 << 29):
            assert limit() != before
    assert limit() == before
