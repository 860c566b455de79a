"""Whether gRPC can use a certificate: its BoringSSL does not know all that can be read with `cryptography`.

gRPC tells of that nowhere: it goes on with the certificate before, lets all handshakes fail, or leaves out those
authorities that come after one that it does not understand. So it is tried, on a port of this machine that nobody else
knows and that is closed a few milliseconds later.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

_HOST = "127.0.0.1"
_TIMEOUT_SECONDS = 10.0


class UnusableError(Exception):
    """gRPC cannot use it; the message says why, as far as is known."""


def try_pair(key: bytes, chain: Sequence[bytes]) -> None:
    """Holds a handshake.

    Args:
        key: in PEM form.
        chain: its certificate, and those between it and that of an authority, each in PEM form.

    Raises:
        UnusableError: it fails.
        OSError: it could not be tried.
    """
    with _server() as server:
        port = _listen(server, grpc.ssl_server_credentials([(key, b"".join(chain))]))
        server.start()
        try:
            _shake_hands(port)
        except (OSError, ssl.SSLError) as error:  # whose connection gRPC closes, by the way
            raise UnusableError(_reason(error)) from error


def try_authority(key: bytes, chain: Sequence[bytes], authority: bytes) -> None:
    """Lets gRPC read a certificate that others are held against.

    Args:
        key: of a pair that can be used, in PEM form.
        chain: likewise.
        authority: in PEM form.

    Raises:
        UnusableError: it does not.
    """
    with _server() as server:
        _listen(server, grpc.ssl_server_credentials([(key, b"".join(chain))], authority, True))


@contextlib.contextmanager
def _server() -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        try:
            yield server
        finally:
            server.stop(None).wait()


def _listen(server: grpc.Server, credentials: grpc.ServerCredentials) -> int:
    with socket.create_server((_HOST, 0)):
        pass  # else what gRPC says of a machine without ports or descriptors would be taken for the certificate's fault
    try:
        return server.add_secure_port(f"{_HOST}:0", credentials)
    except RuntimeError as error:
        raise UnusableError("it cannot be read") from error


def _shake_hands(port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # gRPC is tried here, and not what this machine finds safe
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((_HOST, port), timeout=_TIMEOUT_SECONDS) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.recv(1)  # gRPC's first words: its side of the handshake is over, too


def _reason(error: Exception) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)).lower().replace("_", " ")
