"""A real Prometheus with the configuration of the compose file scrapes a real server under load."""

import contextlib
import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from dragoman import Client, DragomanError
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from support.process import server_process

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/dragoman.json"
GUIDE = ROOT / "docs/operations.md"

TARGET = "server:9464"
SCRAPE_SECONDS = 15
# What Grafana makes of it: four scrapes, so that a rate has its two samples even if one is lost.
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"
# Scrapes for two samples of a counter that came into being under load, and then some.
PATIENCE_SECONDS = 12 * SCRAPE_SECONDS


@dataclass(frozen=True)
class Monitored:
    """The server's page, and the Prometheus that scrapes it."""

    metrics_url: str
    prometheus_url: str

    def query(self, expression: str) -> list[Any]:
        """The instant vector."""
        with urllib.request.urlopen(
            f"{self.prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        ) as answer:
            result: list[Any] = json.load(answer)["data"]["result"]
            return result

    def page(self) -> str:
        """What is scraped."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            text: str = answer.read().decode()
            return text


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    bundle = Bundle.open(embedded_bundle())
    # So little room that some of the load is refused.
    with server_process(bundle.folder, "--max-running=2", "--max-waiting=4") as server:
        folder = tmp_path_factory.mktemp("prometheus")
        text = CONFIG.read_text()
        assert text.count(TARGET) == 1
        assert f"scrape_interval: {SCRAPE_SECONDS}s" in text
        config = folder / "prometheus.yml"
        config.write_text(text.replace(TARGET, urllib.parse.urlsplit(server.metrics_url).netloc))
        with (
            load(server.address, next(iter(bundle.manifest.languages))),
            prometheus(config, folder / "data") as prometheus_url,
        ):
            yield Monitored(server.metrics_url, prometheus_url)


@contextlib.contextmanager
def load(address: str, direction: tuple[str, str]) -> Iterator[None]:
    """Callers that are answered, refused, too late or wrong, until the end of the context."""
    source, target = direction
    stop = Event()

    def call(client: Client) -> None:
        for number in itertools.count():
            if stop.wait(0.1):
                return
            with contextlib.suppress(DragomanError):
                match number % 8:
                    case 0:
                        client.translate("Hello.", source=source, target="xx")
                    case 1:
                        client.translate("How are you?", source=source, target=target, timeout=0.002)
                    case _:
                        client.translate(["Hello.", "How are you?"] * 2, source=source, target=target)

    with Client(address) as client, ThreadPoolExecutor() as callers:
        done = [callers.submit(call, client) for _ in range(4)]
        try:
            yield
        finally:
            stop.set()
        for future in done:
            future.result()


@contextlib.contextmanager
def prometheus(config: Path, data: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=warn"]) as process:
        try:
            yield f"http://{address}"
        finally:
            process.terminate()


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"these tests need {name}, which is not installed (Debian: apt-get install prometheus)")
    return path


def queries() -> dict[str, str]:
    """The queries of the dashboard, as Grafana sends them, by the titles of their panels."""
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"].replace("$__rate_interval", RATE_INTERVAL)
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    }


def has_data(result: list[Any]) -> bool:
    return any(math.isfinite(float(series["value"][1])) for series in result)


def test_every_query_of_the_dashboard_has_an_answer(monitored: Monitored) -> None:
    unanswered = queries()
    give_up = time.monotonic() + PATIENCE_SECONDS
    while unanswered and time.monotonic() < give_up:
        time.sleep(1)
        with contextlib.suppress(ConnectionRefusedError, urllib.error.URLError):  # it starts
            unanswered = {name: query for name, query in unanswered.items() if not has_data(monitored.query(query))}
    assert not unanswered


def test_promtool_has_nothing_to_say(monitored: Monitored) -> None:
    promtool = program("promtool")
    subprocess.run([promtool, "check", "config", CONFIG], check=True)
    check = subprocess.run(
        [promtool, "check", "metrics"], input=monitored.page(), capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_the_guide_has_every_metric(monitored: Monitored) -> None:
    # A time of creation goes with every counter and histogram.
    shown = set(re.findall(r"^# TYPE (dragoman_\w+)(?<!_created) ", monitored.page(), re.MULTILINE))
    assert set(re.findall(r"^\| `(dragoman_\w+)", GUIDE.read_text(), re.MULTILINE)) == shown
