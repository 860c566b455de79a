"""How many CPUs and how much memory this process may use: a container's limits are often less than the machine has."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """How many threads may compute side by side: `cpu_allowance` rounded down, at least 1.

    One thread more than the quota has would make the kernel stop all of them for the rest of every scheduling period.
    """
    return max(1, int(cpu_allowance(root)))


def cpu_allowance(root: Path = Path("/")) -> float:
    """The CPUs that the affinity mask and the quota of the control groups allow; a quota may be a fraction of one.

    Args:
        root: where `proc` and `sys` are mounted; other than "/" only in tests.
    """
    quota = min(_quotas(root), default=math.inf)
    return min(quota, float(len(os.sched_getaffinity(0))))


def available_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that the machine has and the limits of the control groups allow.

    Args:
        root: as in `cpu_allowance`.
    """
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (
        _read(folder / ("memory.max" if is_version_2 else "memory.limit_in_bytes"))
        for folder, is_version_2 in _groups("memory", root)
    )
    return min([has, *(int(limit) for limit in limits if limit not in ("", "max"))])


def throttled_periods(root: Path = Path("/")) -> tuple[int, int]:
    """How many periods of a quota of CPU time have passed, and in how many of them the kernel stopped this process.

    Args:
        root: as in `cpu_allowance`.

    Returns:
        Those of the control group with the most, this process's own or an ancestor's; (0, 0) without a quota.
    """
    found = [(0, 0)]
    for folder, _ in _groups("cpu", root):
        counts = dict(line.split() for line in _read(folder / "cpu.stat").splitlines())
        found.append((int(counts.get("nr_periods", 0)), int(counts.get("nr_throttled", 0))))
    return max(found)


def resident_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that this process has; 0 where the system does not tell.

    Args:
        root: as in `cpu_allowance`.
    """
    fields = _read(root / "proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def _quotas(root: Path) -> Iterator[float]:
    """The quota in CPUs of each control group that this process is in, ancestors included."""
    for folder, is_version_2 in _groups("cpu", root):
        if is_version_2:
            limit, _, period = _read(folder / "cpu.max").partition(" ")
        else:
            limit, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if limit not in ("", "max", "-1"):  # -1: unlimited
            yield float(limit) / float(period)


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """The folder of each control group of this process, ancestors included, and whether it is of version 2."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            yield from ((folder, True) for folder in _self_and_ancestors(mount, group))
        elif controller in controllers.split(","):
            yield from ((folder, False) for folder in _self_and_ancestors(mount / controller, group))


def _self_and_ancestors(mount: Path, group: str) -> Iterator[Path]:
    # Inside a container the path may be that of the host, of which only the mount is visible:
    # folders that are not there are read as having no quota.
    folder = mount / group.lstrip("/")
    while folder.is_relative_to(mount):
        yield folder
        folder = folder.parent


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""  # not Linux, not mounted, or no controller: no limit from here
