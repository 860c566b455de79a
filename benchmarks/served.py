"""Callers of a real server: latency under open load, the load that is sustained, and what serving costs.

The load generator runs on the cores of the servers and costs both the same.
"""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from benchmarks.load import Job, Outcome, drive
from benchmarks.models import Model, default_model
from benchmarks.peers import save_ctranslate2
from benchmarks.report import Row, Subject
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, bracket, paired_ratios, percentile, sustained_rate
from benchmarks.systems import COMPUTE_TYPES, CTranslate2System, Decoding, DragomanSystem, Source, dragoman
from dragoman_server.engine.sequence import Completion

# Of the higher of both saturation throughputs.
_RATE_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
_PERCENTS = (50, 95, 99)
_NUM_TEXTS = 128  # at a time keep both servers' batches full
_CALL_SIZES = (1, 32)  # texts in a call: what serving costs is a cost of calls
_NUM_ROWS = 64  # of Dragoman's batch: its default
_NUM_ROUNDS = 3  # of the longer measurements that alternate
_NUM_BISECTIONS = 4
_BOUND = 4  # times the unloaded p95 of CTranslate2's server


@dataclass(frozen=True)
class Server:
    """A running server."""

    subject: Subject
    address: str
    pid: int

    def drive(self, settings: Settings, rate: float | None = None, num_callers: int = 1, seed: int = 0) -> Outcome:
        """Puts load on it: open with a rate, closed without."""
        time.sleep(settings.settle_seconds)
        return drive(Job(self.address, settings.sentences, settings.load_seconds, rate, num_callers, seed=seed))

    def saturate(self, settings: Settings, texts_per_call: int = 1) -> Outcome:
        """As much load as it takes."""
        time.sleep(settings.settle_seconds)
        num_callers = max(1, _NUM_TEXTS // texts_per_call)
        return drive(Job(self.address, settings.sentences, settings.load_seconds, None, num_callers, texts_per_call))

    def row(self, metric: str, unit: str, value: Summary, ratio: Summary | None = None) -> Row:
        """A figure of this server."""
        return Row("served", self.subject, metric, unit, value, ratio=ratio)


def run(settings: Settings) -> Iterator[Row]:
    """Latency and throughput of servers with the default model.

    Raises:
        UnequalWeightsError: CTranslate2 does not reproduce the model.
        RuntimeError: a server does not start.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name) / "ctranslate2"
        model = default_model()
        save_ctranslate2(model.checkpoint, folder)
        CTranslate2System.load(folder, model, "fp32", settings.threads)  # checks that the weights are the same
        peer = stack.enter_context(_ctranslate2_server(folder, model, settings))
        ours = stack.enter_context(dragoman_server(model, settings))
        yield from _under_load(ours, peer, settings)
        yield from _cost_of_serving(ours, model, settings)


# -- servers ---------------------------------------------------------------------------------------------------------


def dragoman_server(model: Model, settings: Settings) -> contextlib.AbstractContextManager[Server]:
    """Runs until the context ends."""
    options = ["--model", str(model.bundle.folder), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    options += ["--lanes", str(settings.threads), "--max-running", str(_NUM_ROWS)]
    precision = model.bundle.manifest.precision
    subject = Subject.of("Dragoman server", "dragoman", precision, settings.threads, model.name)
    return _serving(subject, "dragoman_server", options)


@contextlib.contextmanager
def _ctranslate2_server(folder: Path, model: Model, settings: Settings) -> Iterator[Server]:
    """With whichever of its precisions is faster under full load: for small models that is fp32."""

    def serving(precision: str) -> contextlib.AbstractContextManager[Server]:
        subject = Subject.of("CTranslate2 server", "ctranslate2", precision, settings.threads, model.name)
        options = [str(folder), str(model.bundle.folder), "--compute-type", COMPUTE_TYPES[precision]]
        options += ["--threads", str(settings.threads)]
        # Else its threads spin after every batch and take the processors from its own event loop.
        return _serving(subject, "benchmarks.ct2_server", options, OMP_WAIT_POLICY="passive")

    throughputs = {}
    for precision in COMPUTE_TYPES:
        with serving(precision) as server:
            throughputs[precision] = server.saturate(settings).tokens_per_second
    with serving(max(throughputs, key=lambda precision: throughputs[precision])) as server:
        yield server


@contextlib.contextmanager
def _serving(subject: Subject, module: str, options: Sequence[str], **environment: str) -> Iterator[Server]:
    """Runs a server in a process; it must print its address when it is ready."""
    command = [sys.executable, "-m", module, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    with process:
        try:
            assert process.stdout is not None
            ready = re.search(r" on (127\.0\.0\.1:\d+)", process.stdout.readline())
            if ready is None:
                raise RuntimeError(f"{subject.system} did not start")
            yield Server(subject, ready[1], process.pid)
        finally:
            process.kill()


# -- under load ------------------------------------------------------------------------------------------------------


def _under_load(ours: Server, peer: Server, settings: Settings) -> Iterator[Row]:
    saturated: dict[Server, list[Outcome]] = {ours: [], peer: []}
    for _, server in itertools.product(range(_num_rounds(settings)), saturated):
        saturated[server].append(server.saturate(settings))
    throughputs = {server: [o.tokens_per_second for o in outcomes] for server, outcomes in saturated.items()}
    ratio = paired_ratios(throughputs[ours], throughputs[peer])
    yield ours.row("throughput at saturation", "tokens/s", Summary.of(throughputs[ours]))
    yield peer.row("throughput at saturation", "tokens/s", Summary.of(throughputs[peer]), ratio)

    unloaded = {server: percentile(server.drive(settings).latencies, 95) for server in saturated}
    for server, p95 in unloaded.items():
        yield server.row("p95 latency, unloaded", "ms", Summary.single(1000 * p95))
    bound = _BOUND * unloaded[peer]

    top = max(outcome.calls_per_second for outcomes in saturated.values() for outcome in outcomes)
    p95_by_rate: dict[Server, dict[float, float]] = {ours: {}, peer: {}}
    for seed, share in enumerate(_RATE_SHARES[:: 4 if settings.is_quick else 1]):
        rate = share * top
        for server, p95s in p95_by_rate.items():
            latencies = server.drive(settings, rate=rate, seed=seed).latencies
            p95s[rate] = percentile(latencies, 95)
            for percent in _PERCENTS:
                row = server.row(f"p{percent} latency", "ms", Summary.single(1000 * percentile(latencies, percent)))
                yield replace(row, variable="sentences/s", x=rate)
    sustained = {server: _sustained(server, p95s, bound, settings) for server, p95s in p95_by_rate.items()}
    metric = f"rate sustained with p95 under {1000 * bound:.0f} ms"
    sustained_ratio = Summary.single(sustained[ours] / sustained[peer]) if sustained[peer] else None
    yield ours.row(metric, "sentences/s", Summary.single(sustained[ours]))
    yield peer.row(metric, "sentences/s", Summary.single(sustained[peer]), sustained_ratio)


def _num_rounds(settings: Settings) -> int:
    return min(_NUM_ROUNDS, settings.num_pairs)


def _sustained(server: Server, p95_by_rate: dict[float, float], bound: float, settings: Settings) -> float:
    """The highest rate at which the p95 keeps the bound, sought where the measured curve crosses it."""
    seeds = itertools.count(len(_RATE_SHARES))

    def holds(rate: float) -> bool:
        return percentile(server.drive(settings, rate=rate, seed=next(seeds)).latencies, 95) <= bound

    return sustained_rate(holds, *bracket(p95_by_rate, bound), 1 if settings.is_quick else _NUM_BISECTIONS)


# -- what serving costs ----------------------------------------------------------------------------------------------


def _cost_of_serving(server: Server, model: Model, settings: Settings) -> Iterator[Row]:
    """The server against its own engine alone in this process: same model, same rows, runs alternating."""
    middle = sorted(settings.sentences, key=len)[len(settings.sentences) // 2]
    one_sentence = replace(settings, sentences=(middle,), load_seconds=settings.load_seconds / 5)
    served: dict[int, list[float]] = {size: [] for size in _CALL_SIZES}
    engine_rates, served_p50s, engine_p50s = [], [], []
    with dragoman(model, _NUM_ROWS, settings.threads) as engine:
        for _ in range(_num_rounds(settings)):
            engine_rates.append(_engine_throughput(engine, model, settings))
            for size, rates in served.items():
                rates.append(server.saturate(settings, size).tokens_per_second)
            served_p50s.append(1000 * percentile(server.drive(one_sentence).latencies, 50))
            engine_p50s.append(1000 * _engine_p50(engine, model, one_sentence))
        added = Summary.of([a - b for a, b in zip(served_p50s, engine_p50s, strict=True)])
        alone = Server(engine.subject, address="", pid=os.getpid())
    yield alone.row("throughput beside the server", "tokens/s", Summary.of(engine_rates))
    for size, rates in served.items():
        share = Summary.of([100 * rate / engine_rate for rate, engine_rate in zip(rates, engine_rates, strict=True)])
        yield server.row(f"throughput of calls with {size} texts", "tokens/s", Summary.of(rates))
        yield server.row(f"share of the engine alone, calls with {size} texts", "%", share)
    yield server.row("p50 latency, one sentence", "ms", Summary.of(served_p50s))
    yield alone.row("p50 latency, one sentence", "ms", Summary.of(engine_p50s))
    yield server.row("latency added by serving", "ms", added)


def _decoding(source: Source, model: Model) -> Decoding:
    """As the server decodes when nothing is said."""
    most = model.bundle.manifest.limits.max_target_tokens
    return Decoding(beam_size=1, max_target_tokens=min(3 * len(source) + 32, most))


def _engine_throughput(engine: DragomanSystem, model: Model, settings: Settings) -> float:
    """Tokens per second with as many sentences in the engine as the callers have in the server."""
    time.sleep(settings.settle_seconds)
    queue = itertools.cycle(model.sentence_sources(settings.sentences))
    done: SimpleQueue[Future[Completion]] = SimpleQueue()
    num_tokens = num_pending = 0

    def submit() -> None:
        source = next(queue)
        [future] = engine.submit([source], _decoding(source, model))
        future.add_done_callback(done.put)

    started = time.perf_counter()
    for _ in range(_NUM_TEXTS):
        submit()
        num_pending += 1
    while num_pending:
        num_tokens += len(done.get().result().hypotheses[0].token_ids)
        if time.perf_counter() - started < settings.load_seconds:
            submit()
        else:
            num_pending -= 1
    return num_tokens / (time.perf_counter() - started)


def _engine_p50(engine: DragomanSystem, model: Model, settings: Settings) -> float:
    """Seconds for the one sentence, again and again."""
    time.sleep(settings.settle_seconds)
    [source] = model.sentence_sources(settings.sentences)
    latencies = []
    end = time.perf_counter() + settings.load_seconds
    while (started := time.perf_counter()) < end:
        engine.translate([source], _decoding(source, model))
        latencies.append(time.perf_counter() - started)
    return percentile(latencies, 50)


if __name__ == "__main__":
    run_part("served", run)
