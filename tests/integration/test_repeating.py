"""What the server does again and again: a fault in it is told, and not its end."""

import asyncio
import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.certificates import Authority
from dragoman_server import backend
from dragoman_server.access.tokens import Tokens
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import AccessOptions
from dragoman_server.registry.registry import Registry
from dragoman_server.repeating import repeating
from dragoman_server.wire import tls
from support.server_parts import CONFIG, running_server


async def test_what_fails_is_told_once_while_it_fails_alike_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    faults = ["a", "a", "b", None, "b", None]
    is_over = asyncio.Event()

    async def do() -> None:
        if not faults:
            is_over.set()
        elif (fault := faults.pop(0)) is not None:
            raise RuntimeError(fault)

    task = asyncio.create_task(repeating("the work", 0.0, do))
    await is_over.wait()
    task.cancel()
    said = [(record.getMessage(), str(record.exc_info and record.exc_info[1])) for record in caplog.records]
    assert said == [("the work failed, and goes on", fault) for fault in ("a", "b", "b")]


@pytest.mark.parametrize(
    ("owner", "method", "what"),
    [
        (tls.Certificates, "look", "the look at the certificate"),
        (Tokens, "update", "the look at the tokens"),
        (Registry, "give_back_memory", "the heartbeat"),
    ],
)
async def test_the_server_goes_on_with_what_fails(
    owner: type,
    method: str,
    what: str,
    tmp_path: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate, key = Authority().issue().save(tmp_path, "server")
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"alice sha256:{hashlib.sha256(b'a').hexdigest()}\n")
    access = AccessOptions(tls_certificate=certificate, tls_key=key, tokens=tokens)
    for module, name in ((tls, "_SECONDS_PER_LOOK"), (backend, "_SECONDS_PER_LOOK_AT_TOKENS")):
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(backend, "_SECONDS_PER_HEARTBEAT", 0.01)
    calls: list[object] = []

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise LookupError("a fault that nobody thought of")

    monkeypatch.setattr(owner, method, fail)
    async with running_server(bundle, monkeypatch, capsys, replace(CONFIG, access=access)):
        while len(calls) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == [f"{what} failed, and goes on"]
