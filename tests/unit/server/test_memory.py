import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from dragoman_server.runtime.memory import _filled_regions, memory_limit, use_huge_pages, zeros

HUGE = 2 << 20

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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is another one")
def test_large_arrays_are_zero_and_count_for_the_limit() -> None:
    array = zeros((2, HUGE))
    assert not array.any()
    array[1] = 1.0
    assert array.sum() == HUGE
    with memory_limit(16 << 20), pytest.raises(OSError, match="allocate memory"):
        zeros((1 << 30,), "uint8")
