"""Processes that peers run in, and how to talk to them.

A worker is a script that says {"version": ...} when it is ready. Then it answers lines of JSON, {"sources": ...} by
{"targets": ...}, both ids. Piping costs well under a millisecond a batch.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    name: str
    process: "subprocess.Popen[str]"
    version: str

    def ask(self, **request: Any) -> list[list[int]]:
        """The targets that answer a request.

        Raises:
            RuntimeError: the worker has ended; what it wrote to stderr says why.
        """
        targets: list[list[int]] = _exchange(self.name, self.process, request)["targets"]
        return targets


@contextlib.contextmanager
def running(name: str, python: str | Path, script: Path, *folders: Path, **variables: str) -> Iterator[Worker]:
    """Starts a script as a worker and waits until it is ready.

    Args:
        name: what errors call it.
        python: that runs it.
        script: the worker.
        folders: its arguments.
        variables: of its environment, beside those of this process.

    Raises:
        RuntimeError: it does not start.
    """
    # Without -P the script would find our modules in place of those of the standard library.
    command = [python, "-P", script, *folders]
    environment = {**os.environ, **variables}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Worker(name, process, _answer(name, process)["version"])
        finally:
            process.kill()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # something is left that it has not read
                process.stdin.close()


def _exchange(name: str, process: "subprocess.Popen[str]", request: Mapping[str, Any]) -> Any:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # then there is no answer either
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return _answer(name, process)


def _answer(name: str, process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} has ended with exit code {process.wait()}")
    return json.loads(line)
