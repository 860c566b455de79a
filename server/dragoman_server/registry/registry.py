"""Which model answers a call, and how long it stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dragoman_server.bundle.languages import Direction
from dragoman_server.errors import ModelNotFoundError
from dragoman_server.registry.model import Model


class Lease(NamedTuple):
    """What a call was given: while it is held, the model is neither closed nor replaced by another version."""

    model: Model
    direction: Direction | None
    """What the language codes of the call stand for; None where the model does not translate them."""


class Registry:
    """The models that are served: one, for the whole life of the server. Belongs to one event loop.

    Args:
        model: the model.

    Attributes:
        num_leases: how many are held.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.num_leases = 0

    @contextmanager
    def lease(self, model: str, source: str, target: str) -> Iterator[Lease]:
        """Finds the model for a call, and keeps it until the end of the context.

        Args:
            model: its name, or name@version; "" leaves the choice to the server.
            source: language code of the texts, as the caller has it.
            target: language code of the translations, likewise.

        Raises:
            ModelNotFoundError: there is no model of this name.
        """
        found = self._model
        if model not in ("", found.manifest.name, found.name):
            raise ModelNotFoundError(model, f"there is no such model; this server has {found.manifest.name!r}")
        languages = found.languages
        are_codes = languages.fault_of(source) is None and languages.fault_of(target) is None
        self.num_leases += 1
        try:
            yield Lease(found, languages.find(source, target) if are_codes else None)
        finally:
            self.num_leases -= 1
