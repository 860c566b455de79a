"""The page over real sockets, in front of callers who send or read slowly, or not at all."""

import errno
import gzip
import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from socketserver import ThreadingTCPServer
from typing import Any

import pytest
from prometheus_client import Gauge

from dragoman_server.errors import StartError
from dragoman_server.metrics import Metrics
from dragoman_server.wire import metrics_page
from dragoman_server.wire.metrics_page import MetricsPage


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def page(metrics: Metrics) -> Iterator[MetricsPage]:
    with MetricsPage(metrics, "127.0.0.1:0") as page:
        yield page


def text_of(page: MetricsPage) -> str:
    with urllib.request.urlopen(page.url, timeout=30) as answer:
        return str(answer.read().decode())


def connect(page: MetricsPage) -> socket.socket:
    return socket.create_connection(("127.0.0.1", page.port), timeout=30)


def is_hung_up_on(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def num_threads() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def test_it_shows_the_metrics_until_it_is_closed(metrics: Metrics) -> None:
    metrics.observe_rejection("QUEUE_FULL")
    with MetricsPage(metrics, "127.0.0.1:0") as page:
        text = text_of(page)
    assert 'dragoman_rejected_total{reason="QUEUE_FULL"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    with pytest.raises(OSError, match="refused"):
        text_of(page)


def test_a_port_in_use_is_an_error(metrics: Metrics) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(StartError, match="for metrics: Address already in use"),
    ):
        MetricsPage(metrics, f"127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", "/metrics?a=b", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("GET", "/metrics/", 404),
        ("HEAD", "/nope", 404),
        ("POST", "/nope", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/metrics", 405),
        ("PATCH", "/metrics", 405),
        ("DELETE", "/metrics", 405),
        ("OPTIONS", "/metrics", 405),
        ("TRACE", "/metrics", 405),
        ("MADEUP", "/metrics", 405),
    ],
)
def test_there_is_one_path_to_read(page: MetricsPage, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == status
    assert answer.getheader("Allow") == ("GET, HEAD" if status == 405 else None)
    if status == 200:
        assert answer.getheader("Content-Type", "").startswith("text/plain; version=")
        assert int(answer.getheader("Content-Length", "")) > 1000
        assert len(body) == (0 if method == "HEAD" else int(answer.getheader("Content-Length", "")))


def test_some_metrics_can_be_asked_for(page: MetricsPage, metrics: Metrics) -> None:
    metrics.model("tiny")
    with urllib.request.urlopen(f"{page.url}?name[]=dragoman_num_requests_waiting", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    assert [line for line in lines if line[0] != "#"] == ['dragoman_num_requests_waiting{model="tiny"} 0.0']


def test_it_is_compressed_for_those_who_want_that(page: MetricsPage) -> None:
    request = urllib.request.Request(page.url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"dragoman_" in gzip.decompress(answer.read())


def test_hundreds_of_silent_connections_take_few_threads_and_keep_nobody_out(page: MetricsPage) -> None:
    silent = [connect(page) for _ in range(200)]
    for connection in silent[::2]:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: here\r\n")  # and no more
    assert num_threads() <= metrics_page._MAX_CONNECTIONS
    assert "dragoman_" in text_of(page)
    assert is_hung_up_on(silent[0])
    for connection in silent:
        connection.close()
    while num_threads():
        time.sleep(0.01)


@pytest.mark.parametrize("is_sending", [False, True])
def test_who_takes_too_long_to_ask_is_hung_up_on(
    page: MetricsPage, monkeypatch: pytest.MonkeyPatch, is_sending: bool
) -> None:
    monkeypatch.setattr(metrics_page, "_MAX_CONNECTION_SECONDS", 0.3)
    with connect(page) as connection:
        has_ended = threading.Event()

        def send_slowly() -> None:
            while not has_ended.wait(0.05):
                try:
                    connection.sendall(b"G")
                except OSError:
                    return

        if is_sending:
            threading.Thread(target=send_slowly).start()
        assert is_hung_up_on(connection)
        has_ended.set()


def test_who_does_not_read_the_page_is_hung_up_on(
    page: MetricsPage, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_page, "_MAX_CONNECTION_SECONDS", 0.3)
    large = Gauge("large", "More than fits into the buffers of a connection.", ("name",), registry=metrics.registry)
    for number in range(100):
        large.labels(f"{number}" * 100_000).set(1)
    with connect(page) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        while not num_threads():
            time.sleep(0.01)
        while num_threads():
            time.sleep(0.01)


def test_without_file_descriptors_it_does_not_spin(page: MetricsPage, monkeypatch: pytest.MonkeyPatch) -> None:
    num_tries = 0

    def accept(_: object) -> Any:
        nonlocal num_tries
        num_tries += 1
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(ThreadingTCPServer, "get_request", accept)
        with connect(page):
            while not num_tries:
                time.sleep(0.01)
            time.sleep(0.5)
            assert num_tries < 20
    assert "dragoman_" in text_of(page)
