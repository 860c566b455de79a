"""What a sentence costs, how many cores one process can use, and how many processes a rate needs.

    python -m benchmarks.scaling

Not a part of `python -m benchmarks`. Costs are CPU time, which a busy machine changes little: of one lane of one thread
with 1 to 64 sentences at a time, and of the event loop of a server. The rest is simulated from them by
`benchmarks.fleet_model`. docs/scaling.md has the figures and what follows from them.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL
from typing import Any
from unittest import mock

import onnxruntime

from benchmarks.fleet_model import Costs, Sentence, cores_worth_having, num_processes, throughput
from benchmarks.models import Model, default_model, opus_base
from benchmarks.report import Row, Subject
from benchmarks.servers import Server, dragoman_server
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary
from benchmarks.systems import dragoman
from dragoman_server.engine.sequence import Request

_ROWS = (1, 8, 32, 64)
_CORES = (1, 2, 4, 8, 16, 32)
_RATES = (1, 100, 10_000)
_NUM_TOKENS = 20  # of each source and target where the weights are random and end nothing
_LOADS = {"calls of one text": (64, 1), "calls of 64 texts": (8, 64)}
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def run(settings: Settings) -> Iterator[Row]:
    """Costs of a sentence, and what servers of 1 to 32 cores make of them.

    Raises:
        RuntimeError: the server does not start.
    """
    short = replace(settings, load_seconds=settings.load_seconds / 5)
    with tempfile.TemporaryDirectory() as name:
        default = default_model()
        with dragoman_server(default, short, "--lanes", "1", "--num-threads", "1", log=DEVNULL) as server:
            of_wire = {load: _wire_seconds(server, short, *sizes) for load, sizes in _LOADS.items()}
            for load, seconds in of_wire.items():
                yield server.row(f"event loop per text, {load}", "ms", Summary.single(1e3 * seconds))
        for model in (default, opus_base(Path(name), settings)):
            subject = Subject.of("Dragoman", "dragoman", model.bundle.manifest.precision, 1, model.name)
            sentences = {num_rows: _sentence(model, short, num_rows) for num_rows in _ROWS}
            for num_rows, cost in sentences.items():
                yield from _cost_rows(subject, num_rows, cost)
            for load, seconds in of_wire.items():
                yield from _simulated(replace(subject, setting=load), Costs(sentences[_ROWS[-1]], seconds))


def _cost_rows(subject: Subject, num_rows: int, cost: Sentence) -> Iterator[Row]:
    figures = {
        "CPU time of a sentence": (1e3 * cost.core_seconds, "ms"),
        "of it in Python": (1e3 * cost.lock_seconds, "ms"),
        "share of Python": (100 * cost.lock_seconds / cost.core_seconds, "%"),
    }
    for metric, (value, unit) in figures.items():
        row = Row("scaling", subject, metric, unit, Summary.single(value))
        yield replace(row, variable="sentences at a time", x=num_rows)


def _simulated(subject: Subject, costs: Costs) -> Iterator[Row]:
    for num_cores in _CORES:
        found = throughput(costs, num_cores)
        row = Row("scaling", subject, f"simulated, limited by the {found.limit}", "sentences/s", Summary.single(0))
        yield replace(row, value=Summary.single(found.per_second), variable="cores of a process", x=num_cores)
    best = cores_worth_having(costs)
    yield Row("scaling", subject, "cores worth giving to a process", "cores", Summary.single(best))
    for rate in _RATES:
        number = num_processes(costs, best, rate)
        row = Row("scaling", subject, f"processes of {best} cores", "processes", Summary.single(number))
        yield replace(row, variable="sentences/s", x=rate)


# -- costs ------------------------------------------------------------------------------------------------------------


def _sentence(model: Model, settings: Settings, num_rows: int) -> Sentence:
    """Of a lane that always has so many sentences, each replaced when it is finished.

    What is not spent within ONNX Runtime is Python's, which needs the interpreter's lock.
    """
    sources, limit = model.random_sources(256, _NUM_TOKENS), _NUM_TOKENS
    if model.name == "default":
        sources, limit = model.sentence_sources(settings.sentences), 0
    most = model.bundle.manifest.limits.max_target_tokens
    requests = itertools.cycle([Request(source, limit or min(3 * len(source) + 32, most)) for source in sources])
    done: SimpleQueue[Any] = SimpleQueue()
    with _one_cpu(), dragoman(model, 1, num_rows, lanes=1) as system:

        def submit(number: int) -> None:
            for future in system.engine.submit([*itertools.islice(requests, number)]):
                future.add_done_callback(done.put)

        def finish(seconds: float) -> tuple[int, int]:
            """Goes on for some seconds; returns how many sentences were finished, and their tokens."""
            num_sentences, num_tokens, end = 0, 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                num_tokens += len(done.get().result().hypotheses[0].token_ids)
                num_sentences += 1
                submit(1)
            return num_sentences, num_tokens

        submit(num_rows)
        finish(settings.load_seconds / 3)  # the first run allocates
        with _timed_inference() as inference:
            began = _seconds_of_others()
            num_sentences, num_tokens = finish(settings.load_seconds)
            seconds, computing = _seconds_of_others() - began, sum(inference)
        for _ in range(num_rows):
            done.get()
    return Sentence(seconds / num_sentences, (seconds - computing) / num_sentences, num_tokens / num_sentences)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """For all threads that are started meanwhile: a large model's only lane would compute with those of all CPUs."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def _seconds_of_others() -> float:
    """CPU time of all threads but this one, which does what a server's event loop does."""
    return time.process_time() - time.thread_time()


@contextmanager
def _timed_inference() -> Iterator[list[float]]:
    """The CPU time of each run of ONNX Runtime by the calling thread, which is all of it where it has one thread."""
    spent: list[float] = []

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        def timed_run(*args: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return run(*args, **options)
            finally:
                spent.append(time.thread_time() - began)

        return timed_run

    session = onnxruntime.InferenceSession
    with mock.patch.multiple(session, run=timed(session.run), run_with_iobinding=timed(session.run_with_iobinding)):
        yield spent


def _wire_seconds(server: Server, settings: Settings, num_callers: int, texts_per_call: int) -> float:
    """CPU time of the server's first thread, which runs the event loop, for a text."""
    server.saturate(settings, num_callers, texts_per_call)  # the first run allocates
    began = _first_thread_seconds(server.pid)
    outcome = server.saturate(settings, num_callers, texts_per_call)
    num_texts = outcome.calls_per_second * outcome.seconds * texts_per_call
    return (_first_thread_seconds(server.pid) - began) / max(1.0, num_texts)


def _first_thread_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


if __name__ == "__main__":
    run_part("scaling", run)
