"""A real Prometheus with the configuration of the compose file scrapes a real server under load."""

import contextlib
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from support.process import server_process
from support.prometheus import ALERTMANAGER, CONFIG, Prometheus, exporter, program, prometheus, write_config

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
RULES = ROOT / "deploy/prometheus/rules.yml"
RUNBOOKS = ROOT / "docs/runbooks.md"
RULE_TESTS = ROOT / "tests/deploy/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/dragoman.json"
GUIDE = ROOT / "docs/operations.md"

LOAD = ROOT / "deploy/load/load.py"
# As NVIDIA's exporter writes it: github.com/NVIDIA/dcgm-exporter, README.
GPU_PAGE = ROOT / "tests/deploy/dcgm.txt"

SCRAPE_SECONDS = 15
# What Grafana makes of it: four scrapes, so that a rate has its two samples even if one is lost.
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"
# For two samples of a counter that came into being under load, and for the slowest rules, and then some.
PATIENCE_SECONDS = 24 * SCRAPE_SECONDS


@dataclass(frozen=True)
class Monitored(Prometheus):
    """A Prometheus that scrapes a server, and the server's page."""

    metrics_url: str

    def page(self) -> str:
        """What is scraped."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            text: str = answer.read().decode()
            return text


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    bundle = Bundle.open(embedded_bundle())
    folder = tmp_path_factory.mktemp("prometheus")
    # So little room that some of the load is refused.
    with (
        server_process(bundle.folder, "--max-running=2", "--max-waiting=4") as server,
        load(server.address),
        exporter(GPU_PAGE) as gpu,
        prometheus(
            write_config(folder, {"dragoman": urllib.parse.urlsplit(server.metrics_url).netloc, "dcgm": gpu}),
            folder / "data",
        ) as process,
    ):
        found = Monitored(process.url, server.metrics_url)
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
def load(address: str) -> Iterator[None]:
    """The callers of the compose file, who are answered, refused, too late or wrong, until the end of the context."""
    with subprocess.Popen([sys.executable, LOAD, address]) as process:
        try:
            yield
        finally:
            process.terminate()


def queries() -> dict[str, str]:
    """The queries of the dashboard, as Grafana sends them for all models, by the titles of their panels."""
    dashboard = json.loads(DASHBOARD.read_text())
    (model,) = dashboard["templating"]["list"]
    values = {"$__rate_interval": RATE_INTERVAL, f"${model['name']}": model["allValue"]}
    found: dict[str, str] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            if 'device=~"cuda' in target["expr"]:  # of a GPU, which is tested by name alone
                continue
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


def test_every_name_in_dashboard_and_rules_is_that_of_a_metric(monitored: Monitored) -> None:
    rules = [yaml.safe_load(file.read_text()) for file in (RULES, ALERTS)]
    expressions = [rule["expr"] for file in rules for group in file["groups"] for rule in group["rules"]]
    dashboard = json.loads(DASHBOARD.read_text())
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    expressions += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    used = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        for expression in expressions
        for name in re.findall(r"(?<![\w:])(?:dragoman|process|DCGM)_\w+", expression)
    }
    page = monitored.page() + GPU_PAGE.read_text()
    assert used - set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE)) == set()
    recorded = {
        rule["record"] for file in rules for group in file["groups"] for rule in group["rules"] if "record" in rule
    }
    assert {name for text in expressions for name in re.findall(r"\w+:dragoman_\w+:\w+", text)} == recorded


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


def test_every_alert_has_a_test_and_a_runbook() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    alerts = [*dict.fromkeys(rule["alert"] for rule in rules)]
    cases = [case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts)
    assert re.findall(r"^## (Dragoman\w+)$", RUNBOOKS.read_text(), re.MULTILINE) == alerts
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"


def test_promtool_has_nothing_to_say(monitored: Monitored) -> None:
    promtool = program("promtool")
    subprocess.run([promtool, "check", "config", CONFIG], check=True)
    subprocess.run([program("amtool"), "check-config", ALERTMANAGER], check=True)
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


def test_the_guide_points_prometheus_to_a_server_without_containers(tmp_path: Path) -> None:
    commands = GUIDE.read_text().partition("### Without containers")[2].partition("```console\n")[2].partition("```")[0]
    lines = commands.replace("\\\n", "").replace("/tmp/prometheus", str(tmp_path / "config")).splitlines()
    prepared = [line for line in lines if line.startswith(("mkdir", "cp", "sed", "promtool"))]
    subprocess.run("\n".join(["set -e", *prepared]), shell=True, cwd=ROOT, check=True)
    config = yaml.safe_load((tmp_path / "config/prometheus.yml").read_text())
    assert [job["static_configs"] for job in config["scrape_configs"]] == [
        [{"targets": ["localhost:9464"]}],
        [{"targets": []}],
        [{"targets": []}],
    ]
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["localhost:9093"]}]}]
