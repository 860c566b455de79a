"""What a machine with a GPU will run, from start to end, on one without: `python tests/gpu/rehearse.py OUTPUT`.

The tests compute with the CPU's provider. The benchmark runs twice: tiny, on the CPU, with its peers; and at full size
over the stub of `support.cuda_stub`, which computes nothing, so that parity certificates are not replayed and no figure
means anything. Exits with 1 if something fails.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = [str(ROOT / name) for name in ("client", "server", "export", "tests", ".")]
sys.path[:0] = FOLDERS

from support.cuda_stub import build_driver, harness, packages_without  # noqa: E402

# Of every process that runs over the stub.
WITHOUT_REPLAY = """
import dragoman_server.registry.model as model
model.replay = lambda bundle, runner: 0.0
"""


def run(what: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> bool:
    """Whether it succeeds."""
    print(f"-- {what}", flush=True)
    environment = {"PYTHONPATH": os.pathsep.join(FOLDERS), **os.environ, **(variables or {})}
    code = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=False).returncode
    print(f"-- {what}: exit code {code}", flush=True)
    return code == 0


def main(output: Path) -> int:
    """Runs everything, whatever fails."""
    tests, benchmark = ["-m", "pytest", "-m", "gpu", "tests/gpu"], ["-m", "benchmarks.gpu", "--quick", "--output"]
    succeeded = [
        run("collecting the tests", [*tests, "--collect-only", "-q"]),
        run("the tests on the CPU", tests, {"GPU_TESTS_ON": "cpu"}),
        run("the benchmark on the CPU", [*benchmark, str(output / "cpu"), "--device", "cpu"]),
    ]
    if harness() is None:
        print("-- over the stub: left out, there is no environment with ONNX Runtime for CUDA")
    else:
        with tempfile.TemporaryDirectory() as folder:
            packages = packages_without(Path(folder))
            (packages / "sitecustomize.py").write_text(WITHOUT_REPLAY)
            path = os.pathsep.join([str(packages), *FOLDERS])
            variables = {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(build_driver(packages))}
            succeeded.append(run("the benchmark over the stub", [*benchmark, str(output / "stub")], variables))
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
