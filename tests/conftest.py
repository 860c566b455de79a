from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from dragoman_export.bundle.parity import Comparison
    from dragoman_export.checkpoint import Checkpoint
    from dragoman_server.bundle.bundle import Bundle
    from dragoman_server.bundle.manifest import Precision

# PyTorch reads it when it is imported. The matrices of tests are too small for more than one thread, the last bits of a
# training depend on the number, and `make test` has a process on every CPU already.
os.environ["OMP_NUM_THREADS"] = "1"

# No test asserts on time, which on a busy machine means nothing.
settings.register_profile("dragoman", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dragoman")

# Imports are inside the fixtures, so that tests that need no model do not wait for torch.


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    """A model of random weights, see `support.tiny_model`."""
    from support.tiny_model import random_checkpoint

    return random_checkpoint()


@pytest.fixture(scope="session")
def tiny_exports(
    tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, tuple[Bundle, Comparison]]:
    """The tiny model exported at every precision, and how it compared with PyTorch (fp32 over 200 sentences)."""
    from dragoman_export.bundle.writer import export
    from support.tiny_model import random_sources

    folder = tmp_path_factory.mktemp("bundles")
    sources = random_sources(tiny_checkpoint, 200)
    return {
        "fp32": export(tiny_checkpoint, folder / "fp32", "fp32", sources),
        "int8": export(tiny_checkpoint, folder / "int8", "int8", sources[:40], calibration=sources[:40]),
        "fp16": export(tiny_checkpoint, folder / "fp16", "fp16", sources[:40]),
    }


@pytest.fixture(scope="session")
def tiny_bundles(tiny_exports: dict[Precision, tuple[Bundle, Comparison]]) -> dict[Precision, Bundle]:
    """The tiny model's bundle at every precision. Shared by all tests: to change one, copy its folder."""
    return {precision: bundle for precision, (bundle, _) in tiny_exports.items()}


@pytest.fixture(scope="session")
def default_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """Folders of the default model: int8 as it is shipped, fp32 exported from the checkpoint in the repository."""
    from dragoman_export.bundle.sources import read_sources
    from dragoman_export.bundle.writer import export
    from dragoman_export.checkpoint import Checkpoint
    from dragoman_server.bundle.bundle import embedded_bundle

    checkpoint = Checkpoint.load(Path(__file__).parent.parent / "models" / "default")
    folder = tmp_path_factory.mktemp("default") / "fp32"
    export(checkpoint, folder, "fp32", read_sources(checkpoint, (), 20))
    return {"fp32": folder, "int8": embedded_bundle()}
