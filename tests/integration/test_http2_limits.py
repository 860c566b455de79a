"""What a caller may take of HTTP/2: header fields, streams, and connections that do nothing."""

import asyncio
import socket
import struct
from collections.abc import Sequence

import grpc
import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.wire import server as server_module
from support.server_parts import CONFIG, RunningServer, running_server

_CHECK = "/grpc.health.v1.Health/Check"
_SETTINGS, _MAX_STREAMS, _MAX_HEADER_BYTES = 4, 3, 6


async def outcome(server: RunningServer, metadata: Sequence[tuple[str, str]]) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CHECK)
        call = check(b"", metadata=grpc.aio.Metadata(*metadata), timeout=30)
        return await call.code(), await call.details() or ""


async def test_metadata_has_one_limit_beyond_which_every_call_is_refused(server: RunningServer) -> None:
    for num_bytes in (9_000, 15_000):  # gRPC's default would refuse some of these
        for _ in range(10):
            assert (await outcome(server, [("x-text", "a" * num_bytes)]))[0] is grpc.StatusCode.OK
    for metadata in (
        [("x-text", "a" * 17_000)],
        [("x-text", "a" * 65_536)],
        [("authorization", f"Bearer {'secret' * 11_000}")],
        [(f"x-{number}", "a") for number in range(10_000)],
    ):
        code, details = await outcome(server, metadata)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "secret" not in details
        assert not details or details.startswith("received metadata size exceeds ")
    assert (await outcome(server, []))[0] is grpc.StatusCode.OK


def settings(address: str) -> dict[int, int]:
    """What the server says of itself when a caller connects."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection, connection.makefile("rb") as frames:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, _SETTINGS, 0, 0))
        head = frames.read(9)
        assert head[3] == _SETTINGS
        return dict(struct.iter_unpack(">HI", frames.read(int.from_bytes(head[:3], "big"))))


async def test_a_connection_has_a_bounded_number_of_streams(server: RunningServer) -> None:
    said = await asyncio.to_thread(settings, server.address)
    assert said[_MAX_STREAMS] == 10_000
    assert said[_MAX_HEADER_BYTES] == 16_384


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("_HANDSHAKE_TIMEOUT_MS", b""),
        ("_HANDSHAKE_TIMEOUT_MS", b"PRI * HT"),
        ("_MAX_IDLE_MS", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBI", 0, 0, _SETTINGS, 0, 0)),
    ],
)
async def test_a_connection_that_does_nothing_is_closed(
    limit: str, sent: bytes, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, limit, 500)
    async with running_server(bundle, monkeypatch, capsys, CONFIG) as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await reader.read()  # until the server closes it
        writer.close()
        assert (await outcome(server, []))[0] is grpc.StatusCode.OK
