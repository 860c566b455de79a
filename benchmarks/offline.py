"""Batches of token ids: the engine in this process against its peers on the same weights and cores.

The throughput counts target tokens over whole translations, encoder included.
"""

import contextlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.comparison import SLOW, Workload, compare
from benchmarks.ct2 import COMPUTE_TYPES, CTranslate2System, save_ctranslate2
from benchmarks.models import at_precision, default_model, opus_base
from benchmarks.report import Row
from benchmarks.settings import Settings, run_part
from benchmarks.systems import (
    System,
    TransformersSystem,
    dragoman,
)
from benchmarks.workers import marian, optimum

# Sentences of a call, by beam size.
BATCHES = {1: (1, 8, 32, 64, 256), 4: (1, 8, 32, 64)}
FILE_SIZE = 3000  # sentences, in one call
_QUICK_BATCHES, _QUICK_FILE_SIZE = (1, 4), 300
_LARGEST_BATCH = max(BATCHES[1])
_FORCED_TOKENS = 20
_SLOW_BATCH = 64  # the largest that those are measured with that are several times as slow as the others


def run(settings: Settings) -> Iterator[Row]:
    """Throughput of whole batches against CTranslate2, Marian, ONNX Runtime by optimum and Hugging Face.

    Raises:
        UnequalWeightsError: a peer does not reproduce the model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = opus_base(folder, settings)
        sources = model.random_sources(FILE_SIZE, num_tokens=_FORCED_TOKENS)
        workload = Workload(model, sources, 1 if settings.is_quick else 8, _FORCED_TOKENS)
        # CTranslate2's float32 is the slower of its types for a model of this size.
        yield from _measure(workload, settings, folder / "opus", int8_peers=("int8",))
        model = default_model()
        sources = model.sentence_sources(settings.sentences)
        random.Random(0).shuffle(sources)  # files of sentences are often sorted; calls are not
        workload = Workload(model, sources, 1 if settings.is_quick else 64)
        yield from _measure(workload, settings, folder / "default", int8_peers=("int8", "fp32"))


def _measure(workload: Workload, settings: Settings, folder: Path, int8_peers: Sequence[str]) -> Iterator[Row]:
    model, threads, sizes = workload.model, settings.threads, _sizes(settings)
    save_ctranslate2(model.checkpoint, folder / "ctranslate2")
    ctranslate2 = {
        precision: CTranslate2System.load(folder / "ctranslate2", model, precision, threads)
        for precision in COMPUTE_TYPES
    }
    with contextlib.ExitStack() as stack:
        is_forced = workload.forced_tokens is not None
        peers: list[System | None] = [ctranslate2[precision] for precision in int8_peers]
        peers.append(stack.enter_context(marian(model, folder / "marian", threads, never_ends=is_forced)))
        peers.append(stack.enter_context(optimum(model, folder / "optimum", threads)))
        peers.append(TransformersSystem.load(model, threads))
        yield from _compare_all(workload, [peer for peer in peers if peer is not None], sizes, settings)
    in_fp32 = replace(workload, model=at_precision(model, folder / "fp32", "fp32"))
    short = [size for size in sizes if size[1] <= _SLOW_BATCH]
    yield from _compare_all(in_fp32, [ctranslate2["fp32"]], short, settings)


def _sizes(settings: Settings) -> list[tuple[int, int]]:
    """Beam size and batch, the file last."""
    batches = dict.fromkeys(BATCHES, _QUICK_BATCHES) if settings.is_quick else BATCHES
    sizes = [(beam, batch) for beam, of_beam in batches.items() for batch in of_beam]
    return [*sizes, (1, _QUICK_FILE_SIZE if settings.is_quick else FILE_SIZE)]


def _compare_all(
    workload: Workload, peers: Sequence[System], sizes: Sequence[tuple[int, int]], settings: Settings
) -> Iterator[Row]:
    for beam, batch in sizes:
        able = [peer for peer in peers if batch <= _SLOW_BATCH or not isinstance(peer, SLOW)]
        with dragoman(workload.model, settings.threads) as ours:
            is_file = batch > _LARGEST_BATCH
            yield from compare(ours, able, workload, batch, beam, settings, is_file=is_file)


if __name__ == "__main__":
    run_part("offline", run)
