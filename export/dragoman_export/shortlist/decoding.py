"""Greedy translation by the engine that serves a bundle, with the whole vocabulary or with lists."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dragoman_export.shortlist.sentences import Ids
from dragoman_server.bundle.framing import Framing
from dragoman_server.config import EngineOptions
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.service.options import TargetLimit


class Decoder:
    """The engine of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._limit = TargetLimit(model.manifest.limits.max_target_tokens)

    def submit(
        self, sources: Sequence[Ids], framing: Framing, candidates: Sequence[Candidates | None] = ()
    ) -> Iterator[Ids]:
        """Begins to translate sources; the result waits for each of them.

        Args:
            sources: as the encoder reads them.
            framing: of their direction.
            candidates: of each source; empty: the whole vocabulary.
        """
        requests = [
            Request(source, self._limit.of(len(source)), prefix_ids=framing.target_prefix, candidates=of_source)
            for source, of_source in zip(sources, candidates or [None] * len(sources), strict=True)
        ]
        futures = self.model.engine.submit(requests)
        return (future.result().hypotheses[0].token_ids for future in futures)

    def timed(
        self, sources: Sequence[Ids], framing: Framing, candidates: Sequence[Candidates | None] = ()
    ) -> tuple[list[Ids], float]:
        """The translations, and how many seconds they took."""
        started = time.monotonic()
        targets = [*self.submit(sources, framing, candidates)]
        return targets, time.monotonic() - started


@contextmanager
def open_decoder(folder: Path, num_threads: int) -> Iterator[Decoder]:
    """Opens the model of a bundle.

    Raises:
        BundleError: the folder is not a bundle that can be served.
    """
    options = EngineOptions(num_threads=num_threads, max_waiting=1_000_000)
    with Hardware(options) as hardware, Model.open(folder, options, hardware) as model:
        yield Decoder(model)
