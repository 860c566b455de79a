"""What goes wrong in a real server raises the right alert in a real Prometheus and Alertmanager, and no other.

The rules are those of the compose file with all durations divided by 30; see `support.prometheus.shortened`.
"""

import contextlib
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest

from dragoman import Client
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from support.process import MAIN, ServerProcess, server_process
from support.prometheus import DEPLOY, Prometheus, alertmanager, prometheus, told, write_config

pytestmark = pytest.mark.timeout(600)

FASTER = 30
PATIENCE_SECONDS = 180.0
# After which whatever else there is to raise has been raised: twice the longest `for`.
SETTLING_SECONDS = 2 * 15 * 60 / FASTER

# A machine that is busy with other things raises these, and rightly so.
STARVED = {"DragomanEventLoopSlow", "DragomanCpuThrottled"}

# Engines die, or hang, as soon as a file is there.
FAULT = """
import os, threading
from dragoman_server import app
from dragoman_server.__main__ import main
from dragoman_server.engine.lane import Lane

step = Lane.step

def fault(lane, is_alone):
    if os.path.exists({path!r}):
        {what}
    return step(lane, is_alone)

Lane.step = fault
main()
"""
DIES = 'raise MemoryError("by a test")'
HANGS = "threading.Event().wait()"


class Watched:
    """A server, and what the operators have been told about it."""

    def __init__(self, server: ServerProcess, prometheus: Prometheus, alerts: list[dict[str, str]]) -> None:
        self.server, self.prometheus, self._alerts = server, prometheus, alerts

    @property
    def told(self) -> set[str]:
        """The names of alerts that were told, but for those that the machine is to blame for."""
        return {alert["alertname"] for alert in self._alerts} - STARVED

    def raised(self) -> set[str]:
        """The names of alerts that Prometheus has raised, told or not."""
        return {
            series["metric"]["alertname"] for series in self.prometheus.query('ALERTS{alertstate="firing"}')
        } - STARVED


@contextlib.contextmanager
def watched(folder: Path, *options: str, program: str = MAIN, repository: Path | None = None) -> Iterator[Watched]:
    """A server under a light load, watched by Prometheus and Alertmanager, in order for some scrapes."""
    bundle = None if repository else embedded_bundle()
    if repository:
        options = (*options, "--repository", str(repository))
    with (
        server_process(bundle, *options, program=program) as server,
        told() as (webhook, alerts),
        alertmanager(folder, webhook) as address,
        light_load(server.address),
        prometheus(
            write_config(folder, {"dragoman": urllib.parse.urlsplit(server.metrics_url).netloc}, address, FASTER),
            folder / "data",
        ) as found,
    ):
        them = Watched(server, found, alerts)
        assert wait_for(lambda: bool(found.query("job:dragoman_failed_calls:ratio_rate5m == 0")))
        assert not them.raised()
        yield them


@contextlib.contextmanager
def light_load(address: str) -> Iterator[None]:
    """Calls, one after the other, that are all in order."""
    code = """
import contextlib, sys, time
from dragoman import Client, DragomanError
with Client(sys.argv[1], timeout=20) as client:
    source, (target, *_) = next(iter(client.languages().items()))
    while True:
        with contextlib.suppress(DragomanError):
            client.translate("Good morning.", source=source, target=target)
        time.sleep(0.1)
"""
    with subprocess.Popen([sys.executable, "-c", code, address]) as process:
        try:
            yield
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether it is fulfilled before patience ends; while Prometheus does not answer, it is not."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            if condition():
                return True
        time.sleep(0.5)
    return False


def assert_told_of(them: Watched, alert: str, also: Set[str] = frozenset()) -> None:
    """That operators are told of one alert, and of nothing else but what may come before it."""
    assert wait_for(lambda: alert in them.told), them.raised()
    time.sleep(SETTLING_SECONDS)
    assert them.told - also == {alert}


def test_an_engine_that_dies(tmp_path: Path) -> None:
    with watched(tmp_path, program=FAULT.format(path=str(tmp_path / "now"), what=DIES)) as them:
        (tmp_path / "now").touch()
        assert them.server.process.wait(timeout=60) == 70
        assert_told_of(them, "DragomanDown")


def test_an_engine_that_hangs(tmp_path: Path) -> None:
    with watched(tmp_path, program=FAULT.format(path=str(tmp_path / "now"), what=HANGS)) as them:
        (tmp_path / "now").touch()
        assert_told_of(them, "DragomanEngineStalled")
        assert "DragomanNotServing" in them.raised()  # and the cause keeps it quiet


def test_a_queue_that_is_full(tmp_path: Path) -> None:
    with watched(tmp_path, "--lanes=1", "--max-running=1", "--max-waiting=4") as them:
        load = [sys.executable, str(DEPLOY / "load/load.py"), them.server.address]
        with subprocess.Popen(load) as process:
            try:
                assert_told_of(them, "DragomanOverloaded", {"DragomanQueueSlow"})
            finally:
                process.kill()


def test_health_that_is_not_serving(tmp_path: Path) -> None:
    shutil.copytree(embedded_bundle(), tmp_path / "models/default")
    with watched(tmp_path, repository=tmp_path / "models") as them:
        assert them.server.admin_address is not None
        with Client(them.server.admin_address) as admin:
            admin.unload_model(Bundle.open(embedded_bundle()).manifest.name, drain=True)
        assert_told_of(them, "DragomanNotServing")


def test_a_server_that_is_in_order(tmp_path: Path) -> None:
    with watched(tmp_path) as them:
        time.sleep(SETTLING_SECONDS)
        assert (them.raised(), them.told) == (set(), set())
