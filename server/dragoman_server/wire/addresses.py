"""Addresses to listen at."""

import errno
import socket

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
