"""Batches of token ids: the engine in this process against CTranslate2 and Hugging Face on the same weights and cores.

The throughput counts target tokens over whole translations, encoder included.
"""

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import Model, default_model, opus_base
from benchmarks.peers import save_ctranslate2
from benchmarks.report import Row
from benchmarks.settings import Settings, run_part
from benchmarks.statistics import Summary, paired_ratios
from benchmarks.systems import CTranslate2System, Decoding, Source, System, TransformersSystem, dragoman

BATCHES, BEAMS = (1, 8, 32, 64), (1, 4)
_FORCED_TOKENS = 20


@dataclass(frozen=True)
class Workload:
    """A model and what it is given."""

    model: Model
    sources: Sequence[Source]
    min_sentences: int  # in one run, for runs of small batches to be long enough to be measured
    forced_tokens: int | None = None  # length of every target; None: as long as it is

    def batches(self, size: int) -> list[Sequence[Source]]:
        """What one run translates, batch after batch; the sources from the start again where they do not suffice."""
        sources = itertools.cycle(self.sources)
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
    with tempfile.TemporaryDirectory() as folder:
        model = opus_base(Path(folder), settings)
        sources = model.random_sources(max(BATCHES), num_tokens=20)
        yield from _measure(
            Workload(model, sources, 1 if settings.is_quick else 8, _FORCED_TOKENS), settings, Path(folder) / "opus"
        )
        model = default_model()
        sources = model.sentence_sources(settings.sentences)
        yield from _measure(
            Workload(model, sources, 1 if settings.is_quick else 32), settings, Path(folder) / "default"
        )


def _measure(workload: Workload, settings: Settings, folder: Path) -> Iterator[Row]:
    model, threads = workload.model, settings.threads
    save_ctranslate2(model.checkpoint, folder)
    peers: list[System] = [
        CTranslate2System.load(folder, model, "int8", threads),
        CTranslate2System.load(folder, model, "fp32", threads),
        TransformersSystem.load(model, threads),
    ]
    for beam, batch in itertools.product(BEAMS, (1, 4) if settings.is_quick else BATCHES):
        with dragoman(model, batch * beam, threads) as ours:
            yield from compare(ours, peers, workload, batch, beam, settings)


def compare(
    ours: System, peers: Sequence[System], workload: Workload, batch: int, beam: int, settings: Settings
) -> Iterator[Row]:
    """One size of batch and beam: runs of ours and of a peer alternate, peer after peer, round after round."""
    batches = workload.batches(batch)
    decodings = [workload.decoding(sources, beam) for sources in batches]

    def tokens_per_second(system: System) -> float:
        time.sleep(settings.settle_seconds)
        system.translate(batches[0], decodings[0])  # processors of virtual machines sleep deeply
        started = time.perf_counter()
        targets = [system.translate(sources, d) for sources, d in zip(batches, decodings, strict=True)]
        seconds = time.perf_counter() - started
        return sum(map(len, itertools.chain.from_iterable(targets))) / seconds

    for system in (ours, *peers):
        tokens_per_second(system)  # the first run allocates
    pairs: dict[System, list[tuple[float, float]]] = {peer: [] for peer in peers}
    for _ in range(settings.num_pairs):
        for peer in peers:
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
