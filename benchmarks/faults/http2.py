"""A caller that gRPC's own library cannot be: HTTP/2 frames by hand, which may promise room and never read."""

import socket
import struct
from types import TracebackType
from typing import Self

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _WINDOW_UPDATE = 0, 1, 3, 4, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4
_CANCEL = 8
_LARGEST_WINDOW = 2**31 - 1


class Http2Caller:
    """A connection whose flow control lets the server send gigabytes.

    Args:
        address: HOST:PORT.
        receive_bytes: of the socket's buffer; None is the system's choice.
    """

    def __init__(self, address: str, receive_bytes: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._authority = address
        self._next_stream = 1
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((host, int(port)))
        self.socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW))
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535))
        )
        self.socket.recv(9, socket.MSG_PEEK)  # the server's settings, which are only acknowledged once they are there
        self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))

    def call(self, method: str) -> int:
        """Begins a call; returns the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": self._authority,
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(
            bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self.socket.sendall(_frame(_HEADERS, _END_HEADERS, stream, block))
        return stream

    def send(self, stream: int, message: bytes, *, is_last: bool = False) -> None:
        """Sends a request of a call; blocks where the server does not read."""
        data = b"\0" + struct.pack(">I", len(message)) + message
        self.socket.sendall(_frame(_DATA, _END_STREAM * is_last, stream, data))

    def reset(self, stream: int) -> None:
        """Cancels a call."""
        self.socket.sendall(_frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))

    def close(self) -> None:
        """Leaves the server."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
