"""Prometheus and Alertmanager as processes, with the configuration of the compose file."""

import contextlib
import http.server
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus/prometheus.yml"
ALERTMANAGER = DEPLOY / "alertmanager/alertmanager.yml"


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str

    def query(self, expression: str) -> list[Any]:
        """The instant vector."""
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]


def program(name: str) -> str:
    """The path of a program of Debian's packages; fails the test where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(
            f"these tests need {name}, which is not installed "
            "(Debian: apt-get install prometheus prometheus-alertmanager docker-compose)"
        )
    return path


def write_config(folder: Path, targets: Mapping[str, str], alertmanager: str | None = None, faster: float = 1) -> Path:
    """The configuration of the compose file and its rules, with an address for each job; returns the path.

    Args:
        folder: to write them to.
        targets: HOST:PORT by job.
        alertmanager: its HOST:PORT; None is none.
        faster: what all durations of the rules are divided by. Thresholds stay: what an alert compares with.
    """
    config = yaml.safe_load(CONFIG.read_text())
    assert [job["job_name"] for job in config["scrape_configs"]] == ["dragoman", "dcgm", "envoy"]
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in targets.items()
    ]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []}
    if faster != 1:
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "1s"}
    for name in config["rule_files"]:
        # The first time of a group is anywhere in its interval, and nobody waits for five minutes here.
        rules = (CONFIG.parent / name).read_text().replace("interval: 5m", "interval: 15s")
        (folder / name).write_text(shortened(rules, faster))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def shortened(rules: str, faster: float) -> str:
    """Rules with all ranges, all `for` and all intervals divided by a number, but no less than a scrape needs."""

    def divided(match: re.Match[str]) -> str:
        seconds = int(match["number"]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match["unit"]] / faster
        return f"{match['before']}{max(round(seconds), 1 if match['before'][0] != '[' else 8)}s"

    if faster == 1:
        return rules
    return re.sub(r"(?P<before>\[|(?:for|interval): )(?P<number>\d+)(?P<unit>[smhd])\b", divided, rules)


@contextlib.contextmanager
def prometheus(config: Path, data: Path) -> Iterator[Prometheus]:
    """Runs it until the end of the context; it may not answer yet."""
    address = free_address()
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with subprocess.Popen([*command, f"--web.listen-address={address}", "--log.level=warn"]) as process:
        try:
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """One with the routes and inhibitions of the compose file that tells a webhook, without waiting; its address."""
    config = yaml.safe_load(ALERTMANAGER.read_text())
    (receiver,) = config["receivers"]
    receiver["webhook_configs"] = [{"url": webhook, "send_resolved": False}]
    # Longer than an evaluation, so that causes are known when their consequences are told.
    config["route"].update(group_wait="3s", group_interval="3s")
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    address = free_address()
    command = [program("prometheus-alertmanager"), f"--config.file={path}", f"--storage.path={folder / 'alertmanager'}"]
    options = [f"--web.listen-address={address}", "--cluster.listen-address=", "--log.level=warn"]
    with subprocess.Popen([*command, *options]) as process:
        try:
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def exporter(page: Path) -> Iterator[str]:
    """A page of metrics that never changes; its HOST:PORT."""

    class Handler(_Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.read_bytes())

    with _serving(Handler) as address:
        yield address


@contextlib.contextmanager
def told() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A webhook for Alertmanager: its URL, and the labels of the alerts that it has been told of so far."""
    alerts: list[dict[str, str]] = []

    class Handler(_Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            alerts.extend(alert["labels"] for alert in body["alerts"] if alert["status"] == "firing")
            self.send_response(200)
            self.end_headers()

    with _serving(Handler) as address:
        yield f"http://{address}/", alerts


def free_address() -> str:
    """A HOST:PORT of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _serving(handler: type[_Quiet]) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
