"""How the models of a server are loaded: all for the same devices, each with metrics of its own."""

from collections.abc import Callable
from pathlib import Path

from dragoman.types import Vocabulary
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import EngineOptions
from dragoman_server.engine.caching_engine import CachingEngine
from dragoman_server.engine.completion_cache import CompletionCache
from dragoman_server.errors import BundleError
from dragoman_server.metrics import Metrics
from dragoman_server.registry.entry import Entry, Listing
from dragoman_server.registry.model import Model
from dragoman_server.registry.trial import Trials
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.footprint import model_bytes
from dragoman_server.runtime.hardware import Hardware, Placement


class ModelOpener:
    """Loads models, with metrics of their own.

    Args:
        options: of all engines.
        hardware: what they run on.
        background: runs the attention graphs of all.
        metrics: count what they do.
        on_death: called when an error has ended an engine.
        vocabulary: what targets are chosen from where a call does not say: a list that each bundle must have.
        cache: keeps the answers of all; None: they are not kept.
        trials: try bundles before they are loaded; None: all are trusted.
    """

    def __init__(
        self,
        options: EngineOptions,
        hardware: Hardware,
        background: Background,
        metrics: Metrics,
        on_death: Callable[[], None],
        vocabulary: Vocabulary = "full",
        cache: CompletionCache | None = None,
        trials: Trials | None = None,
    ) -> None:
        self._options, self._hardware, self._background = options, hardware, background
        self._metrics, self._on_death, self._vocabulary = metrics, on_death, vocabulary
        self._cache, self._trials = cache, trials

    def peek(self, folder: Path) -> Listing:
        """What is known of a bundle before it is loaded.

        Raises:
            BundleError: its manifest or its graphs are damaged, a file is missing, it is not for this hardware, or it
                has no list of tokens as all bundles must have.
        """
        bundle, graphs = Bundle.peek(folder)
        if not _has_lists(bundle, self._vocabulary):
            pair = "-".join(next(iter(bundle.manifest.languages)))
            option = f" --sources {pair}=FILE" if self._vocabulary == "shortlist" else ""
            raise BundleError(
                f"{folder} has no lists of tokens for --vocabulary {self._vocabulary}; make them by `dragoman-export "
                f"shortlist {folder} NEW_BUNDLE{option}`"
            )
        placement = Placement.of(self._hardware.seats(bundle))
        try:
            return Listing(bundle, model_bytes(bundle, graphs, self._options, placement.num_gpus), placement)
        except OSError as error:
            raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror}") from error

    def check(self, folder: Path) -> None:
        """Raises BundleError where files of a bundle are not as its manifest has them."""
        Bundle.open(folder)

    def open(self, entry: Entry) -> Model:
        """Loads a model; raises StartError where it cannot be served, or is not the one that was listed."""
        assert entry.bundle is not None
        if self._trials is not None:
            self._trials.hold(entry.bundle)
        model_metrics = self._metrics.model(entry.name)
        try:
            model = Model.open(
                entry.folder,
                self._options,
                self._hardware,
                self._background,
                name=entry.resource_name,
                version=entry.bundle.version,
                on_step=model_metrics.observe_step,
                on_death=self._on_death,
                on_attention=model_metrics.observe_attention,
                on_close=model_metrics.close,
            )
        except BaseException:
            model_metrics.close()
            raise
        if self._cache is not None:
            model.engine = CachingEngine(model.engine, self._cache.part(), model_metrics.observe_lookups)
        engine = model.engine
        model_metrics.stalled_seconds = lambda: engine.stalled_seconds
        model_metrics.set_info(entry.version, model.manifest.precision, entry.placement.device)
        model_metrics.set_weights(entry.num_bytes)
        if (attention := model.attention) is not None:
            model_metrics.set_attention(lambda: attention.num_waiting)
        model_metrics.set_kv_cache(model.kv_bytes_per_token, model.max_kv_bytes)
        return model


def _has_lists(bundle: Bundle, vocabulary: Vocabulary) -> bool:
    """Whether targets of a bundle can be chosen so, in one direction at least."""
    facts = bundle.manifest.vocabulary
    match vocabulary:
        case "full":
            return True
        case "language":
            return facts is not None and bool(facts.languages)
        case "shortlist":
            return facts is not None and bool(facts.shortlists)
