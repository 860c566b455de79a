"""Calls of the compiled kernels, in each of their variants."""

import ctypes
import platform
from pathlib import Path

from dragoman_server.kernels import LIBRARY


def variants() -> list[str]:
    """Those that this machine can run."""
    if platform.machine() != "x86_64":
        return ["base"]
    flags = Path("/proc/cpuinfo").read_text().split()
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    needed = {"sse2": set(), "avx2": {"avx2", "fma"}, "avx512": avx512, "vnni": {*avx512, "avx512_vnni"}}
    return [name for name, features in needed.items() if features <= set(flags)]


def call(kernel: str, variant: str, arguments: ctypes.Structure, first: int, end: int) -> None:
    """Computes the items `first` to `end`, not included, of a kernel's work."""
    function = getattr(ctypes.CDLL(str(LIBRARY)), f"{kernel}_{variant}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None
    function(ctypes.byref(arguments), first, end)
