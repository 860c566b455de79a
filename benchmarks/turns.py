"""Turns of several models on one device: what they cost a model that is alone, and what each of two busy ones gets.

Not a part of `python -m benchmarks`, which compares with peers: this compares Dragoman with itself, and whatever is
compared alternates in the same run. All models are int8.

    python -m benchmarks.turns [--before COMMIT]
"""

import contextlib
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.comparison import Workload
from benchmarks.conditions import check_out
from benchmarks.models import default_model, opus_base
from benchmarks.report import Row, Subject, publish
from benchmarks.settings import RESULTS, SENTENCES, Settings, read_sentences
from benchmarks.statistics import Summary, paired_ratios
from benchmarks.systems import Source
from benchmarks.worker import running
from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import Engine, StepReport
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.machine import available_cpus

_BATCHES = (1, 256)
_MIN_SENTENCES = 128  # of one run, for runs of single sentences to be long enough to be measured
_RUNS_OF_A_PROCESS = 3
_NUM_IDLE = 9
_NUM_IN_FLIGHT = 256  # requests of a busy model: as many as two lanes have rows
_OPUS_TOKENS = 20  # of every source and target
_SECONDS = 4.0  # of one measurement under load
_WARM_UP_SECONDS = 1.0  # before it
_ROOT = Path(__file__).parent.parent

Translate = Callable[[Sequence[Source], int], Sequence[Sequence[int]]]
"""Translates a batch, with targets of at most so many tokens."""


# -- one model that has work -----------------------------------------------------------------------------------------


def alone(settings: Settings, before: str) -> Iterator[Row]:
    """Whole batches by the only model on its device, of an older state of the code and of this one.

    Raises:
        subprocess.CalledProcessError: git does not know `before`.
        RuntimeError: the engine of a state does not start.
    """
    pairs: dict[int, list[tuple[float, float]]] = {batch: [] for batch in _BATCHES}
    workload = _default_workload(settings)
    with tempfile.TemporaryDirectory() as folder:
        check_out(before, Path(folder))
        for _ in range(settings.num_pairs):
            # In new processes each time: where things lie in memory moves the speed of a process by some percent.
            with _engine_of(Path(folder), before) as old, _engine_of(_ROOT, "this") as new:
                for batch in _BATCHES:
                    for translate in (old, new):
                        _rate(translate, workload, batch, settings)  # the first run allocates
                    for _ in range(_RUNS_OF_A_PROCESS):
                        rate = _rate(old, workload, batch, settings)
                        pairs[batch].append((rate, _rate(new, workload, batch, settings)))
    subjects = [Subject("Dragoman", name, "int8", settings.threads, "default") for name in (before, "this")]
    yield from _compared(pairs, subjects, ("alone", "alone"), "alone, of that before")


@contextlib.contextmanager
def _engine_of(root: Path, name: str) -> Iterator[Translate]:
    path = os.pathsep.join([str(root / "client"), str(root / "server")])
    with running(name, sys.executable, Path(__file__).with_name("engine_worker.py"), PYTHONPATH=path) as worker:
        yield lambda batch, limit: worker.ask(sources=batch, max_target_tokens=limit)


def beside_idle(settings: Settings) -> Iterator[Row]:
    """Whole batches by a model beside nine that have nothing to do, against the same model alone on its device."""
    pairs: dict[int, list[tuple[float, float]]] = {batch: [] for batch in _BATCHES}
    workload = _default_workload(settings)
    with _tenants([workload] * (1 + _NUM_IDLE)) as (device, tenants):
        tenant, *others = tenants
        idle = [other.model.engine for other in others if isinstance(other.model.engine, Engine)]

        def translate(batch: Sequence[Source], limit: int) -> list[Sequence[int]]:
            futures = tenant.model.engine.submit([Request(source, limit) for source in batch])
            return [future.result().hypotheses[0].token_ids for future in futures]

        for batch in _BATCHES:
            _rate(translate, workload, batch, settings)  # the first run allocates
            for _ in range(_RUNS_OF_A_PROCESS * settings.num_pairs):
                for engine in idle:
                    device.detach(engine)
                rate = _rate(translate, workload, batch, settings)
                for engine in idle:
                    device.attach(engine)
                pairs[batch].append((rate, _rate(translate, workload, batch, settings)))
        subject = tenant.subject(settings)
    words = f"beside {_NUM_IDLE} idle models"
    yield from _compared(pairs, [subject, subject], ("alone", words), f"{words}, of alone")


