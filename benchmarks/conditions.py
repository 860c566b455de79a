"""What lanes cost: memory by lanes, speed beside another busy process, and latency against an older state of the code.

Not a part of `python -m benchmarks`, which compares with peers: this compares Dragoman with itself. All figures are of
the shipped model, and whatever is compared alternates in the same run.

    python -m benchmarks.conditions memory
    python -m benchmarks.conditions neighbour
    python -m benchmarks.conditions latency --before COMMIT
"""

import contextlib
import io
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.comparison import Workload
from benchmarks.load import Job, drive
from benchmarks.models import Model, default_model
from benchmarks.report import Row, Subject, publish
from benchmarks.servers import Server, dragoman_server, serving
from benchmarks.settings import RESULTS, SENTENCES, Settings, read_sentences
from benchmarks.statistics import Summary, paired_ratios, percentile
from benchmarks.systems import dragoman
from dragoman_server.runtime.machine import available_cpus

_LANES = (1, 4)
_BATCH = 256
_CALLERS = (1, 8, 32)
_SECONDS = 4.0  # of one measurement under load
_MEBIBYTE = 1 << 20
_ROOT = Path(__file__).parent.parent
_SPIN = "while True: pass"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


# -- memory ----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Of a process that has translated with all lanes, in bytes."""

    subject: Subject
    resident: int
    kv_pools: int  # of all lanes together, as large as this work has made them


def memory(settings: Settings) -> Iterator[Row]:
    """Resident memory with one lane and with four, and what a lane adds beside its keys and values."""
    measured: dict[int, list[Memory]] = {lanes: [] for lanes in _LANES}
    for _, lanes in itertools.product(range(settings.num_pairs), _LANES):
        # In a new process each, as memory that was used before would be used again.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured[lanes].append(pool.submit(measure_memory, settings, lanes).result())
    for lanes, memories in measured.items():
        for metric, sizes in (
            ("resident after work", [memory.resident for memory in memories]),
            ("keys and values", [memory.kv_pools for memory in memories]),
        ):
            value = Summary.of([size / _MEBIBYTE for size in sizes])
            yield replace(_row(memories[0].subject, metric, "MiB", value), variable="lanes", x=lanes)
    few, many = (measured[lanes] for lanes in _LANES)
    beside = [
        ((b.resident - b.kv_pools) - (a.resident - a.kv_pools)) / (_LANES[1] - _LANES[0]) / _MEBIBYTE
        for a, b in zip(few, many, strict=True)
    ]
    yield _row(many[0].subject, "a lane more, beside its keys and values", "MiB", Summary.of(beside))


def measure_memory(settings: Settings, lanes: int) -> Memory:
    """Translates enough sentences to fill every row of so many lanes; to be called in a process of its own."""
    model = default_model()
    with dragoman(model, settings.threads, lanes=lanes) as system:
        workload = _workload(model, settings)
        [batch] = workload.batches(2 * lanes * system.runners[0].max_rows)
        for _ in range(2):
            system.translate(batch, workload.decoding(batch, 1))
        kv_pools = sum(runner.kv_pool_bytes for runner in system.runners)
        return Memory(system.subject, _resident_bytes(), kv_pools)


def _resident_bytes() -> int:
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


# -- a neighbour -----------------------------------------------------------------------------------------------------


def neighbour(settings: Settings) -> Iterator[Row]:
    """Throughput and p95 while another process keeps one CPU busy, against what they are without it."""
    model = default_model()
    workload = _workload(model, settings)
    [batch] = workload.batches(_BATCH)
    decoding = workload.decoding(batch, 1)
    rates: list[tuple[float, float]] = []
    p95s: list[tuple[float, float]] = []
    with dragoman(model, settings.threads) as system, dragoman_server(model, settings) as server:

        def tokens_per_second() -> float:
            end, num_tokens, started = time.perf_counter() + settings.load_seconds, 0, time.perf_counter()
            while time.perf_counter() < end:
                num_tokens += sum(map(len, system.translate(batch, decoding)))
            return num_tokens / (time.perf_counter() - started)

        def p95() -> float:
            return 1000 * percentile(server.drive(settings).latencies, 95)

        tokens_per_second()  # the first run allocates
        for _ in range(settings.num_pairs):
            rates.append(_calm_and_beside(tokens_per_second))
            p95s.append(_calm_and_beside(p95))
        subject = system.subject
    for metric, unit, pairs, own in (
        (f"throughput, {_BATCH} sentences", "tokens/s", rates, subject),
        ("p95 latency, one caller", "ms", p95s, server.subject),
    ):
        calm, beside = zip(*pairs, strict=True)
        yield _row(own, metric, unit, Summary.of(calm))
        yield _row(own, f"{metric}, beside a busy process", unit, Summary.of(beside))
        yield _row(own, f"{metric}, beside a busy process, of that without", "x", paired_ratios(beside, calm))


