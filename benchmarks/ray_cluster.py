"""The application of `deploy/ray` on a Ray of this machine, in an environment of its own."""

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.faults.proxy import free_ports

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = ROOT / ".venv-ray/bin/python"
"""Of the environment that has Ray."""

_FILE: Final = ROOT / "deploy/ray/dragoman.yaml"
_PATIENCE_SECONDS: Final = 240.0
_SECONDS_PER_LOOK: Final = 0.2
_REPLICA: Final = b"ray::ServeReplica:dragoman:"


@dataclass(frozen=True)
class Cluster:
    """`address` takes gRPC."""

    address: str
    process: subprocess.Popen[str]

    def replicas(self) -> list[int]:
        """The processes of the replicas."""
        return [pid for pid in _below(self.process.pid) if _title(pid).startswith(_REPLICA)]

    def kill(self) -> None:
        """Has the oldest replica end without a word."""
        os.kill(min(self.replicas()), signal.SIGKILL)

    def wait(self, num_replicas: int) -> None:
        """Returns when there are so many replicas.

        Raises:
            RuntimeError: they do not come.
        """
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while len(self.replicas()) < num_replicas:
            if time.monotonic() > give_up:
                raise RuntimeError(f"there are no {num_replicas} replicas")
            time.sleep(_SECONDS_PER_LOOK)


def configuration(num_replicas: int, most: int, args: Mapping[str, Any], port: int) -> dict[str, Any]:
    """`deploy/ray/dragoman.yaml` with few replicas, of a CPU each."""
    found: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    found["grpc_options"]["port"] = port
    found["http_options"]["port"] = 0
    (application,) = found["applications"]
    application["args"] = dict(args)
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": num_replicas, "max_replicas": most}
    deployment["ray_actor_options"] = {"num_cpus": 1}
    return found


@contextlib.contextmanager
def cluster(num_replicas: int, most: int | None = None, args: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """Yields when all replicas run; ends them with the context.

    Args:
        num_replicas: each with a CPU of Ray's two.
        most: replicas that there may be where there are many calls; None is no more.
        args: of the application.

    Raises:
        RuntimeError: it does not start.
    """
    (port,) = free_ports(1)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(configuration(num_replicas, most or num_replicas, args or {}, port), file)
        file.flush()
        command = [str(PYTHON), "-m", "benchmarks.ray_host", file.name]
        # Else Ray makes a token and keeps it in the user's home.
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
        environment = os.environ | secret | {"RAY_USAGE_STATS_ENABLED": "0"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if not any("applications run" in line for line in process.stdout):
                    raise RuntimeError("Ray Serve did not start")
                yield Cluster(f"127.0.0.1:{port}", process)
            finally:
                process.stdin.close()


def _below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _below(child)


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
