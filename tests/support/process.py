"""A real `dragoman-server` process on free ports."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerProcess:
    """`address` of the service and `metrics_url` as the server printed them."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str

    def terminate(self) -> int:
        """SIGTERM; waits for the end and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def server_process(bundle: Path | None, *options: str) -> Iterator[ServerProcess]:
    """Yields when the server has printed that it serves; kills it at the end if it still runs."""
    command = [sys.executable, "-m", "dragoman_server", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    command += ["--model", str(bundle)] if bundle else []
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            ready = re.fullmatch(r"serving .* on (\S+), metrics on (\S+)\n", process.stdout.readline())
            assert ready, "the server did not start"
            yield ServerProcess(process, ready[1], ready[2])
        finally:
            process.kill()
