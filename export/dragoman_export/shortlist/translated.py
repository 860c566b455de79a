"""Translates the sentences that shortlists are made of, and counts which tokens the model thinks of."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.progress import phase
from dragoman_export.shortlist.kept import KeptWork
from dragoman_export.shortlist.links import Aligner, Links, LinkSum
from dragoman_export.shortlist.sentences import Ids, Sentences
from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.framing import Framing
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.runner import Graphs, OnnxRunner
from dragoman_server.service.options import TargetLimit

# Sentences that are translated and kept at a time, and of these the rows of a batch.
_CHUNK, _MAX_ROWS = 512, 32
_KEPT = ("sources", "targets", "weights", "counts")
# Tokens that count at each step, by their probabilities. With one, a table of as many sentences finds half as many of
# the tokens that the lists of others need.
_NUM_LIKELY = 8


class Likely(NamedTuple):
    """A greedy translation, and what else the model thought of at each step."""

    target: Ids
    ids: NDArray[np.int64]  # [T, _NUM_LIKELY]
    probabilities: NDArray[np.float32]  # [T, _NUM_LIKELY]


class Translated(NamedTuple):
    """What the sentences of a direction show."""

    links: Links
    counts: NDArray[np.int64]  # of every token of the target


class Translator:
    """Translates and aligns on several threads, each of which computes a sentence after the other.

    Not the engine: it does not say what else was likely.

    Args:
        bundle: of the model, for CPUs.
        num_threads: 0: as many as there are CPUs.

    Raises:
        BundleError: ONNX Runtime refuses the graphs.
    """

    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        contents = bundle.contents()
        graphs = Graphs.open(bundle.manifest, contents, [1])
        self.vocabulary_size = bundle.manifest.architecture.vocabulary_size
        self.num_threads = num_threads or available_cpus()
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(self.num_threads):
            self._workers.put(_Worker(bundle, graphs, contents))

    def count(self, sources: Sequence[Ids], framing: Framing) -> dict[str, NDArray[Any]]:
        """The columns of the links of some sentences, and the counts of their targets' tokens."""
        worker = self._workers.get()
        try:
            links, targets = [], []
            for source, likely in worker.translate(sources, framing):
                links.append(worker.aligner.links(source, *likely, framing))
                targets.append(likely.target)
        finally:
            self._workers.put(worker)
        counts = np.bincount(np.concatenate(targets), minlength=self.vocabulary_size)
        return {**Links.summed(links)._asdict(), "counts": counts}

    def close(self) -> None:
        """Gives all memory back."""
        while not self._workers.empty():
            self._workers.get().close()


@contextmanager
def open_translator(bundle: Bundle, num_threads: int) -> Iterator[Translator]:
    """A translator that is closed at the end; raises BundleError as it does."""
    with closing(Translator(bundle, num_threads)) as translator:
        yield translator


class _Worker:
    def __init__(self, bundle: Bundle, graphs: Graphs, contents: Contents) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._runner = OnnxRunner(graphs, _MAX_ROWS)
        self._limit = TargetLimit(manifest.limits.max_target_tokens)
        self.aligner = Aligner(bundle, contents)

    def close(self) -> None:
        self._runner.close()
        self.aligner.close()

    def translate(self, sources: Sequence[Ids], framing: Framing) -> Iterator[tuple[Ids, Likely]]:
        """The sources with their translations, those of similar length together."""
        ordered = sorted(sources, key=len)
        for begin in range(0, len(ordered), _MAX_ROWS):
            batch = ordered[begin : begin + _MAX_ROWS]
            yield from zip(batch, self._translate(batch, framing), strict=True)

    def _translate(self, sources: Sequence[Ids], framing: Framing) -> list[Likely]:
        self._runner.encode(sources, 0)
        size = self._manifest.architecture.vocabulary_size
        limits = [self._limit.of(len(source)) for source in sources]
        targets: list[list[int]] = [[] for _ in sources]
        ids: list[NDArray[np.int64]] = []
        probabilities: list[NDArray[np.float32]] = []
        is_running = np.ones(len(sources), bool)
        read = [self._manifest.decoder_start_token_id] * len(sources)
        while is_running.any():
            position = len(ids)
            output = self._runner.decode_step(read, [position] * len(read), min(_NUM_LIKELY, size))
            ids.append(output.top_ids[:, :_NUM_LIKELY].copy())
            probabilities.append(np.exp(output.top_logprobs[:, :_NUM_LIKELY]))
            for row in np.flatnonzero(is_running):
                token = self._next(ids[-1][row], framing, position)
                targets[row].append(token)
                read[row] = token
                is_running[row] = token != self._manifest.eos_token_id and position + 1 < limits[row]
        return [
            Likely(
                tuple(target),
                np.stack([step[row] for step in ids[: len(target)]]),
                np.stack([step[row] for step in probabilities[: len(target)]]),
            )
            for row, target in enumerate(targets)
        ]

    def _next(self, likely: NDArray[np.int64], framing: Framing, position: int) -> int:
        if position < len(framing.target_prefix):
            return framing.target_prefix[position]
        suppressed = self._manifest.generation.suppressed_token_ids
        return next((token for token in likely.tolist() if token not in suppressed), int(likely[0]))


def translate_and_count(sentences: Sentences, translator: Translator, kept: KeptWork, console: Console) -> Translated:
    """Translates sentences greedily and aligns them; what an earlier run has kept is not done again."""
    name = "-".join(sentences.direction)
    sources = sentences.made_of
    chunks = {f"{name}-{begin}": sources[begin : begin + _CHUNK] for begin in range(0, len(sources), _CHUNK)}
    found = {key: arrays for key in chunks if (arrays := kept.load(key, _KEPT)) is not None}

    def count(key: str) -> str:
        found[key] = translator.count(chunks[key], sentences.framing)
        kept.save(key, found[key])
        return key

    pool = ThreadPoolExecutor(translator.num_threads)
    try:
        with phase(f"Translating {name}", len(sources), console) as advance:
            advance(sum(len(chunks[key]) for key in found))
            for future in as_completed([pool.submit(count, key) for key in chunks if key not in found]):
                advance(len(chunks[future.result()]))
    finally:
        pool.shutdown(cancel_futures=True)
    total, counts = LinkSum(), np.zeros(translator.vocabulary_size, np.int64)
    for key in chunks:  # in their order, so that sums are the same to the bit
        arrays = found[key]
        total.add(Links(arrays["sources"], arrays["targets"], arrays["weights"]))
        counts += arrays["counts"]
    return Translated(total.total(), counts)
