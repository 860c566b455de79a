"""A Ray on this machine alone that serves a configuration of Ray Serve: `python -m benchmarks.ray_host FILE`.

It runs in an environment that has Ray. It prints a line when the applications run, and ends when its stdin does.
"""

import sys
import time

import ray
from ray import serve
from ray.serve.scripts import cli

_PATIENCE_SECONDS = 240.0
_READY = "the applications run"


def main(file: str) -> None:
    """Serves until stdin ends.

    Raises:
        RuntimeError: an application does not start.
    """
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    cli(["run", "--non-blocking", file], standalone_mode=False)
    try:
        _wait()
        print(_READY, flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


def _wait() -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < give_up:
        applications = serve.status().applications.values()
        states = {str(application.status.value) for application in applications}
        if states == {"RUNNING"}:
            return
        if "DEPLOY_FAILED" in states:
            raise RuntimeError(" ".join(application.message for application in applications))
        time.sleep(0.1)
    raise RuntimeError("the applications do not run")


if __name__ == "__main__":
    main(sys.argv[1])
