"""Real servers that are killed, hang or stop while clients use them."""

import contextlib
import signal
import time
import urllib.request
from collections.abc import Iterator

import pytest

from dragoman import Client, _channel
from dragoman_server.bundle.bundle import embedded_bundle
from support.process import ServerProcess, server_process

# Takes a server some seconds with a beam, so that it does not end before its server.
TEXT = "The old man walked slowly to the market, where he bought bread and apples for his children. " * 40
TEXTS = [f"There are {number} cats in the garden." for number in range(300)]


@pytest.fixture
def servers() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with contextlib.ExitStack() as stack:
        options = ("--lanes", "1", "--num-threads", "1")
        first, second = (stack.enter_context(server_process(embedded_bundle(), *options)) for _ in range(2))
        yield first, second


def both(servers: tuple[ServerProcess, ServerProcess]) -> str:
    return "ipv4:" + ",".join(server.address for server in servers)


@pytest.mark.timeout(120)
def test_streams_and_exchanges_survive_the_kill_of_a_server(servers: tuple[ServerProcess, ServerProcess]) -> None:
    first, second = servers
    with Client(second.address, timeout=60) as client:
        whole = client.translate(TEXT, source="en", target="fr", beam_size=4)
        singly = client.translate(TEXTS, source="en", target="fr")
    with Client(both(servers), timeout=60) as client:
        client.translate(["a"] * 300, source="en", target="fr")  # both are connected now
        # Calls take turns on the servers, so one of each kind is on the first.
        streams = [client.stream(TEXT, source="en", target="fr", beam_size=4) for _ in range(2)]
        exchanges = [client.exchange(TEXTS, source="en", target="fr") for _ in range(2)]
        pieces = [[next(stream)] for stream in streams]
        results = [[next(exchange)] for exchange in exchanges]
        first.process.kill()
        for stream, own_pieces in zip(streams, pieces, strict=True):
            own_pieces += stream
            assert "".join(own_pieces) == whole.text
            assert stream.result.score == whole.score
        for exchange, own_results in zip(exchanges, results, strict=True):
            own_results += exchange
            assert [index for index, _ in sorted(own_results, key=lambda pair: pair[0])] == list(range(len(TEXTS)))
            assert all(getattr(result, "text", result) == singly[index].text for index, result in own_results)


@pytest.mark.timeout(120)
def test_a_server_that_hangs_is_left(
    servers: tuple[ServerProcess, ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_channel, "KEEPALIVE_TIME_MS", 1000)
    monkeypatch.setattr(_channel, "_PING_TIMEOUT_MS", 1000)
    first, _ = servers
    with Client(both(servers), timeout=60) as client:
        client.translate(["a"] * 300, source="en", target="fr")
        first.process.send_signal(signal.SIGSTOP)
        for _ in range(4):
            assert client.translate("Good morning.", source="en", target="fr").text
        stream = client.stream("Good morning.", source="en", target="fr")
        assert "".join(stream) == stream.result.text
        assert first.process.poll() is None


def num_translated(server: ServerProcess) -> float:
    """Calls of Translate that a server has answered."""
    with urllib.request.urlopen(server.metrics_url) as page:
        lines = page.read().decode().splitlines()
    counts = [
        line.rsplit(" ", 1)[1]
        for line in lines
        if "_requests_total{" in line and 'TranslationService/Translate"' in line
    ]
    return sum(map(float, counts))


@pytest.mark.timeout(120)
def test_a_server_that_stops_is_left_before_it_refuses(servers: tuple[ServerProcess, ServerProcess]) -> None:
    first, _ = servers
    with Client(first.address, timeout=60) as alone, Client(both(servers), timeout=60) as client:
        client.translate(["a"] * 300, source="en", target="fr")
        busy = alone.stream(TEXT * 4, source="en", target="fr", beam_size=4)
        next(busy)  # so it goes on for a while
        first.process.terminate()
        while alone.health():
            time.sleep(0.05)
        time.sleep(0.2)  # until those who watch know, too
        before = num_translated(first)
        for _ in range(10):
            client.translate("Good morning.", source="en", target="fr")
        assert num_translated(first) == before
        assert "".join(busy)
    assert first.process.wait(timeout=60) == 0
