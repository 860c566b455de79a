"""Single steps and encoder runs of the runner, with CUDA graphs and without, against the bandwidth of the memory.

A step reads all weights of the decoder once, however many rows it has: it cannot be faster than that.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmarks.gpu.card import bandwidth
from benchmarks.gpu.plan import LeftOutError, Plan
from benchmarks.models import Model
from benchmarks.report import Row, Subject, package_version
from benchmarks.statistics import Summary
from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.graph import read_graph
from dragoman_server.bundle.manifest import DECODER_STEP_FILE
from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner

_NUM_SOURCE_TOKENS = 20
_WARM_UP = 5
_NUM_ENCODER_RUNS = 10
_MODES = {"CUDA graph": True, "without CUDA graph": False}


def run(plan: Plan, model: Model) -> Iterator[Row]:
    """Times of steps and of the encoder by batch size, and the floor where it can be measured."""
    bundle, contents = Bundle.load(model.bundle.folder)
    subject = Subject("Dragoman", package_version("dragoman"), bundle.manifest.precision, 1, model.name)
    num_bytes = step_bytes(contents)
    yield Row("steps", subject, "weights read by a step", "MB", Summary.single(num_bytes / 1e6))
    floor = None
    try:
        for name, rate in bandwidth(plan).items():
            yield Row(
                "steps", Subject("PyTorch", package_version("torch"), "fp32", 1, ""), f"bandwidth, {name}", "GB/s", rate
            )
            floor = min(floor or 1e9, 1000 * num_bytes / (rate.median * 1e9))
        assert floor is not None
        yield Row("steps", subject, "floor of a step", "ms", Summary.single(floor))
    except LeftOutError as reason:
        print(f"steps: no floor: {reason}.", flush=True)
    graphs = DeviceGraphs.open(bundle.manifest, contents, plan.memory)
    num_rows = max(plan.step_batches)
    runners = {
        mode: DeviceRunner(graphs, num_rows, max_captured_rows=num_rows if is_captured else 0)
        for mode, is_captured in _MODES.items()
    }
    for batch in plan.step_batches:
        plan.require_time()
        yield from _at(plan, runners, model.random_sources(batch, _NUM_SOURCE_TOKENS), subject, floor)
    for runner in runners.values():
        runner.close()


def step_bytes(contents: Contents) -> int:
    """Of the weights of the step that each step reads from end to end: not of tables of which it reads a few rows.

    A matrix that is both the embedding and the output projection is read whole.
    """
    read_whole = {
        name
        for node in read_graph(contents.graphs[DECODER_STEP_FILE]).nodes
        for name in node.inputs
        if node.operator != "Gather"
    }
    return sum(weight.nbytes for name, weight in contents.weights.items() if name in read_whole)


def _at(
    plan: Plan,
    runners: Mapping[str, DeviceRunner],
    sources: list[tuple[int, ...]],
    subject: Subject,
    floor: float | None,
) -> Iterator[Row]:
    batch = len(sources)
    medians: list[float] = []
    for mode, runner in runners.items():
        encoder = _encoder_times(runner, sources)  # also for the rows of the steps
        if not medians:
            yield _row(subject, "encoder", encoder, batch)
        step, of_mode = _step_times(plan, runner, batch), replace(subject, setting=mode)
        medians.append(step.median)
        yield _row(of_mode, "step", step, batch)
        if floor is not None:
            yield _row(of_mode, "step, times the floor", _divided(step, floor), batch, "x")
    captured, plain = medians
    yield _row(subject, "a step without a CUDA graph, over one with", Summary.single(plain / captured), batch, "x")


def _row(subject: Subject, metric: str, value: Summary, batch: int, unit: str = "ms") -> Row:
    return Row("steps", subject, metric, unit, value, batch, 1, "batch", batch)


def _encoder_times(runner: DeviceRunner, sources: list[tuple[int, ...]]) -> Summary:
    """In milliseconds, the tenths."""
    times = []
    for _ in range(_NUM_ENCODER_RUNS + 2):
        started = time.perf_counter()
        runner.encode(sources, 0)
        times.append(1000 * (time.perf_counter() - started))
    return _tenths(times[2:])


def _step_times(plan: Plan, runner: DeviceRunner, batch: int) -> Summary:
    """In milliseconds, the tenths: as greedy decoding has it, one position after the other, all within one capacity."""
    fed, times = [3] * batch, []
    for step in range(_WARM_UP + plan.num_steps):
        started = time.perf_counter()
        output = runner.decode_step(fed, [step] * batch)
        times.append(1000 * (time.perf_counter() - started))
        fed = output.top_ids[:, 0].tolist()
    return _tenths(times[_WARM_UP:])


def _tenths(values: list[float]) -> Summary:
    """The median between the lowest and the highest tenth, beyond which is chance."""
    ordered = sorted(values)
    return Summary(statistics.median(ordered), ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10])


def _divided(value: Summary, by: float) -> Summary:
    return Summary(value.median / by, value.low / by, value.high / by)
