"""Callers of a real server: latency under open load, the load that is sustained, and what serving costs.

The load generator runs on the cores of the servers and costs both the same.
"""

import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from benchmarks.ct2 import COMPUTE_TYPES, CTranslate2System, save_ctranslate2
from benchmarks.load import Outcome
from benchmarks.models import Model, default_model
from benchmarks.report import Row, Subject
from benchmarks.servers import Server, dragoman_server, serving
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, bracket, paired_ratios, percentile, sustained_rate
from benchmarks.systems import DragomanSystem, Source, dragoman
from dragoman_server.engine.sequence import Completion, Request

# Of the higher of both saturation throughputs.
_RATE_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
_PERCENTS = (50, 95, 99)
_CALLERS = 64  # of single texts, where they are held against the engine
_LIST_SIZE = 256  # texts of one call, where that is
_PEER_MAX_ROWS, _PEER_DELAYS = (16, 32, 64), (0, 2, 5)  # the latter in ms
_NUM_ROUNDS = 3  # of the longer measurements that alternate
_NUM_BISECTIONS = 4
_BOUND = 4  # times the unloaded p95 of CTranslate2's server


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


@dataclass(frozen=True)
class PeerSetting:
    """How CTranslate2's server is run."""

    precision: str
    num_workers: int
    num_threads: int  # within an operator of one worker
    max_rows: int
    max_delay_ms: int = 2

    @property
    def options(self) -> list[str]:
        """On its command line."""
        numbers = {
            "--workers": self.num_workers,
            "--threads": self.num_threads,
            "--max-rows": self.max_rows,
            "--max-delay-ms": self.max_delay_ms,
        }
        strings = [text for name, number in numbers.items() for text in (name, str(number))]
        return ["--compute-type", COMPUTE_TYPES[self.precision], *strings]


@contextlib.contextmanager
def _ctranslate2_server(folder: Path, model: Model, settings: Settings) -> Iterator[Server]:
    """At its best: what gives the highest throughput, then the delay with the lowest p95 at half of that."""
    short = replace(settings, load_seconds=settings.load_seconds / 4)

    def at(setting: PeerSetting) -> contextlib.AbstractContextManager[Server]:
        words = f"{setting.num_workers}x{setting.num_threads}, up to {setting.max_rows} rows, {setting.max_delay_ms} ms"
        subject = replace(
            Subject.of("CTranslate2 server", "ctranslate2", setting.precision, settings.threads, model.name),
            setting=words,
        )
        # Else its threads spin after every batch and take the processors from its own event loop.
        command = [str(folder), str(model.bundle.folder), *setting.options]
        return serving(subject, "benchmarks.ct2_server", command, OMP_WAIT_POLICY="passive")

    def throughput(setting: PeerSetting) -> float:
        with at(setting) as server:
            return server.saturate(short).calls_per_second

    def p95(setting: PeerSetting, rate: float) -> float:
        with at(setting) as server:
            return percentile(server.drive(short, rate=rate).latencies, 95)

    shapes = sorted({(1, settings.threads), (settings.threads, 1)})
    sizes = _PEER_MAX_ROWS[: 1 if settings.is_quick else None]
    throughputs = {
        setting: throughput(setting)
        for precision, shape, max_rows in itertools.product(COMPUTE_TYPES, shapes, sizes)
        for setting in [PeerSetting(precision, *shape, max_rows)]
    }
    fastest = max(throughputs, key=lambda setting: throughputs[setting])
    delayed = [replace(fastest, max_delay_ms=delay) for delay in _PEER_DELAYS]
    with at(min(delayed, key=lambda setting: p95(setting, throughputs[fastest] / 2))) as server:
        yield server


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
    """The server against its own engine alone in this process: same sentences, same settings, runs alternating."""
    middle = sorted(settings.sentences, key=len)[len(settings.sentences) // 2]
    one_sentence = replace(settings, sentences=(middle,), load_seconds=settings.load_seconds / 5)
    short = replace(settings, load_seconds=settings.load_seconds / 3)
    # Callers, and texts of each of their calls.
    loads = {f"{_CALLERS} callers of one text": (_CALLERS, 1), f"one caller of {_LIST_SIZE} texts": (1, _LIST_SIZE)}
    rates: dict[str, list[tuple[float, float]]] = {load: [] for load in loads}
    p50s = []
    with dragoman(model, settings.threads) as engine:
        for _, (load, (num_callers, size)) in itertools.product(range(settings.num_pairs), loads.items()):
            alone = _engine_throughput(engine, model, short, num_callers, size)
            rates[load].append((alone, server.saturate(short, num_callers, size).tokens_per_second))
        for _ in range(_num_rounds(settings)):
            served = percentile(server.drive(one_sentence).latencies, 50)
            p50s.append((1000 * _engine_p50(engine, model, one_sentence), 1000 * served))
        itself = Server(engine.subject, address="", pid=os.getpid())
    for load, pairs in rates.items():
        of_engine, of_server = zip(*pairs, strict=True)
        share = Summary.of([100 * served / alone for alone, served in pairs])
        yield itself.row(f"throughput, {load}", "tokens/s", Summary.of(of_engine))
        yield server.row(f"throughput, {load}", "tokens/s", Summary.of(of_server))
        yield server.row(f"share of the engine alone, {load}", "%", share)
    of_engine, of_server = zip(*p50s, strict=True)
    yield server.row("p50 latency, one sentence", "ms", Summary.of(of_server))
    yield itself.row("p50 latency, one sentence", "ms", Summary.of(of_engine))
    yield server.row("latency added by serving", "ms", Summary.of([served - alone for alone, served in p50s]))


def _request(source: Source, model: Model) -> Request:
    """As the server makes it when nothing is said."""
    return Request(source, min(3 * len(source) + 32, model.bundle.manifest.limits.max_target_tokens))


def _engine_throughput(
    engine: DragomanSystem, model: Model, settings: Settings, num_callers: int, texts_per_call: int
) -> float:
    """Tokens per second of callers that each have so many sentences translated at once, again and again."""
    time.sleep(settings.settle_seconds)
    texts = random.Random(0).sample(settings.sentences, len(settings.sentences))
    queue = itertools.cycle([_request(source, model) for source in model.sentence_sources(texts)])
    done: SimpleQueue[tuple[int, Future[Completion]]] = SimpleQueue()
    nums_pending = [0] * num_callers

    def call(caller: int) -> None:
        nums_pending[caller] = texts_per_call
        for future in engine.engine.submit([*itertools.islice(queue, texts_per_call)]):
            future.add_done_callback(lambda future: done.put((caller, future)))

    started, num_tokens = time.perf_counter(), 0
    for caller in range(num_callers):
        call(caller)
    while any(nums_pending):
        caller, future = done.get()
        num_tokens += len(future.result().hypotheses[0].token_ids)
        nums_pending[caller] -= 1
        if not nums_pending[caller] and time.perf_counter() - started < settings.load_seconds:
            call(caller)
    return num_tokens / (time.perf_counter() - started)


def _engine_p50(engine: DragomanSystem, model: Model, settings: Settings) -> float:
    """Seconds for the one sentence, again and again."""
    time.sleep(settings.settle_seconds)
    [source] = model.sentence_sources(settings.sentences)
    request = _request(source, model)
    latencies = []
    end = time.perf_counter() + settings.load_seconds
    while (started := time.perf_counter()) < end:
        engine.engine.submit([request])[0].result()
        latencies.append(time.perf_counter() - started)
    return percentile(latencies, 50)


if __name__ == "__main__":
    run_part("served", run)
