"""What a translation costs as one thing grows: time per token by batch, source and target; memory by rows.

All of the engine alone with the default model, on random tokens, which can have any length.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import Model, default_model
from benchmarks.report import Row, Subject
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary
from benchmarks.systems import Decoding, DragomanSystem, dragoman

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_LENGTHS = (5, 10, 20, 40, 80, 160, 320)
_BATCH, _NUM_TOKENS = 16, 20  # of what does not grow
_MEMORY_NUM_TOKENS = 100  # of every source and every target
_MEBIBYTE = 1 << 20


def run(settings: Settings) -> Iterator[Row]:
    """Time per token and memory, as batches and sentences grow."""
    model = default_model()
    batches, lengths = (_BATCHES[::3], _LENGTHS[::3]) if settings.is_quick else (_BATCHES, _LENGTHS)
    for batch in batches:
        yield replace(_time_per_token(model, settings, batch=batch), variable="batch", x=batch)
    for length in lengths:
        yield replace(_time_per_token(model, settings, num_source=length), variable="source tokens", x=length)
    for length in lengths:
        yield replace(_time_per_token(model, settings, num_target=length), variable="target tokens", x=length)
    for batch in batches:
        yield from _memory(batch, settings)


def _time_per_token(
    model: Model,
    settings: Settings,
    batch: int = _BATCH,
    num_source: int = _NUM_TOKENS,
    num_target: int = _NUM_TOKENS,
) -> Row:
    """Wall time of a batch, encoder included, divided by all its target tokens."""
    sources = model.random_sources(batch, num_source)
    decoding = Decoding(1, num_target, num_target)
    microseconds = []
    with dragoman(model, settings.threads, batch) as engine:
        engine.translate(sources, decoding)  # the first run allocates
        for _ in range(settings.num_pairs):
            started = time.perf_counter()
            engine.translate(sources, decoding)
            microseconds.append((time.perf_counter() - started) * 1e6 / (batch * num_target))
        return Row("curves", engine.subject, "time per token", "us", Summary.of(microseconds), batch, beam=1)


# -- memory ----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """In bytes."""

    subject: Subject
    after_load: int  # resident, less what the process had before
    after_work: int  # resident, less what the process had before
    kv_used: int  # by the tokens of this work
    kv_most: int  # were all rows as long as the model allows


def _memory(num_rows: int, settings: Settings) -> Iterator[Row]:
    """Each measured in a new process, as memory that was used before would be used again."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        memory = pool.submit(measure_memory, num_rows, settings.threads).result()
    for metric, size in (
        ("resident after loading", memory.after_load),
        ("resident after work", memory.after_work),
        ("keys and values in use", memory.kv_used),
        ("keys and values of the longest", memory.kv_most),
    ):
        value = Summary.single(size / _MEBIBYTE)
        yield Row("curves", memory.subject, metric, "MiB", value, num_rows, beam=1, variable="rows", x=num_rows)


def measure_memory(num_rows: int, threads: int) -> Memory:
    """Translates as many sentences as there are rows; to be called in a process of its own."""
    model = default_model()
    before = _resident_bytes()
    with dragoman(model, threads, num_rows) as engine:
        after_load = _resident_bytes()
        decoding = Decoding(1, _MEMORY_NUM_TOKENS, _MEMORY_NUM_TOKENS)
        engine.translate(model.random_sources(num_rows, _MEMORY_NUM_TOKENS), decoding)
        after_work = _resident_bytes()
        return Memory(
            engine.subject,
            after_load - before,
            after_work - before,
            _kv_used(engine, num_rows),
            sum(runner.max_kv_bytes for runner in engine.runners),
        )


def _kv_used(engine: DragomanSystem, num_rows: int) -> int:
    return engine.runners[0].kv_bytes_per_token * num_rows * 2 * _MEMORY_NUM_TOKENS


def _resident_bytes() -> int:
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    run_part("curves", run)
