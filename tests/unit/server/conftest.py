import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.service.translate import Translator
from dragoman_server.text.tokenizer import Tokenizer
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS
from support.server_parts import FakeEngine, tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle.tokenizer_path)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def translator(bundle: Bundle, tokenizer: Tokenizer, engine: FakeEngine) -> Iterator[Translator]:
    manifest = bundle.manifest
    translator = Translator(manifest, bundle.resource_name, tokenizer, engine, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)
    yield translator
    translator.close()


@pytest.fixture
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    """A bundle of one's own, to be damaged."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, copy)
    return copy


@pytest.fixture
def int8_folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    """The same at int8, with calibrated activations."""
    copy = tmp_path / "int8"
    shutil.copytree(tiny_bundles["int8"].folder, copy)
    return copy
