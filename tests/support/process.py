"""A real `dragoman-server` process on free ports."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_READY = re.compile(
    r"serving .* on (\S+)(?: with (?:mutual )?TLS)?, metrics on ([^\s,]+)(?:, administration on (\S+).*)?\n"
)
MAIN = "from dragoman_server.__main__ import main; main()"


@dataclass(frozen=True)
class ServerProcess:
    """`address` of the service, `metrics_url` and, with a repository, `admin_address` as the server printed them."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    admin_address: str | None
    line: str
    """That says what is served, as it was printed."""

    def terminate(self) -> int:
        """SIGTERM; waits for the end and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def server_process(bundle: Path | None, *options: str, program: str = MAIN) -> Iterator[ServerProcess]:
    """Yields when the server has printed that it serves; kills it at the end if it still runs.

    Without `bundle` the options must say what it serves, and it has an address for administration.
    `program` is Python that runs the server, for those who want a fault in it.
    """
    addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    models = ["--admin-listen", "127.0.0.1:0"] if bundle is None else ["--model", str(bundle)]
    trust = () if "--trust-bundles" in options else ("--trust-bundles",)  # a trial takes a second
    command = [sys.executable, "-c", program, *models, *addresses, *options, *trust]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready = _READY.fullmatch(line)
            assert ready, "the server did not start"
            address, metrics_url, admin_address = ready.groups()
            yield ServerProcess(process, address, metrics_url, admin_address, line)
        finally:
            process.kill()
