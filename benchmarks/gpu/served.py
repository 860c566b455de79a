"""A server on the device under load: one caller and 32, whole answers and streams."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gpu.plan import Models, Plan
from benchmarks.load import Job, Outcome, drive
from benchmarks.report import Row, Subject, package_version
from benchmarks.servers import Server, serving
from benchmarks.statistics import Summary, percentile

_MAX_RUNNING = 256
# Callers, and texts of each of their calls.
_LOADS = ((32, 1), (1, 1), (32, 64))


def run(plan: Plan, models: Models) -> Iterator[Row]:
    """Latency and throughput of the server with the default model.

    Raises:
        RuntimeError: the server does not start.
    """
    model = models.default
    options = ["--model", str(model.bundle.folder), "--device", plan.device, "--max-running", str(_MAX_RUNNING)]
    options += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    subject = Subject("Dragoman server", package_version("dragoman"), "fp16", 1, model.name, f"{_MAX_RUNNING} rows")
    with serving(subject, "dragoman_server", options) as server:
        _drive(server, plan, *_LOADS[0])  # CUDA graphs are captured
        for num_callers, texts_per_call in _LOADS:
            plan.require_time()
            whole = _drive(server, plan, num_callers, texts_per_call)
            of = f"{num_callers} callers of {texts_per_call} texts"
            yield from _latencies(server, of, "latency", whole)
            yield server.row(f"{of}, throughput", "tokens/s", Summary.single(whole.tokens_per_second))
            if texts_per_call == 1:
                streamed = _drive(server, plan, num_callers, 1, is_streaming=True)
                yield from _latencies(server, of, "first token", streamed)


def _drive(server: Server, plan: Plan, num_callers: int, texts_per_call: int, is_streaming: bool = False) -> Outcome:
    job = Job(server.address, plan.sentences, plan.settings.load_seconds, None, num_callers, texts_per_call)
    return drive(replace(job, is_streaming=is_streaming))


def _latencies(server: Server, of: str, name: str, outcome: Outcome) -> Iterator[Row]:
    if not all(map(math.isfinite, outcome.latencies)):
        raise RuntimeError(f"calls of {of} have failed")
    for title, value in (
        ("median", statistics.median(outcome.latencies)),
        ("p95", percentile(outcome.latencies, 95)),
    ):
        yield server.row(f"{of}, {name}, {title}", "ms", Summary.single(1000 * value))
