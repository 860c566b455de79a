"""A server whose standard files are closed, as some programs start others."""

import signal
import subprocess
import sys

import pytest

SERVER = (sys.executable, "-m", "dragoman_server", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


def started(closed: str, *options: str) -> subprocess.Popen[str]:
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *SERVER, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("form", ["console", "json"])
def test_without_stderr_it_serves_and_has_no_log(form: str) -> None:
    with started("2>&-", "--trust-bundles", "--log-format", form) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("serving ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert process.stdout.read() == ""  # no line of the log either
        finally:
            process.kill()


def test_without_any_it_ends_with_its_code() -> None:
    with started("<&- >&- 2>&-", "--listen", "nowhere") as process:
        assert process.wait(timeout=60) == 2
