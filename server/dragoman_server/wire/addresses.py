"""Addresses to listen at."""

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_address

from dragoman_server.errors import StartError
from dragoman_server.option_texts import parse_address


def check_free(name: str, address: str) -> None:
    """Tries to listen, since gRPC does not tell why it could not, and logs what users need not see.

    A name can stand for several addresses, of which the machine need not have all; but one
    that is in use by another server is an error, as callers may reach either of the two.

    Raises:
        StartError: with the operating system's reason.
    """
    host, port = parse_address(name, address)
    faults = []
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    for family, kind, protocol, _, socket_address in candidates:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As gRPC does: connections of an earlier server may still be in TIME_WAIT.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(socket_address)
        except OSError as error:
            faults.append(error)
    for fault in faults:
        if fault.errno == errno.EADDRINUSE or len(faults) == len(candidates):
            raise _cannot_listen(address, fault) from fault


def _cannot_listen(address: str, error: OSError) -> StartError:
    return StartError(f"cannot listen on {address}: {error.strerror or error}")


def with_port(address: str, port: int) -> str:
    """The address with the port that was taken, in place of 0."""
    return f"{address.rpartition(':')[0]}:{port}"


def exposure(addresses: Iterable[str], *, is_encrypted: bool, knows_callers: bool) -> str | None:
    """A sentence for the log where a server that other machines reach lacks protection.

    Args:
        addresses: that it listens on.
        is_encrypted: whether it has TLS.
        knows_callers: whether callers need a token or a certificate.
    """
    lacks = []
    if not is_encrypted:
        lacks.append("without TLS others can read and change what is sent (--tls-certificate, --tls-key)")
    if not knows_callers:
        lacks.append("without tokens whoever reaches it may call (--tokens)")
    reached = [address for address in addresses if not _is_loopback(address)] if lacks else []
    if not reached:
        return None
    return f"{' and '.join(reached)} can be reached from other machines: {'; '.join(lacks)}"


def _is_loopback(address: str) -> bool:
    host, port = parse_address("listen", address)
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return all(ip_address(str(info[4][0]).partition("%")[0]).is_loopback for info in infos)
