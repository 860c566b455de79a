from collections.abc import Iterator

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.text.tokenizer import Tokenizer
from dragoman_server.translator import Translator
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
