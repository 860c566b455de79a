import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.service.translate import Translator
from dragoman_server.text.tokenizer import TextCodec
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS
from support.pivot import Leg
from support.server_parts import FakeEngine, tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def tokenizer(bundle: Bundle) -> TextCodec:
    return bundle.tokenizer


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def registry(bundle: Bundle, engine: FakeEngine) -> Registry:
    return Registry.of(Model(bundle, engine))


@pytest.fixture
def translator(registry: Registry) -> Iterator[Translator]:
    translator = Translator(registry, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)
    yield translator
    translator.close()


@pytest.fixture
def first(bundle: Bundle) -> Leg:
    """The first of two models that a text goes through."""
    return Leg.of(bundle, "de", "en", lambda text: f"E{text}")


@pytest.fixture
def second(bundle: Bundle) -> Leg:
    """The second."""
    return Leg.of(bundle, "en", "es", lambda text: f"S{text}")


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
