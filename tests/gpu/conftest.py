"""Tests that need a GPU: `make test-gpu`, or `python -m pytest -m gpu tests/gpu`.

Without one they are skipped, with what is missing as the reason. `GPU_TESTS_ON=cpu` rehearses them: see
`support.device_runs`.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.manifest import Precision
from dragoman_server.errors import StartError
from dragoman_server.runtime.cuda import find_devices
from support.device_runs import DEVICE, ROOT, Case
from support.tiny_model import random_checkpoint, random_sources

# Head sizes 32, 64 and 128, and layer norm before and after: what chooses kernels. The first two capacities of the pool
# are the same in all; the largest is no power of two.
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "head-32-post": {"d_model": 128, "num_heads": 4, "max_positions": 320},
    "head-64-pre": {"d_model": 256, "num_heads": 4, "max_positions": 320, "norm": "pre", "activation": "gelu"},
    "head-128-post": {"d_model": 256, "num_heads": 2, "max_positions": 320, "activation": "silu"},
}

_figures: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    # The packages are those of whatever machine has the GPU, and so are their warnings.
    config.addinivalue_line("filterwarnings", "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if missing := _missing():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=missing))


@cache
def _missing() -> str:
    """What keeps a GPU from being used; nothing where it can be."""
    if DEVICE == "cpu":
        return ""
    try:
        find_devices([0])
    except StartError as error:
        return str(error)
    return ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section(f"figures of {DEVICE}")
        for line in _figures:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tell() -> Callable[[str], None]:
    """Has a figure printed at the end of the run."""
    return _figures.append


@pytest.fixture(scope="session")
def open_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Precision], Case]]:
    """Exports a model and opens it on the device, once."""
    folder = tmp_path_factory.mktemp("bundles")

    @cache
    def open_(name: str, precision: Precision) -> Case:
        if name == "default":
            checkpoint = Checkpoint.load(ROOT / "models/default")
            sources = read_sources(checkpoint, (), 8)
        else:
            checkpoint = random_checkpoint(**RANDOM_MODELS[name])
            sources = random_sources(checkpoint, 8)
        path = folder / f"{name}-{precision}"
        export(checkpoint, path, precision, sources)
        return Case.open(checkpoint, path)

    yield open_
    open_.cache_clear()


@pytest.fixture
def case(request: pytest.FixtureRequest, open_case: Callable[[str, Precision], Case]) -> Case:
    """Of `indirect` parameters: name and precision."""
    if DEVICE == "cpu" and request.param[1] == "bf16":
        pytest.skip("ONNX Runtime has no kernels of bf16 for CPUs")
    return open_case(*request.param)


@pytest.fixture
def default_case(open_case: Callable[[str, Precision], Case]) -> Case:
    """The default model at fp16."""
    return open_case("default", "fp16")
