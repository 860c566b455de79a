"""Certificates that are replaced under load: `python -m benchmarks.faults.rotation`.

A server with mutual TLS has the default model. Callers translate, stream and exchange through the SDK on connections
that last, and others make a client, translate and close it, again and again. Meanwhile the certificate and key of the
server are replaced, one file after the other, with as little as nothing in between. No call may fail, and every answer
must be that from before, to the last bit. The exit code is 1 where that does not hold.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.certificates import Authority
from benchmarks.faults.fleet import fleet
from benchmarks.faults.traffic import Traffic
from benchmarks.settings import SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, read_sentences
from dragoman import AsyncClient, Client

_LANGUAGES: Final[Any] = {"source": SOURCE_LANGUAGE, "target": TARGET_LANGUAGE}
_TIMEOUT_SECONDS: Final = 60.0
_SECONDS_PER_LOOK: Final = 0.1
_PATIENCE_SECONDS: Final = 30.0  # until a certificate must be in use


def main(
    rotations: Annotated[int, typer.Option(min=1, help="How often the certificate and key are replaced.")] = 100,
    callers: Annotated[int, typer.Option(min=2, help="Callers of each kind: unary, stream, exchange.")] = 2,
    newcomers: Annotated[int, typer.Option(min=2, help="Callers that make a client for each call.")] = 4,
) -> None:
    """Replace certificates under load, and say what callers noticed."""
    with tempfile.TemporaryDirectory() as name:
        folder, authority = Path(name), Authority()
        (folder / "ca.pem").write_bytes(authority.certificate)
        authority.issue().save(folder, "server")
        certificate, key = authority.issue("caller").save(folder, "caller")
        variables = {"TLS": folder / "ca.pem", "CLIENT_CERTIFICATE": certificate, "CLIENT_KEY": key}
        os.environ |= {f"DRAGOMAN_{name}": str(path) for name, path in variables.items()}
        options = {"certificate": "server.pem", "key": "server.key", "client-ca": "ca.pem"}
        flags = [text for option, file in options.items() for text in (f"--tls-{option}", str(folder / file))]
        with fleet(1, *flags) as [replica]:
            traffic, fresh = Traffic(read_sentences(SENTENCES), replica.address), _Newcomers(replica.address)
            started = time.monotonic()

            def rotate() -> None:
                with fresh.coming(newcomers):
                    for _ in range(rotations):
                        pair = authority.issue()
                        pair.save(folder, "server")
                        _await(replica.address, pair.certificate, folder)

            traffic.run(replica.address, callers, rotate, {})
            print(f"{rotations} certificates, {time.monotonic() - started:.0f} s")
            for kind, record in traffic.records.items():
                print(f"  {record.described(kind)}")
            print(f"  new clients {fresh.num_done:7} calls, {fresh.failures.total()} failed")
            for what, count in fresh.failures.most_common():
                print(f"    {count:5} x {what}")
            is_clean = not fresh.failures and all(record.is_clean for record in traffic.records.values())
    raise typer.Exit(0 if is_clean else 1)


def _await(address: str, certificate: bytes, folder: Path) -> None:
    """Returns when new connections get the certificate."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "caller.pem", folder / "caller.key")
    context.set_alpn_protocols(["h2"])
    expected, end = ssl.PEM_cert_to_DER_cert(certificate.decode()), time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end:
        with (
            socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            if connection.getpeercert(binary_form=True) == expected:
                return
        time.sleep(_SECONDS_PER_LOOK)
    raise RuntimeError("the server does not take up a new certificate")


class _Newcomers:
    """Callers that come with a client of their own for each call.

    Attributes:
        num_done: calls that were answered.
        failures: of the others, how many of each kind.
    """

    def __init__(self, address: str) -> None:
        self.num_done, self.failures = 0, Counter[str]()
        self._address = address
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def coming(self, number: int) -> Iterator[None]:
        """So many at a time, half of them async."""
        threads = [threading.Thread(target=self._repeat, args=(index % 2 == 0,)) for index in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _repeat(self, is_async: bool) -> None:
        while not self._is_over.is_set():
            try:
                if is_async:
                    asyncio.run(self._call_async())
                else:
                    with Client(self._address, timeout=_TIMEOUT_SECONDS) as client:
                        client.translate("Good morning.", **_LANGUAGES)
            except Exception as error:
                with self._lock:
                    self.failures[f"{type(error).__name__}: {error}"[:200]] += 1
            else:
                with self._lock:
                    self.num_done += 1

    async def _call_async(self) -> None:
        async with AsyncClient(self._address, timeout=_TIMEOUT_SECONDS) as client:
            await client.translate("Good morning.", **_LANGUAGES)


if __name__ == "__main__":
    typer.run(main)
