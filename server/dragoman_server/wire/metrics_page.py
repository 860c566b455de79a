"""/metrics over HTTP, on few threads of its own, so that it answers even when calls do not."""

import contextlib
import gzip
import logging
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dragoman_server.errors import StartError
from dragoman_server.metrics import Metrics
from dragoman_server.option_texts import parse_address
from dragoman_server.wire.addresses import with_port

logger = logging.getLogger(__name__)

_PATH = "/metrics"
_METHODS = ("GET", "HEAD")

# Each has a thread. One more takes the place of the oldest, so that those who send nothing keep nobody out.
_MAX_CONNECTIONS = 16
# From being accepted to having the whole page.
_MAX_CONNECTION_SECONDS = 10.0

_SECONDS_WITHOUT_DESCRIPTORS = 0.1


class MetricsPage:
    """The page, from construction to `close`.

    Attributes:
        url: of the page, with the port that was taken.
    """

    def __init__(self, metrics: Metrics, listen: str) -> None:
        """Starts to listen at HOST:PORT; port 0 takes a free one.

        Raises:
            StartError: the address cannot be listened on.
        """
        try:
            self._server = _Server(metrics.registry, *parse_address("metrics_listen", listen))
        except OSError as error:
            raise StartError(f"cannot listen on {listen} for metrics: {error.strerror or error}") from error
        self.url = f"http://{with_port(listen, self.port)}{_PATH}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="dragoman-metrics", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # there are no more threads
            self._server.server_close()
            raise

    @property
    def port(self) -> int:
        """The port that is listened on."""
        port: int = self._server.server_address[1]
        return port

    def close(self) -> None:
        """Stops listening, and ends what is under way."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingTCPServer):
    """Answers a bounded number of connections at a time, for a bounded time each."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.registry = registry
        self._places = threading.Semaphore(_MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._accepted: dict[socket.socket, float] = {}  # when, on the monotonic clock; oldest first
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = infos[0]
        super().__init__((str(address[0]), port), _Handler)

    # -- on the thread that accepts ------------------------------------------------------------

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # The process may have no file descriptors left. It would be asked again at once, and again.
            time.sleep(_SECONDS_WITHOUT_DESCRIPTORS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with self._lock:
                oldest = next(iter(self._accepted), None)
            if oldest is not None:
                _hang_up(oldest)
            self._places.acquire()
        with self._lock:
            self._accepted[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called twice a second."""
        latest = time.monotonic() - _MAX_CONNECTION_SECONDS
        with self._lock:
            late = [connection for connection, accepted in self._accepted.items() if accepted < latest]
        for connection in late:
            _hang_up(connection)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            left = list(self._accepted)
        for connection in left:
            _hang_up(connection)

    # -- on the thread of a connection ---------------------------------------------------------

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._accepted.pop(request, None)
        super().shutdown_request(request)
        self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # so it looks when the other side is gone, or was hung up on
            logger.exception("the metrics page failed")


def _hang_up(connection: socket.socket) -> None:
    """Ends what its thread waits for."""
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: _Server

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # what the base class calls, by the method of the request
            return self._respond
        raise AttributeError(name)

    def _respond(self) -> None:
        url = urlsplit(self.path)
        if url.path != _PATH:
            self._send(HTTPStatus.NOT_FOUND, f"There is only {_PATH} here.\n".encode())
        elif self.command not in _METHODS:
            self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"", {"Allow": ", ".join(_METHODS)})
        else:
            names = parse_qs(url.query).get("name[]")
            registry = self.server.registry.restricted_registry(names) if names else self.server.registry
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            page, headers = encode(registry), {"Content-Type": content_type}
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                page, headers["Content-Encoding"] = gzip.compress(page), "gzip"
            self._send(HTTPStatus.OK, page, headers)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""

    def version_string(self) -> str:
        return "dragoman"
