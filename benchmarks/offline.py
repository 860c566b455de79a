"""Batches of token ids: the engine in this process against its peers on the same weights and cores.

The throughput counts target tokens over whole translations, encoder included.
"""

import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from benchmarks.ct2 import COMPUTE_TYPES, CTranslate2System, save_ctranslate2
from benchmarks.models import Model, at_fp32, default_model, opus_base
from benchmarks.report import Row
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, paired_ratios
from benchmarks.systems import (
    Decoding,
    Source,
    System,
    TransformersSystem,
    TunableSystem,
    dragoman,
)
from benchmarks.workers import OptimumSystem, marian, optimum

# Sentences of a call, by beam size.
BATCHES = {1: (1, 8, 32, 64, 256), 4: (1, 8, 32, 64)}
FILE_SIZE = 3000  # sentences, in one call
_QUICK_BATCHES, _QUICK_FILE_SIZE = (1, 4), 300
_LARGEST_BATCH = max(BATCHES[1])
_MOST_TUNING_SENTENCES = 512
_FORCED_TOKENS = 20
# Several times as slow as the others: measured in fewer runs, and not with the largest batches.
_SLOW = (TransformersSystem, OptimumSystem)
_SLOW_EVERY, _SLOW_BATCH = 3, 64


@dataclass(frozen=True)
class Workload:
    """A model and what it is given."""

    model: Model
    sources: Sequence[Source]
    min_sentences: int  # in one run, for runs of small batches to be long enough to be measured
    forced_tokens: int | None = None  # length of every target; None: as long as it is

    def batches(self, size: int) -> list[Sequence[Source]]:
        """What one run translates, batch after batch; the sources from the start again where they do not suffice."""
        return self._batches(self.sources, size)

    def tuning_batches(self, size: int) -> list[Sequence[Source]]:
        """What a peer is set up with: other sentences, as far as there are any, and a part of the largest batch."""
        return self._batches(self.sources[::-1], min(size, _MOST_TUNING_SENTENCES))

    def _batches(self, of: Sequence[Source], size: int) -> list[Sequence[Source]]:
        sources = itertools.cycle(of)
        return [tuple(itertools.islice(sources, size)) for _ in range(max(1, self.min_sentences // size))]

    def decoding(self, batch: Sequence[Source], beam_size: int) -> Decoding:
        """The limit is one for a whole batch, as the peers want it: more than any translation needs."""
        if self.forced_tokens:
            return Decoding(beam_size, self.forced_tokens, self.forced_tokens)
        most = self.model.bundle.manifest.limits.max_target_tokens
        return Decoding(beam_size, min(3 * max(map(len, batch)) + 32, most))


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
    in_fp32 = replace(workload, model=at_fp32(model, folder / "fp32"))
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
        able = [peer for peer in peers if batch <= _SLOW_BATCH or not isinstance(peer, _SLOW)]
        with dragoman(workload.model, settings.threads) as ours:
            yield from compare(ours, able, workload, batch, beam, settings)


def compare(
    ours: System, peers: Sequence[System], workload: Workload, batch: int, beam: int, settings: Settings
) -> Iterator[Row]:
    """One size of batch and beam: runs of ours and of a peer alternate, peer after peer, round after round.

    A peer has the setting that is the fastest on other sentences, tried in this run; ours is always the same. Only the
    fastest of the peers there is given a whole file.
    """
    batches = workload.batches(batch)
    tuning = workload.tuning_batches(batch)

    def tokens_per_second(system: System, batches: Sequence[Sequence[Source]] = batches) -> float:
        decodings = [workload.decoding(sources, beam) for sources in batches]
        time.sleep(settings.settle_seconds)
        system.translate(batches[0][:1], decodings[0])  # processors of virtual machines sleep deeply
        started = time.perf_counter()
        targets = [system.translate(sources, d) for sources, d in zip(batches, decodings, strict=True)]
        seconds = time.perf_counter() - started
        return sum(map(len, itertools.chain.from_iterable(targets))) / seconds

    def at_its_best(peer: System) -> tuple[float, System]:
        if not isinstance(peer, TunableSystem):
            return 0.0, peer
        candidates = [peer.at(setting) for setting in peer.settings(batch)]
        return max(((max(tokens_per_second(c, tuning) for _ in range(2)), c) for c in candidates), key=itemgetter(0))

    is_file = batch > _LARGEST_BATCH
    tuned = [at_its_best(peer) for peer in peers]
    peers = [max(tuned, key=itemgetter(0))[1]] if is_file else [peer for _, peer in tuned]
    for system in (ours, *peers):
        tokens_per_second(system)  # the first run allocates
    pairs: dict[System, list[tuple[float, float]]] = {peer: [] for peer in peers}
    for i, peer in itertools.product(range(settings.num_pairs), peers):
        if i % _SLOW_EVERY == 0 or not isinstance(peer, _SLOW):
            pairs[peer].append((tokens_per_second(ours), tokens_per_second(peer)))
    metric = f"throughput of a file, {_described(workload, batch)}" if is_file else "throughput"

    def row(system: System, values: Sequence[float], ratio: Summary | None) -> Row:
        return Row(
            "offline", system.subject, metric, "tokens/s", Summary.of(values), batch, beam, "batch", batch, ratio=ratio
        )

    yield row(ours, [a for samples in pairs.values() for a, _ in samples], None)
    for peer, samples in pairs.items():
        ours_beside, theirs = zip(*samples, strict=True)
        yield row(peer, theirs, paired_ratios(ours_beside, theirs))


def _described(workload: Workload, batch: int) -> str:
    number = min(len(workload.sources), batch)
    return f"{number} sentences" + (", again and again" if number < batch else "")


if __name__ == "__main__":
    run_part("offline", run)
