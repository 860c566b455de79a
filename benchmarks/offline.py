"""Batches of token ids: the engine in this process against CTranslate2 and Hugging Face on the same weights and cores.

The throughput counts target tokens over whole translations, encoder included.
"""

import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.models import Model, at_fp32, default_model, opus_base
from benchmarks.peers import save_ctranslate2
from benchmarks.report import Row
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, paired_ratios
from benchmarks.systems import (
    COMPUTE_TYPES,
    CTranslate2System,
    Decoding,
    Source,
    System,
    TransformersSystem,
    dragoman,
)
from dragoman_server.config import EngineOptions

BATCHES, BEAMS = (1, 8, 32, 64, 256), (1, 4)
_FORCED_TOKENS = 20


@dataclass(frozen=True)
class Workload:
    """A model and what it is given."""

    model: Model
    sources: Sequence[Source]
    min_sentences: int  # in one run, for runs of small batches to be long enough to be measured
    forced_tokens: int | None = None  # length of every target; None: as long as it is

    def batches(self, size: int, *, other: bool = False) -> list[Sequence[Source]]:
        """What one run translates, batch after batch; the sources from the start again where they do not suffice.

        Of the `other` batches, which peers are set up with, the sources come in reverse order.
        """
        sources = itertools.cycle(self.sources[::-1] if other else self.sources)
        return [tuple(itertools.islice(sources, size)) for _ in range(max(1, self.min_sentences // size))]

    def decoding(self, batch: Sequence[Source], beam_size: int) -> Decoding:
        """The limit is one for a whole batch, as the peers want it: more than any translation needs."""
        if self.forced_tokens:
            return Decoding(beam_size, self.forced_tokens, self.forced_tokens)
        most = self.model.bundle.manifest.limits.max_target_tokens
        return Decoding(beam_size, min(3 * max(map(len, batch)) + 32, most))


def run(settings: Settings) -> Iterator[Row]:
    """Throughput of whole batches against CTranslate2 and Hugging Face.

    Raises:
        UnequalWeightsError: a peer does not reproduce the model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = opus_base(folder, settings)
        sources = model.random_sources(max(BATCHES), num_tokens=20)
        workload = Workload(model, sources, 1 if settings.is_quick else 8, _FORCED_TOKENS)
        # CTranslate2's float32 is the slower of its types for a model of this size.
        yield from _measure(workload, settings, folder / "opus", int8_peers=("int8",))
        model = default_model()
        sources = model.sentence_sources(settings.sentences)
        random.Random(0).shuffle(sources)  # files of sentences are often sorted; calls are not
        workload = Workload(model, sources, 1 if settings.is_quick else 64)
        yield from _measure(workload, settings, folder / "default", int8_peers=("int8", "fp32"))


def _measure(workload: Workload, settings: Settings, folder: Path, int8_peers: Sequence[str]) -> Iterator[Row]:
    model, threads = workload.model, settings.threads
    save_ctranslate2(model.checkpoint, folder / "ctranslate2")
    ctranslate2 = {
        precision: CTranslate2System.load(folder / "ctranslate2", model, precision, threads)
        for precision in COMPUTE_TYPES
    }
    peers: tuple[System, ...] = (*(ctranslate2[p] for p in int8_peers), TransformersSystem.load(model, threads))
    yield from _sizes(workload, peers, settings)
    in_fp32 = replace(workload, model=at_fp32(model, folder / "fp32"))
    yield from _sizes(in_fp32, (ctranslate2["fp32"],), settings)


def _sizes(workload: Workload, peers: Sequence[System], settings: Settings) -> Iterator[Row]:
    for beam, batch in itertools.product(BEAMS, (1, 4) if settings.is_quick else BATCHES):
        with dragoman(workload.model, EngineOptions().max_running, settings.threads) as ours:
            yield from compare(ours, peers, workload, batch, beam, settings)


def compare(
    ours: System, peers: Sequence[System], workload: Workload, batch: int, beam: int, settings: Settings
) -> Iterator[Row]:
    """One size of batch and beam: runs of ours and of a peer alternate, peer after peer, round after round.

    CTranslate2 has the setting that is the fastest on other sentences, tried in this run; ours is always the same.
    Hugging Face, which takes ten times as long as the others and is as far behind, has every other round.
    """
    batches = workload.batches(batch)
    decodings = [workload.decoding(sources, beam) for sources in batches]

    def tokens_per_second(system: System, batches: Sequence[Sequence[Source]] = batches) -> float:
        time.sleep(settings.settle_seconds)
        system.translate(batches[0][:1], decodings[0])  # processors of virtual machines sleep deeply
        started = time.perf_counter()
        targets = [system.translate(sources, d) for sources, d in zip(batches, decodings, strict=True)]
        seconds = time.perf_counter() - started
        return sum(map(len, itertools.chain.from_iterable(targets))) / seconds

    def at_its_best(peer: System) -> System:
        if not isinstance(peer, CTranslate2System):
            return peer
        others = workload.batches(batch, other=True)
        candidates = [peer.at(setting) for setting in peer.settings(batch)]
        rates = [max(tokens_per_second(system, others) for _ in range(2)) for system in candidates]
        return candidates[rates.index(max(rates))]

    peers = [at_its_best(peer) for peer in peers]
    for system in (ours, *peers):
        tokens_per_second(system)  # the first run allocates
    pairs: dict[System, list[tuple[float, float]]] = {peer: [] for peer in peers}
    for i, peer in itertools.product(range(settings.num_pairs), peers):
        if i % 2 == 0 or not isinstance(peer, TransformersSystem):
            pairs[peer].append((tokens_per_second(ours), tokens_per_second(peer)))

    def row(system: System, values: Sequence[float], ratio: Summary | None) -> Row:
        figure = Summary.of(values)
        return Row(
            "offline", system.subject, "throughput", "tokens/s", figure, batch, beam, "batch", batch, ratio=ratio
        )

    yield row(ours, [a for samples in pairs.values() for a, _ in samples], None)
    for peer, samples in pairs.items():
        ours_beside, theirs = zip(*samples, strict=True)
        yield row(peer, theirs, paired_ratios(ours_beside, theirs))


if __name__ == "__main__":
    run_part("offline", run)
