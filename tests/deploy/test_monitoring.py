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
from collections.abc import Callable, Iterator
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
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
RULE_TESTS = ROOT / "tests/deploy/alerts.yml"
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
        result: list[Any] = self.get("query", query=expression)["result"]
        return result

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of Prometheus' API."""
        url = f"{self.prometheus_url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]

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
        shutil.copy(ALERTS, folder)
        with (
            load(server.address, next(iter(bundle.manifest.languages))),
            prometheus(config, folder / "data") as prometheus_url,
        ):
            found = Monitored(server.metrics_url, prometheus_url)
            assert wait_for(lambda: has_data(found.query('up{job="dragoman"} == 1')))
            yield found


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether it is fulfilled before patience ends; while Prometheus does not answer, it is not."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(ConnectionRefusedError, urllib.error.URLError):  # it starts
            if condition():
                return True
        time.sleep(1)
    return False


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
    """The queries of the dashboard, as Grafana sends them for all models, by the titles of their panels."""
    dashboard = json.loads(DASHBOARD.read_text())
    (model,) = dashboard["templating"]["list"]
    values = {"$__rate_interval": RATE_INTERVAL, f"${model['name']}": model["allValue"]}
    found: dict[str, str] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(name, value)
            found[f"{panel['title']}: {target['legendFormat']}"] = query
    return found


def has_data(result: list[Any]) -> bool:
    return any(math.isfinite(float(series["value"][1])) for series in result)


def test_every_query_of_the_dashboard_has_an_answer(monitored: Monitored) -> None:
    unanswered = queries()

    def are_answered() -> bool:
        for name, query in [*unanswered.items()]:
            if has_data(monitored.query(query)):
                del unanswered[name]
        return not unanswered

    assert wait_for(are_answered), unanswered


def test_every_query_of_metrics_by_model_is_for_the_chosen_models(monitored: Monitored) -> None:
    by_model = set(re.findall(r"^(dragoman_\w+)\{[^}]*\bmodel=", monitored.page(), re.MULTILINE))
    assert by_model
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    selectors = [found for expression in expressions for found in re.findall(r"(dragoman_\w+)(\{[^}]*\})?", expression)]
    assert {'model=~"$model"' in labels for name, labels in selectors if name in by_model} == {True}
    assert {"$model" in labels for name, labels in selectors if name not in by_model} == {False}


def test_the_models_to_choose_from_are_those_that_are_served(monitored: Monitored) -> None:
    (variable,) = json.loads(DASHBOARD.read_text())["templating"]["list"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert found is not None
    metric, label = found.groups()
    values = monitored.get(f"label/{label}/values", **{"match[]": metric})
    assert values == [Bundle.open(embedded_bundle()).manifest.name]


def test_prometheus_evaluates_the_alerts(monitored: Monitored) -> None:
    def health() -> set[str]:
        return {rule["health"] for group in monitored.get("rules")["groups"] for rule in group["rules"]}

    assert wait_for(lambda: "unknown" not in health())  # which it is until the first time
    assert health() == {"ok"}


def test_alerts_are_raised_when_they_should_be() -> None:
    subprocess.run([program("promtool"), "test", "rules", RULE_TESTS], check=True)


def test_promtool_has_nothing_to_say(monitored: Monitored) -> None:
    promtool = program("promtool")
    subprocess.run([promtool, "check", "config", CONFIG], check=True)
    check = subprocess.run(
        [promtool, "check", "metrics"], input=monitored.page(), capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_the_guide_has_every_metric_with_its_labels(monitored: Monitored) -> None:
    page = monitored.page()
    # A time of creation goes with every counter and histogram.
    shown = re.findall(r"^# TYPE (dragoman_\w+)(?<!_created) ", page, re.MULTILINE)
    guide = dict(re.findall(r"^\| `(dragoman_\w+)` \|([^|]*)\|", GUIDE.read_text(), re.MULTILINE))
    assert guide.keys() == set(shown)
    for name in shown:
        for labels in re.findall(rf"^{name}(?:_sum)?(?:\{{(.*)\}})? ", page, re.MULTILINE):
            assert set(re.findall(r"(\w+)=", labels)) == set(re.findall(r"\w+", guide[name])), name
