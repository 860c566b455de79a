"""Which model answers a call, and how long it stays."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from dragoman_server.bundle.languages import Direction
from dragoman_server.errors import ModelNotFoundError, UnsupportedLanguageError
from dragoman_server.registry.model import Model


class Lease(NamedTuple):
    """What a call was given: while it is held, the model is neither closed nor replaced by another version."""

    model: Model
    """The one that answers; where none does, the one whose limits say what else is wrong with the call."""

    direction: Direction | ModelNotFoundError | UnsupportedLanguageError
    """What the language codes of the call stand for; or why no model answers it."""

    second: "Lease | None" = None
    """Where the text goes through a third language: what translates it out of that."""


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

    @asynccontextmanager
    async def lease(
        self, name: str, source: str, target: str, deadline: float = math.inf, *, may_pivot: bool = False
    ) -> AsyncIterator[Lease]:
        """Finds the model for a call, and keeps it until the end of the context.

        Args:
            name: of the model, or name@version; "" leaves the choice to the server.
            source: language code of the texts, as the caller has it.
            target: language code of the translations, likewise.
            deadline: of the call, on the `time.monotonic` clock, in seconds.
            may_pivot: whether two models may do it, through a third language.
        """
        self.num_leases += 1
        try:
            yield Lease(self._model, self._direction(name, source, target))
        finally:
            self.num_leases -= 1

    def _direction(
        self, name: str, source: str, target: str
    ) -> Direction | ModelNotFoundError | UnsupportedLanguageError:
        manifest, languages = self._model.manifest, self._model.languages
        if name not in ("", manifest.name, self._model.name):
            return ModelNotFoundError(name, f"there is no such model; this server has {manifest.name!r}")
        if languages.fault_of(source) or languages.fault_of(target):  # and may be of any length
            return UnsupportedLanguageError("", "the languages of the call are no language codes")
        pair = f"{source}-{target}"
        return languages.find(source, target) or UnsupportedLanguageError(
            pair, f"model {manifest.name!r} does not translate {pair}; it translates {languages.described(source)}"
        )