def _rate(translate: Translate, workload: Workload, size: int, settings: Settings) -> float:
    """Tokens per second."""
    batches = workload.batches(size)
    limits = [workload.decoding(batch, 1).max_target_tokens for batch in batches]
    time.sleep(settings.settle_seconds)
    translate(batches[0][:1], limits[0])  # processors of virtual machines sleep deeply
    started = time.perf_counter()
    targets = list(map(translate, batches, limits))
    return sum(map(len, itertools.chain.from_iterable(targets))) / (time.perf_counter() - started)


def _compared(
    pairs: dict[int, list[tuple[float, float]]], subjects: Sequence[Subject], metrics: Sequence[str], ratio: str
) -> Iterator[Row]:
    """Both rates, and the second over the first, by size of the batch."""
    for batch, rates in pairs.items():
        both = list(zip(*rates, strict=True))
        for subject, metric, values in zip(subjects, metrics, both, strict=True):
            row = replace(_row(subject, metric, values), batch=batch, beam=1)
            yield row
        yield replace(row, metric=ratio, unit="x", value=paired_ratios(both[1], both[0]))


# -- two models that have work ---------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What a model did with the device, or did with it per second."""

    tokens: float
    lane_seconds: float  # in all lanes


@dataclass(eq=False)
class Meter:
    """Adds up what an engine reports."""

    used: Usage = field(default_factory=lambda: Usage(0.0, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, engine: int, report: StepReport) -> None:
        step = report.step
        with self._lock:
            tokens, seconds = self.used
            self.used = Usage(tokens + step.num_decoded, seconds + step.decode_seconds + step.encode_seconds)


@dataclass(frozen=True, eq=False)
class Tenant:
    """A model on a device that it shares, and what it is given to do."""

    model: Model
    workload: Workload
    meter: Meter

    def subject(self, settings: Settings) -> Subject:
        precision = self.model.manifest.precision
        return Subject.of("Dragoman", "dragoman", precision, settings.threads, self.workload.model.name)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keeps so many requests in flight that every row has work."""
        decoding = self.workload.decoding(self.workload.sources, 1)
        options = SearchOptions(min_target_tokens=decoding.min_target_tokens)
        sources = itertools.cycle(self.workload.sources)
        is_over, ended = threading.Event(), threading.Semaphore(0)

        def submit_next(_: Any) -> None:
            if is_over.is_set():
                ended.release()
                return
            [future] = self.model.engine.submit([Request(next(sources), decoding.max_target_tokens, options=options)])
            future.add_done_callback(submit_next)

        for _ in range(_NUM_IN_FLIGHT):
            submit_next(None)
        try:
            yield
        finally:
            is_over.set()
            for _ in range(_NUM_IN_FLIGHT):
                ended.acquire()


def two_busy(settings: Settings) -> Iterator[Row]:
    """Two models with all their rows in use, against each of them alone: twice the default, then it and OPUS-base."""
    default = _default_workload(settings)
    yield from _two_busy([default, default], settings)
    with tempfile.TemporaryDirectory() as folder:
        model = opus_base(Path(folder), settings)
        sources = model.random_sources(_NUM_IN_FLIGHT, num_tokens=_OPUS_TOKENS)
        yield from _two_busy([default, Workload(model, sources, 1, _OPUS_TOKENS)], settings)


def _two_busy(workloads: Sequence[Workload], settings: Settings) -> Iterator[Row]:
    names = " and ".join(workload.model.name for workload in workloads)
    measured: list[tuple[list[Usage], list[Usage]]] = []  # each alone, and all together
    with _tenants(workloads) as (_, tenants):
        for _ in range(settings.num_pairs):
            alone = [usage for tenant in tenants for usage in _usage([tenant], settings)]
            measured.append((alone, _usage(tenants, settings)))
        subjects = [tenant.subject(settings) for tenant in tenants]

    def row(subject: Subject, metric: str, unit: str, values: Sequence[float]) -> Row:
        return replace(_row(subject, f"{names}, {metric}", values), unit=unit)

    for i, subject in enumerate(subjects):
        yield row(subject, "each alone", "tokens/s", [alone[i].tokens for alone, _ in measured])
        yield row(subject, "both busy", "tokens/s", [both[i].tokens for _, both in measured])
        shares = [100 * both[i].lane_seconds / sum(usage.lane_seconds for usage in both) for _, both in measured]
        yield row(subject, "share of the lanes' time", "%", shares)
    # Of what it does alone each does a part in its share of the time: without any loss the parts add up to one.
    sums = [sum(b.tokens / a.tokens for a, b in zip(alone, both, strict=True)) for alone, both in measured]
    yield row(replace(subjects[0], model=names), "both busy, of one that has all the time", "x", sums)


def _usage(tenants: Sequence[Tenant], settings: Settings) -> list[Usage]:
    """Of each per second, while all of them are busy."""
    with contextlib.ExitStack() as stack:
        for tenant in tenants:
            stack.enter_context(tenant.busy())
        time.sleep(min(_WARM_UP_SECONDS, settings.load_seconds))
        started, before = time.perf_counter(), [tenant.meter.used for tenant in tenants]
        time.sleep(settings.load_seconds)
        seconds, after = time.perf_counter() - started, [tenant.meter.used for tenant in tenants]
    return [
        Usage((new.tokens - old.tokens) / seconds, (new.lane_seconds - old.lane_seconds) / seconds)
        for old, new in zip(before, after, strict=True)
    ]


@contextlib.contextmanager
def _tenants(workloads: Sequence[Workload]) -> Iterator[tuple[Device, list[Tenant]]]:
    """A model for each workload, all on one device, as the server runs them."""
    options = EngineOptions()
    with Hardware(options) as hardware, contextlib.ExitStack() as stack:
        tenants: list[Tenant] = []
        for workload in workloads:
            meter = Meter()
            model = Model.open(workload.model.bundle.folder, options, hardware, on_step=meter)
            tenants.append(Tenant(stack.enter_context(model), workload, meter))
        (seat,) = hardware.seats(workloads[0].model.bundle)
        yield seat.device, tenants


# -- the command -----------------------------------------------------------------------------------------------------


def _default_workload(settings: Settings) -> Workload:
    model = default_model()
    sources = model.sentence_sources(settings.sentences)
    return Workload(model, sources, min_sentences=1 if settings.is_quick else _MIN_SENTENCES)


def _row(subject: Subject, metric: str, tokens_per_second: Sequence[float]) -> Row:
    return Row("turns", subject, metric, "tokens/s", Summary.of(tokens_per_second))


def main(
    before: Annotated[str, typer.Option(help="An older state: a commit of this repository to compare with.")] = "",
    sentences: Annotated[Path, typer.Option(help="File of English sentences, one a line.")] = SENTENCES,
    results: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Run all of the code, but measure nothing.")] = False,
) -> None:
    """Turns of several models on one device: shares and costs."""
    make = Settings.smoke if quick else Settings
    settings = make(read_sentences(sentences), available_cpus())
    settings = replace(settings, load_seconds=min(_SECONDS, settings.load_seconds))
    rows = list(alone(settings, before)) if before else []
    publish([*rows, *beside_idle(settings), *two_busy(settings)], results, "turns")


if __name__ == "__main__":
    typer.run(main)
