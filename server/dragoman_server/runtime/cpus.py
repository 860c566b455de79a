"""How many CPUs this process may use: a container's quota is often less than the machine has."""

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


def _quotas(root: Path) -> Iterator[float]:
    """The quota in CPUs of each control group that this process is in, ancestors included."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _self_and_ancestors(mount, group):
                limit, _, period = _read(folder / "cpu.max").partition(" ")
                if limit not in ("", "max"):
                    yield float(limit) / float(period)
        elif "cpu" in controllers.split(","):  # version 1
            for folder in _self_and_ancestors(mount / "cpu", group):
                limit = _read(folder / "cpu.cfs_quota_us")
                if limit and not limit.startswith("-"):  # -1: unlimited
                    yield float(limit) / float(_read(folder / "cpu.cfs_period_us"))


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
