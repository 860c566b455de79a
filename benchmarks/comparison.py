"""Runs of Dragoman and of its peers that alternate, on the same batches of token ids."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from benchmarks.models import Model
from benchmarks.report import Row
from benchmarks.settings import Settings
from benchmarks.statistics import Summary, paired_ratios
from benchmarks.systems import Decoding, Source, System, TransformersSystem, TunableSystem
from benchmarks.workers import OptimumSystem

_MOST_TUNING_SENTENCES = 512
# Several times as slow as the others on a CPU: measured in fewer runs.
SLOW = (TransformersSystem, OptimumSystem)
_SLOW_EVERY = 3


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


def compare(
    ours: System,
    peers: Sequence[System],
    workload: Workload,
    batch: int,
    beam: int,
    settings: Settings,
    *,
    is_file: bool = False,
    slow_every: int = _SLOW_EVERY,
) -> Iterator[Row]:
    """One size of batch and beam: runs of ours and of a peer alternate, peer after peer, round after round.

    A peer has the setting that is the fastest on other sentences, tried in this run; ours is always the same. Only the
    fastest of the peers there is given a whole file, and of those that are slow each run in `slow_every` is measured.
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

    tuned = [at_its_best(peer) for peer in peers]
    peers = [max(tuned, key=itemgetter(0))[1]] if is_file else [peer for _, peer in tuned]
    for system in (ours, *peers):
        tokens_per_second(system)  # the first run allocates
    pairs: dict[System, list[tuple[float, float]]] = {peer: [] for peer in peers}
    for i, peer in itertools.product(range(settings.num_pairs), peers):
        if i % slow_every == 0 or not isinstance(peer, SLOW):
            pairs[peer].append((tokens_per_second(ours), tokens_per_second(peer)))
    metric = f"throughput of a file, {_described(workload, batch)}" if is_file else "throughput"

    def row(system: System, values: Sequence[float], ratio: Summary | None) -> Row:
        return Row(
            "offline", system.subject, metric, "tokens/s", Summary.of(values), batch, beam, "batch", batch, ratio=ratio
        )

    beside_peers = [a for samples in pairs.values() for a, _ in samples]
    yield row(ours, beside_peers or [tokens_per_second(ours) for _ in range(settings.num_pairs)], None)
    for peer, samples in pairs.items():
        ours_beside, theirs = zip(*samples, strict=True)
        yield row(peer, theirs, paired_ratios(ours_beside, theirs))


def _described(workload: Workload, batch: int) -> str:
    number = min(len(workload.sources), batch)
    return f"{number} sentences" + (", again and again" if number < batch else "")
