"""How the models of a server are loaded: all for one device, each with metrics of its own."""

from collections.abc import Callable
from pathlib import Path

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import EngineOptions
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.errors import BundleError
from dragoman_server.metrics import Metrics
from dragoman_server.registry.entry import Entry
from dragoman_server.registry.model import Model
from dragoman_server.runtime.background import Background
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.footprint import model_bytes
from dragoman_server.runtime.machine import available_memory


class ModelOpener:
    """Loads models for the device, with metrics of their own.

    Args:
        options: of all engines.
        device: runs the lanes of all.
        background: runs the attention graphs of all.
        metrics: count what they do.
        on_death: called when an error has ended an engine.
    """

    def __init__(
        self,
        options: EngineOptions,
        device: Device,
        background: Background,
        metrics: Metrics,
        on_death: Callable[[], None],
    ) -> None:
        self._options, self._device, self._background = options, device, background
        self._metrics, self._on_death = metrics, on_death
        self._budget = KvBudget(options.max_kv_bytes or available_memory() // 4)

    def peek(self, folder: Path) -> tuple[Bundle, int]:
        """A bundle with nothing but its manifest that may be used, and what its weights will take up, in bytes.

        Raises:
            BundleError: its manifest or its graphs are damaged, or a file is missing.
        """
        bundle, graphs = Bundle.peek(folder)
        try:
            return bundle, model_bytes(bundle, graphs, self._options)
        except OSError as error:
            raise BundleError(f"{folder} has no tokenizer: {error.strerror}") from error

    def check(self, folder: Path) -> None:
        """Raises BundleError where files of a bundle are not as its manifest has them."""
        Bundle.open(folder)

    def open(self, entry: Entry) -> Model:
        """Loads a model; raises StartError where it cannot be served, or is not the one that was listed."""
        assert entry.bundle is not None
        model_metrics = self._metrics.model(entry.name)
        try:
            model = Model.open(
                entry.folder,
                self._options,
                self._device,
                self._background,
                name=entry.resource_name,
                version=entry.bundle.version,
                budget=self._budget,
                on_step=model_metrics.observe_step,
                on_death=self._on_death,
                on_close=model_metrics.close,
            )
        except BaseException:
            model_metrics.close()
            raise
        model_metrics.set_info(entry.version, model.manifest.precision)
        model_metrics.set_weights(entry.num_bytes)
        model_metrics.set_kv_cache(model.kv_bytes_per_token, model.max_kv_bytes)
        return model
