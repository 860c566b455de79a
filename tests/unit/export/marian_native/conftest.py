import shutil
from pathlib import Path

import pytest

from support.marian_native import write_native


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("native")).folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A model for one pair, to be changed."""
    return shutil.copytree(whole, tmp_path / "model")
