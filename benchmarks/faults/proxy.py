"""Envoy with the configuration of `deploy/envoy`, before servers of this machine."""

import contextlib
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parents[2] / "deploy/envoy"
_SERVER: Final = """\
              - endpoint:
                  address:
                    socket_address: {address: dragoman-servers, port_value: 50051}
"""
_PATIENCE_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Proxy:
    """`address` takes gRPC, gRPC-Web and JSON; `metrics_address` is that of the page for Prometheus."""

    address: str
    metrics_address: str


def configuration(servers: Sequence[str], calls: int, admin: int, metrics: int) -> str:
    """`envoy.yaml` with other addresses.

    Args:
        servers: HOST:PORT of each.
        calls: the port that callers get.
        admin: that of administration.
        metrics: that of the page for Prometheus.
    """
    text = (_FOLDER / "envoy.yaml").read_text(encoding="utf-8")
    endpoints = ""
    for server in servers:
        host, _, port = server.rpartition(":")
        endpoints += _SERVER.replace("address: dragoman-servers", f"address: {host}").replace("50051", port)
    for old, new in (
        (_SERVER, endpoints),
        ("address: 0.0.0.0", "address: 127.0.0.1"),
        ("port_value: 8080", f"port_value: {calls}"),
        ("port_value: 9901", f"port_value: {admin}"),
        ("port_value: 9902", f"port_value: {metrics}"),
        ("/etc/envoy/", f"{_FOLDER}/"),
    ):
        if old not in text:
            raise ValueError(f"deploy/envoy/envoy.yaml has no {old!r} any more")
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def proxy(program: str, servers: Sequence[str]) -> Iterator[Proxy]:
    """Yields when Envoy takes calls and has looked at the health of the servers; ends it with the context.

    Args:
        program: Envoy's.
        servers: HOST:PORT of each.

    Raises:
        RuntimeError: it ended, or does not become ready.
    """
    calls, admin, metrics = free_ports(3)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(configuration(servers, calls, admin, metrics))
        file.flush()
        options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        with subprocess.Popen([program, *options, "-c", file.name]) as process:
            try:
                _wait(process, f"http://127.0.0.1:{metrics}/ready")
                yield Proxy(f"127.0.0.1:{calls}", f"127.0.0.1:{metrics}")
            finally:
                process.terminate()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Envoy did not become ready (exit code {process.poll()})")


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    with contextlib.ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in bound]
