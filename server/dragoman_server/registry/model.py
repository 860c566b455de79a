"""A model: all that lives and dies with one bundle. Nothing else builds an engine."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Self

from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Languages
from dragoman_server.config import EngineOptions
from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.dispatcher import Dispatcher
from dragoman_server.engine.engine import Engine, StepReport
from dragoman_server.engine.search import Search
from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.errors import BundleError, InferenceError, StartError
from dragoman_server.registry.parity import replay, replay_attention
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.hardware import Hardware, Seat
from dragoman_server.runtime.list_runner import ListRunner
from dragoman_server.runtime.memory import give_back_memory, use_huge_pages
from dragoman_server.runtime.runners import ModelRunner, open_runners

logger = logging.getLogger(__name__)


class Model:
    """One version of a model, checked against its source, with its engine.

    As a context it takes requests, and is closed at its end.

    Args:
        bundle: what it was loaded from.
        engine: decodes segments.
        attention: computes attention; None where the bundle has no attention graph.
        runners: of the engine, one for each lane of each device.
        max_kv_bytes: the most that the keys and values of what runs may come to take up, on all devices.
        name: name@version; empty: those of the bundle.
        replayed_difference: of a log-probability from the certificate's, the largest seen.
        on_close: called at the end.

    Attributes:
        manifest: of the bundle.
        name: name@version.
        replayed_difference: as given.
        engine: as given, or with a cache before it.
        uncached_engine: as given.
        tokenizer: of the bundle.
        languages: the directions it translates.
        vocabulary: its lists of tokens; None where it has none.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: SegmentEngine,
        attention: AttentionWorker | None = None,
        runners: Sequence[ModelRunner] = (),
        max_kv_bytes: int = 0,
        name: str = "",
        replayed_difference: float = 0.0,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_kv_bytes, self._on_close = max_kv_bytes, on_close
        self.replayed_difference = replayed_difference
        self.bundle, self.attention, self.runners = bundle, attention, runners
        self.engine = self.uncached_engine = engine
        self.manifest, self.name, self.tokenizer = bundle.manifest, name or bundle.resource_name, bundle.tokenizer
        self.languages, self.vocabulary = Languages(bundle.manifest.languages), bundle.vocabulary

    @classmethod
    def open(
        cls,
        folder: Path,
        options: EngineOptions,
        hardware: Hardware,
        background: Background | None = None,
        *,
        name: str = "",
        version: str = "",
        on_step: Callable[[int, StepReport], None] = lambda *_: None,
        on_death: Callable[[], None] = lambda: None,
        on_attention: Callable[[float, float | None], None] = lambda *_: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> Self:
        """Loads a bundle and replays its parity certificate, on each device that will run it.

        Args:
            folder: the bundle.
            options: of the engine, of which there is one for each device.
            hardware: has the devices; made for the same options.
            background: runs the attention graph; None is the thread that calls.
            name: name@version that it is served as; empty: those of the bundle.
            version: that the bundle must have; empty: any.
            on_step: told after every step by which engine it was, the first being 0.
            on_death: told by an engine when an error has ended it.
            on_attention: told of each piece of work of attention how long it has waited and taken, as `AttentionWorker`
                says.
            on_close: called when it has been closed.

        Raises:
            BundleError: the bundle is missing, damaged, not for this hardware, or does not reproduce its source here.
            StartError: the options do not fit the model.
        """
        bundle, contents = Bundle.load(folder)
        if version not in ("", bundle.version):
            raise BundleError(f"{folder}: its contents have changed since it was listed; have it loaded again")
        beam_size = bundle.manifest.generation.beam_size
        if beam_size > options.max_running:
            raise StartError(
                f"max_running is {options.max_running}; the model's default beam_size of {beam_size} needs at least "
                f"as many."
            )
        seats = hardware.seats(bundle)
        takes_lists = bundle.vocabulary is not None
        runners = [open_runners(bundle, contents, options, seat, takes_lists=takes_lists) for seat in seats]
        for seat, of_seat in zip(seats, runners, strict=True):
            size = _max_kv_bytes(seat, of_seat)
            if size > seat.budget.max_bytes:
                raise StartError(
                    f"max_running is {options.max_running}: the keys and values of so many rows can come to take up "
                    f"{size} bytes on CUDA device {seat.number}; max_kv_bytes is {seat.budget.max_bytes:.0f} there"
                )
        attention_pass = AttentionPass(bundle, 1, contents=contents) if bundle.has_attention else None
        del contents  # with the memory of all that the sessions have copies of
        difference = max(replay(bundle, of_seat[0]) for of_seat in runners)
        use_huge_pages()
        search = Search.of(bundle.manifest)
        engines = [
            Engine(of_seat, search, options, seat.device, seat.budget, partial(on_step, index), on_death)
            for index, (seat, of_seat) in enumerate(zip(seats, runners, strict=True))
        ]
        max_kv_bytes = sum(_max_kv_bytes(seat, of_seat) for seat, of_seat in zip(seats, runners, strict=True))
        attention = None
        if attention_pass is not None:
            replay_attention(bundle, attention_pass)
            give_back_memory()  # the log-probs of all tokens of a large vocabulary
            attention_pass.background = background  # not before: where the graph hangs, it could not be closed
            attention = AttentionWorker(attention_pass, options.max_waiting, on_attention)
        engine = engines[0] if len(engines) == 1 else Dispatcher(engines)
        all_runners = [*chain.from_iterable(runners)]
        return cls(bundle, engine, attention, all_runners, max_kv_bytes, name, difference, on_close)

    @property
    def plain_name(self) -> str:
        """The name without the version."""
        return self.name.rpartition("@")[0]

    @property
    def kv_bytes_per_token(self) -> int:
        """Size of the keys and values of a source or target token."""
        return self.runners[0].kv_bytes_per_token

    @property
    def kv_bytes(self) -> int:
        """Size of the pools for keys and values at present."""
        return sum(runner.kv_pool_bytes for runner in self.runners)

    @property
    def max_kv_bytes(self) -> int:
        """The most that keys and values can come to take up: all rows as long as the model allows, or the option."""
        return self._max_kv_bytes

    def has_list(self, candidates: Candidates) -> bool:
        """Whether the weights of a list that many requests share are ready on the device."""
        return all(runner.has_list(candidates) for runner in self.runners if isinstance(runner, ListRunner))

    def open_list(self, candidates: Candidates) -> None:
        """Makes them ready, which takes up to seconds: any thread may do it, best another than those that decode.

        Raises:
            InferenceError: they cannot be.
        """
        try:
            for runner in self.runners:
                if isinstance(runner, ListRunner):
                    runner.open_list(candidates)
        except Exception as error:  # whatever it is, the call that waits for it is told
            logger.exception("the weights of a list of tokens cannot be taken")
            raise InferenceError("the weights of the list of tokens cannot be taken; see the server's log") from error

    def close(self) -> None:
        """Ends the engine, then the thread of attention; what they have not answered fails. Gives all memory back."""
        self.engine.stop()
        if self.attention is not None:
            self.attention.close()
        for runner in self.runners:
            runner.close()
        give_back_memory()
        self._on_close()

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _max_kv_bytes(seat: Seat, runners: Sequence[ModelRunner]) -> int:
    """The most that keys and values can come to take up on a seat.

    A pool on a GPU takes up all of its rows, used or not, and the host's only those that are used.
    """
    size = sum(runner.max_kv_bytes for runner in runners)
    return size if seat.kind == "cuda" else int(min(seat.budget.max_bytes, size))