def _calm_and_beside(measure: Callable[[], float]) -> tuple[float, float]:
    calm = measure()
    with subprocess.Popen([sys.executable, "-c", _SPIN]) as process:
        try:
            return calm, measure()
        finally:
            process.kill()


# -- another state of the code ---------------------------------------------------------------------------------------


def latency(settings: Settings, before: str) -> Iterator[Row]:
    """First token, p50 and p95 of single texts, of two states of the code, each with the model it is shipped with.

    Raises:
        subprocess.CalledProcessError: git does not know `before`.
        RuntimeError: a server does not start.
    """
    measured: dict[tuple[int, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        check_out(before, Path(folder))
        servers = [
            stack.enter_context(_server_of(root, name, settings))
            for root, name in ((Path(folder), before), (_ROOT, "this"))
        ]
        for seed, num_callers in itertools.product(range(settings.num_pairs), _CALLERS):
            of_both = [_latencies(server, settings, num_callers, seed) for server in servers]
            for metric, old, new in ((metric, of_both[0][metric], of_both[1][metric]) for metric in of_both[0]):
                measured.setdefault((num_callers, metric), []).append((old, new))
    for (num_callers, metric), pairs in measured.items():
        olds, news = zip(*pairs, strict=True)
        for server, value, ratio in (
            (servers[0], Summary.of(olds), None),
            (servers[1], Summary.of(news), paired_ratios(news, olds)),
        ):
            row = replace(_row(server.subject, metric, "ms", value), variable="callers", x=num_callers)
            yield row
            if ratio is not None:
                yield replace(row, metric=f"{metric}, of that before", unit="x", value=ratio)


def check_out(commit: str, folder: Path) -> None:
    """Writes the client and the server of a commit of this repository to a folder.

    Raises:
        subprocess.CalledProcessError: git does not know the commit.
    """
    command = ["git", "-C", str(_ROOT), "archive", commit, "client", "server"]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def _server_of(root: Path, name: str, settings: Settings) -> contextlib.AbstractContextManager[Server]:
    subject = Subject("Dragoman server", name, "int8", settings.threads, "default")
    options = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    path = os.pathsep.join([str(root / "client"), str(root / "server")])
    return serving(subject, "dragoman_server", options, PYTHONPATH=path)


def _latencies(server: Server, settings: Settings, num_callers: int, seed: int) -> dict[str, float]:
    """In milliseconds, by metric."""
    job = Job(server.address, settings.sentences, settings.load_seconds, None, num_callers, seed=seed)
    time.sleep(settings.settle_seconds)
    whole, streamed = drive(job).latencies, drive(replace(job, is_streaming=True)).latencies
    return {
        "p50 latency": 1000 * percentile(whole, 50),
        "p95 latency": 1000 * percentile(whole, 95),
        "first token, median": 1000 * statistics.median(streamed),
        "first token, p95": 1000 * percentile(streamed, 95),
    }


# -- the command -----------------------------------------------------------------------------------------------------


def _workload(model: Model, settings: Settings) -> Workload:
    return Workload(model, model.sentence_sources(settings.sentences), min_sentences=1)


def _row(subject: Subject, metric: str, unit: str, value: Summary) -> Row:
    return Row("conditions", subject, metric, unit, value)


_Sentences = Annotated[Path, typer.Option(help="File of English sentences, one a line.")]
_Results = Annotated[Path, typer.Option(help="Folder for the results.")]
_Quick = Annotated[bool, typer.Option("--quick", help="Run all of the code, but measure nothing.")]


def _settings(sentences: Path, quick: bool) -> Settings:
    make = Settings.smoke if quick else Settings
    settings = make(read_sentences(sentences), available_cpus())
    return replace(settings, load_seconds=min(_SECONDS, settings.load_seconds))


@app.command("memory")
def _memory_command(sentences: _Sentences = SENTENCES, results: _Results = RESULTS, quick: _Quick = False) -> None:
    """Resident memory with one lane and with four."""
    publish(list(memory(_settings(sentences, quick))), results, "memory")


@app.command("neighbour")
def _neighbour_command(sentences: _Sentences = SENTENCES, results: _Results = RESULTS, quick: _Quick = False) -> None:
    """Throughput and p95 beside another busy process, against those without."""
    publish(list(neighbour(_settings(sentences, quick))), results, "neighbour")


@app.command("latency")
def _latency_command(
    before: Annotated[str, typer.Option(help="The older state: a commit of this repository.")],
    sentences: _Sentences = SENTENCES,
    results: _Results = RESULTS,
    quick: _Quick = False,
) -> None:
    """First token, p50 and p95 of single texts, of an older state of the code and of this one."""
    publish(list(latency(_settings(sentences, quick), before)), results, "latency")


if __name__ == "__main__":
    app()
