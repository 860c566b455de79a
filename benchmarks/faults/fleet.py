"""Replicas of a server on fixed ports, each a process that can be killed, stopped and started again."""

import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

_ONE_THREAD = ("--lanes", "1", "--num-threads", "1")


class Replica:
    """A server process at an address of its own, from `start` on.

    Args:
        port: of the address; free between two processes.
        options: of the server.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, port: int, options: Sequence[str]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when it serves.

        Raises:
            RuntimeError: it does not start.
        """
        addresses = ["--listen", self.address, "--metrics-listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "dragoman_server", *addresses, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("serving "):
            raise RuntimeError(f"the server on {self.address} did not start")

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; returns the exit code, and the seconds until the end."""
        assert self._process is not None
        started = time.monotonic()
        self._process.terminate()
        code = self._process.wait()
        self.kill()
        return code, time.monotonic() - started

    def hang(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def fleet(num_replicas: int, *options: str) -> Iterator[list[Replica]]:
    """Replicas that serve the default model with a thread each, unless the options say otherwise; none is left."""
    ports = _lasting_ports(num_replicas)
    replicas = [Replica(port, [*_ONE_THREAD, *options]) for port in ports]
    with contextlib.ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.kill)
            replica.start()
        yield replicas


def _lasting_ports(number: int) -> list[int]:
    """Free ports that are free again when a server on them has been killed.

    The kernel gives ports from 32768 on to outgoing connections: one of whoever tries to reach the killed server could
    take the server's own.
    """
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == number:
            return ports
    raise RuntimeError("no ports are free")


def target(replicas: Sequence[Replica]) -> str:
    """One target of gRPC that stands for all of them."""
    return "ipv4:" + ",".join(replica.address for replica in replicas)
