"""A server in this process with an engine that echoes, and who calls it; modules with a real model have their own."""

from collections.abc import AsyncIterator

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import Config
from dragoman_server.text.tokenizer import TextCodec
from support.caller import Caller
from support.server_parts import CONFIG, RunningServer, running_server, tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def tokenizer(bundle: Bundle) -> TextCodec:
    return bundle.tokenizer


@pytest.fixture
def config() -> Config:
    """Of `server`; modules have their own where they need other limits."""
    return CONFIG


@pytest.fixture
async def server(
    bundle: Bundle, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[RunningServer]:
    async with running_server(bundle, monkeypatch, capsys, config) as running:
        yield running


@pytest.fixture
async def caller(server: RunningServer) -> AsyncIterator[Caller]:
    caller = Caller(server.address)
    yield caller
    await caller.channel.close()
