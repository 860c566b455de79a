"""The GPU that is measured: what it is, and how fast its memory is read."""

import platform
import subprocess
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.plan import LeftOutError, Plan
from benchmarks.statistics import Summary
from dragoman_server.runtime.cuda import find_devices

_NUM_RUNS = 10


def described(plan: Plan) -> dict[str, str]:
    """The card, its driver and the libraries, as far as they say.

    Raises:
        StartError: there is no GPU that the server could use.
    """
    facts = {"card": platform.processor() or platform.machine(), "driver": ""}
    if plan.device == "cuda":
        facts = {"card": find_devices([0])[0].name, "driver": _driver_version()}
    return facts | {"CUDA of PyTorch": str(torch.version.cuda or "")}


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "nvidia-smi does not say"


def bandwidth(plan: Plan) -> dict[str, Summary]:
    """GB/s (10^9 bytes) by what was measured: a copy within the memory, which reads and writes, and a sum, which reads.

    Raises:
        LeftOutError: this PyTorch has no CUDA.
    """
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LeftOutError("the bandwidth is measured with PyTorch, and torch.cuda.is_available() is False")
    num_bytes = (16 << 20) if plan.is_tiny else (2 << 30)
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=plan.device)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], object]) -> float:
        _synchronize(plan)
        started = time.perf_counter()
        work()
        _synchronize(plan)
        return time.perf_counter() - started

    found = {}
    works: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: target.copy_(source), 2),
        "sum": (source.sum, 1),
    }
    for name, (work, num_passes) in works.items():
        seconds(work)
        rates = [num_passes * num_bytes / seconds(work) / 1e9 for _ in range(_NUM_RUNS)]
        found[name] = Summary.of(rates)
    return found


def _synchronize(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()
