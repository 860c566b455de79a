"""Programs and packages of these tests' own, which `make test-cluster` installs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".venv-cluster/bin"
NODE = ROOT / "tests/cluster/node_modules/.bin"


def program(path: Path) -> str:
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is missing: make test-cluster installs it")
    return str(path)


@pytest.fixture(scope="session")
def envoy() -> str:
    return program(PROGRAMS / "envoy")


@pytest.fixture(scope="session")
def kubectl() -> str:
    return program(PROGRAMS / "kubectl")


@pytest.fixture(scope="session")
def cluster_python() -> str:
    """The interpreter that has the schemas of Kubernetes."""
    return program(PROGRAMS / "python")


@pytest.fixture(scope="session")
def esbuild() -> str:
    return program(NODE / "esbuild")
