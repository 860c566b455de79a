"""More load than there is room for: answers in time, refusals, health, recovery and memory of a server.

Compares Dragoman with itself: the rate that it sustains when as many callers call as keep it busy, and what it gives at
two, five and ten times as many calls, which come whether or not earlier ones were answered.

    python -m benchmarks.overload [--seconds 120] [--times 2 5 10] [--deadlines 1 5 30]

The sustained rate is measured before and after each load, and the mean is what is compared with, as what else
the host does changes.

The load generator needs a processor too, the same as the server: `--texts` and `--beam-size` make calls large enough
for it, and for refusals, to be cheap beside the work that a call asks for. By default a call has as many texts as this
machine translates in a fifth of a second, so that a second is enough for it. `--max-waiting` of the server, by default
that of five calls, bounds what is still to be done when the load ends, and so the time until it is as fast as before.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.load import Job, Outcome, drive
from benchmarks.models import default_model
from benchmarks.report import Row, publish
from benchmarks.servers import Server, dragoman_server
from benchmarks.settings import RESULTS, SENTENCES, SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings, read_sentences
from benchmarks.statistics import Summary, percentile
from dragoman import Client, DragomanError
from dragoman_server.runtime.machine import available_cpus

_NUM_TEXTS = 768  # in flight: they keep the server busy
_SUSTAINED_FACTOR = 2  # times as long as other loads, before and after each overload: all shares are of it
_WARM_UP_SECONDS = 3.0
_CALL_SECONDS = 0.2
_WAITING_CALLS = 5
_HEALTH_PAUSE_SECONDS = 0.05
_MAX_RECOVERY_SECONDS = 60.0
_RECOVERED_RATIO = 2.0  # a call alone takes no more than so many times what it took before the load


def overload(
    server: Server, job: Job, sustained_seconds: float, times: float, deadline: float, alone_seconds: float
) -> Iterator[Row]:
    """All figures of one load.

    Args:
        server: that is called.
        job: calls, without a rate.
        sustained_seconds: how long the rate is measured that the server sustains, before the load and after it.
        times: so many times as many calls are sent.
        deadline: of each, in seconds.
        alone_seconds: what a call takes when there is no other.
    """
    subject = replace(server.subject, setting=f"{times:g} times, {deadline:g} s")
    first = _sustained(job, sustained_seconds)
    before = _resident_bytes(server.pid)
    with _health_seconds(server.address) as health:
        outcome = drive(replace(job, rate=first * times, timeout_seconds=deadline))
    # Of calls that were sent last, answers are still to come for as long as a deadline: the server has less to do then.
    since = time.perf_counter() - max(0.0, outcome.seconds - job.seconds)
    recovery = _recovery_seconds(server.address, alone_seconds, since)
    growth = (_resident_bytes(server.pid) - before) / 1e6
    sustained = (first + _sustained(job, sustained_seconds)) / 2

    def row(metric: str, unit: str, value: float) -> Row:
        return Row("overload", subject, metric, unit, Summary.single(value))

    yield row("sustained", "calls/s", sustained)
    yield row("answers in time, of the sustained rate", "%", 100 * _rate(outcome, job.seconds) / sustained)
    yield row("calls sent", "calls/s", len(outcome.latencies) / job.seconds)
    yield row("refused", "calls/s", len(outcome.refused_seconds) / job.seconds)
    yield row("deadline exceeded", "calls/s", outcome.failures.get("DEADLINE_EXCEEDED", 0) / job.seconds)
    others = sum(outcome.failures.values()) - len(outcome.refused_seconds)
    yield row("other failures", "calls", others - outcome.failures.get("DEADLINE_EXCEEDED", 0))
    if outcome.refused_seconds:
        yield row("refusal p50", "ms", 1000 * percentile(outcome.refused_seconds, 50))
        yield row("refusal p99", "ms", 1000 * percentile(outcome.refused_seconds, 99))
        yield row("refusals without RetryInfo", "calls", outcome.num_without_retry_info)
    yield row("health p99", "ms", 1000 * percentile(health, 99))
    yield row("recovery", "s", recovery)
    yield row("memory, growth", "MB", growth)


def _sustained(job: Job, seconds: float) -> float:
    """Answers a second to callers who wait for each."""
    return _rate(drive(replace(job, seconds=seconds)), seconds)


def _rate(outcome: Outcome, seconds: float) -> float:
    """Answers a second while calls were sent."""
    return sum(at <= seconds for at in outcome.answered_at) / seconds


@contextlib.contextmanager
def _health_seconds(address: str) -> Iterator[list[float]]:
    """What health checks take, while the context lasts; one that fails takes infinitely long."""
    found: list[float] = []
    is_over = threading.Event()

    def check() -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not is_over.wait(_HEALTH_PAUSE_SECONDS):
                started = time.perf_counter()
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
                except grpc.RpcError:
                    is_serving = False
                found.append(time.perf_counter() - started if is_serving else float("inf"))

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def _alone_seconds(address: str) -> float:
    """What one call takes, the slowest of some."""
    with Client(address) as client:
        return max(_seconds_of_call(client) for _ in range(20))


def _recovery_seconds(address: str, alone_seconds: float, since: float) -> float:
    """When calls are as fast again as they were; infinity where they are not for a long time."""
    with Client(address) as client:
        while (now := time.perf_counter()) - since < _MAX_RECOVERY_SECONDS:
            with contextlib.suppress(DragomanError):
                if _seconds_of_call(client) <= _RECOVERED_RATIO * alone_seconds:
                    return now - since
    return float("inf")


def _seconds_of_call(client: Client) -> float:
    started = time.perf_counter()
    client.translate("Good morning.", source=SOURCE_LANGUAGE, target=TARGET_LANGUAGE, timeout=60)
    return time.perf_counter() - started


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def measure(
    settings: Settings,
    seconds: float,
    all_times: Sequence[float],
    deadlines: Sequence[float],
    num_texts: int,
    beam: int,
    max_waiting: int,
) -> Iterator[Row]:
    """Every load, each with the sustained rate of its time. 0 texts, and 0 that wait: by the speed of the machine."""
    num_texts = num_texts or _texts_of_a_call(settings, beam)
    max_waiting = max_waiting or _WAITING_CALLS * num_texts
    options = ("--max-waiting", str(max_waiting))
    with dragoman_server(default_model(), settings, *options, log=subprocess.DEVNULL) as server:
        num_callers = max(1, min(_NUM_TEXTS, max_waiting) // num_texts)
        job = Job(server.address, settings.sentences, seconds, None, num_callers, num_texts, beam_size=beam, seed=1)
        alone = _alone_seconds(server.address)
        sustained_seconds = min(seconds, _SUSTAINED_FACTOR * settings.load_seconds)
        drive(replace(job, seconds=min(seconds, _WARM_UP_SECONDS)))
        for times in all_times:
            for deadline in deadlines:
                yield from overload(server, job, sustained_seconds, times, deadline, alone)


def _texts_of_a_call(settings: Settings, beam: int) -> int:
    """As many as a server of its own translates in `_CALL_SECONDS`."""
    with (
        dragoman_server(default_model(), settings, log=subprocess.DEVNULL) as server,
        Client(server.address, timeout=600.0) as client,
    ):
        for _ in range(2):  # the first time warms up
            started = time.perf_counter()
            client.translate(settings.sentences, source=SOURCE_LANGUAGE, target=TARGET_LANGUAGE, beam_size=beam)
            seconds = time.perf_counter() - started
    return max(1, round(_CALL_SECONDS * len(settings.sentences) / seconds))


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Length of each load.")] = 120.0,
    times: Annotated[tuple[float, float, float], typer.Option(help="How many times the sustained rate.")] = (2, 5, 10),
    deadlines: Annotated[tuple[float, float, float], typer.Option(help="Of a call, in seconds.")] = (1, 5, 30),
    texts: Annotated[int, typer.Option(min=0, help="Texts in a call; 0: by the speed of the machine.")] = 0,
    beam_size: Annotated[int, typer.Option(min=1, help="Of every text.")] = 4,
    max_waiting: Annotated[int, typer.Option(min=0, help="--max-waiting of the server; 0: of five calls.")] = 0,
    sentences: Annotated[Path, typer.Option(help="File of English sentences, one a line.")] = SENTENCES,
    results: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Run all of the code, but measure nothing.")] = False,
) -> None:
    """More load than there is room for: answers in time, refusals, health, recovery and memory."""
    make = Settings.smoke if quick else Settings
    settings = make(read_sentences(sentences), available_cpus())
    rows = measure(
        settings, 1.0 if quick else seconds, sorted(set(times)), sorted(set(deadlines)), texts, beam_size, max_waiting
    )
    publish(list(rows), results, "overload")


if __name__ == "__main__":
    typer.run(main)
