"""The process that tries a bundle, which `trial.Trials` starts. It prints what is wrong, or ends with 0."""

import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from dragoman_server.bundle.manifest import WEIGHTS_FILE
from dragoman_server.errors import StartError
from dragoman_server.registry.model import Model
from dragoman_server.registry.trial import EXIT_REFUSED, Task
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.machine import available_cpus, available_memory
from dragoman_server.runtime.memory import libc, limit_memory

# Of the weights, which sessions pack anew, there are some copies for a moment; all else together takes less than this.
_MAX_WEIGHT_COPIES = 4
_MAX_BYTES = 4 << 30

_PR_SET_PDEATHSIG = 1  # of Linux
_FIRST_TO_GO = "1000"  # for the kernel, where it has no memory left


def main() -> NoReturn:
    """Tries the bundle of the task on standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    _limit(task)
    try:
        Model.open(Path(task.folder), task.options, Hardware(task.options), version=task.version)
    except StartError as error:
        print(error, flush=True)
        os._exit(EXIT_REFUSED)
    os._exit(0)  # without taking down anything, as all of it ends


def _limit(task: Task) -> None:
    """Bounds what the process takes, and has it end with the one that waits for it."""
    if sys.platform == "linux":
        libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    if os.getppid() != task.parent:
        os._exit(EXIT_REFUSED)
    weights = Path(task.folder) / WEIGHTS_FILE
    num_weight_bytes = weights.stat().st_size if weights.is_file() else 0
    limit_memory(min(available_memory(), _MAX_BYTES + _MAX_WEIGHT_COPIES * num_weight_bytes))
    seconds = int(task.max_seconds * available_cpus()) + 1  # of all threads together
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
