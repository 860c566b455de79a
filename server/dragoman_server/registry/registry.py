"""The models that are served: leases for calls, and changes while calls go on."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Self

from dragoman_server.bundle.languages import Direction
from dragoman_server.errors import (
    BundleError,
    FieldViolation,
    InvalidInputError,
    ModelExistsError,
    ModelFailedError,
    ModelInUseError,
    ModelTooLargeError,
    Reason,
)
from dragoman_server.registry.catalogue import Catalogue, Refusal, Route, failed, no_pair
from dragoman_server.registry.entry import Entry, Listing, State
from dragoman_server.registry.model import Model
from dragoman_server.registry.repository import Place, Signature
from dragoman_server.registry.residence import Opener, Residence, RetiredError, by


class Lease(NamedTuple):
    """What a call was given: while it is held, the model is neither closed nor replaced by another version."""

    model: Model
    """The one that answers; where none does, the one whose limits say what else is wrong with the call."""

    direction: Direction | Refusal
    """What the language codes of the call stand for; or why no model answers it."""

    second: "Lease | None" = None
    """Where the text goes through a third language: what translates it out of that."""


class Registry:
    """The models that are served. Belongs to one event loop.

    Args:
        opener: loads models.
        max_bytes: that the weights of all may take up together; then each is loaded at its first use. 0 is no limit.
        pivot: as for `Catalogue`.
        stop: is set when the server stops.
        on_change: called with the registry when models, or their states, have changed.
        on_load: called with a model's name, whether it was loaded, and the seconds it took.
    """

    def __init__(
        self,
        opener: Opener,
        max_bytes: int = 0,
        pivot: str = "auto",
        stop: asyncio.Event | None = None,
        on_change: Callable[["Registry"], None] = lambda _: None,
        on_load: Callable[[str, bool, float], None] = lambda *_: None,
    ) -> None:
        self._opener, self._on_change, self._on_load = opener, on_change, on_load
        self._catalogue = Catalogue(pivot)
        self._residence = Residence(opener, max_bytes, stop or asyncio.Event(), self._changed, on_load)
        self._retired: list[Entry] = []
        self._changing = asyncio.Lock()
        self._pairing = asyncio.Lock()  # of calls that need two models: waiting for one, each could block another
        self.unloaded: dict[Place, Signature] = {}  # what was unloaded though its folder is there

    @classmethod
    def of(cls, *models: Model) -> Self:
        """Serves models that are open, and no others. Whoever opened them closes them."""
        registry = cls(_NoOpener())
        for model in models:
            name, _, version = model.name.rpartition("@")
            entry = Entry(Place(model.bundle.folder), name, version, model.bundle, model=model)
            registry._catalogue.put(entry, None)
        return registry

    # -- what there is -------------------------------------------------------------------------

    @property
    def entries(self) -> list[Entry]:
        """All models, also those that failed or are leaving: by name, then in the order in which they came."""
        self._retired = [entry for entry in self._retired if entry.num_leases or entry.model is not None]
        return sorted(chain(self._catalogue.entries, self._retired), key=lambda entry: entry.name)

    @property
    def num_leases(self) -> int:
        """How many are held."""
        return sum(entry.num_leases for entry in self.entries)

    @property
    def stalled_seconds(self) -> float:
        """How long the engine of a model has had work and got nowhere, the worst of them."""
        models = [entry.model for entry in self._residence.resident]
        return max((model.engine.stalled_seconds for model in models if model is not None), default=0.0)

    def num_by_state(self) -> dict[str, int]:
        """How many there are in each state. Those that failed are all bundles that cannot be served now.

        So they count, too, where what was in their folders before goes on.
        """
        counts = {state.value: 0 for state in State} | Counter(entry.state.value for entry in self.entries)
        return counts | {State.FAILED.value: sum(bool(entry.error) for entry in self.entries)}

    def health(self) -> dict[str, bool]:
        """Whether each name, and each name@version, takes calls."""
        found: dict[str, bool] = {}
        for entry in self.entries:
            for name in (entry.name, entry.resource_name):
                found[name] = found.get(name, False) or entry.is_serving
        return found

    def at(self, place: Place) -> Entry | None:
        """What there is of the bundle at a place."""
        return next((entry for entry in self._catalogue.entries if entry.place == place), None)

    def find(self, name: str) -> Entry:
        """The model of a name, or of name@version.

        Raises:
            InvalidInputError: the name is empty.
            ModelNotFoundError: there is none.
        """
        if not name:
            raise InvalidInputError(FieldViolation("model", "is required", Reason.REQUIRED_FIELD))
        if (entry := self._catalogue.named(name)) is None:
            raise self._catalogue.no_model(name)
        return entry

    def default_versions(self) -> list[Entry]:
        """Those that calls get which give a model's name without a version."""
        return self._catalogue.default_versions()

    def chosen_directions(self, entry: Entry) -> list[Direction]:
        """The pairs of languages for which `set_default` has chosen a model, of which this is the default version."""
        return self._catalogue.chosen_directions(entry)

    # -- leases --------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self,
        name: str,
        source: str,
        target: str,
        deadline: float = math.inf,
        *,
        may_pivot: bool = False,
        check: Callable[[str], None] = lambda _: None,
    ) -> AsyncIterator[Lease]:
        """Finds the model for a call, and keeps it until the end of the context.

        Args:
            name: of the model, or name@version; "" leaves the choice to the server.
            source: language code of the texts, as the caller has it.
            target: language code of the translations, likewise.
            deadline: of the call, on the `time.monotonic` clock, in seconds.
            may_pivot: whether two models may do it, through a third language.
            check: told the name of each model, without version, before it is loaded; its errors pass through.

        Raises:
            ModelNotFoundError, UnsupportedLanguageError: no model answers the call, and none is in memory.
            ModelTooLargeError: the two models together are over the limit of memory.
            ModelFailedError, NoRoomError, DeadlineError, DrainingError: the model cannot be loaded.
        """
        while True:
            route = self._catalogue.route(name, source, target)
            if isinstance(route, tuple) and len(route) > 1 and not may_pivot:
                route = self._catalogue.not_alone(source, target, route)
            for leg in route if isinstance(route, tuple) else ():
                check(leg.entry.name)
            async with AsyncExitStack() as held:
                try:
                    lease = await self._lease(route, held, deadline)
                except RetiredError:  # while the call waited: there may be another
                    continue
                yield lease
                return

    async def _lease(self, route: Route | Refusal, held: AsyncExitStack, deadline: float) -> Lease:
        if not isinstance(route, tuple):
            return Lease(await self._any(route, held, deadline), route)
        first, *others = route
        if not others:
            return Lease(await self._hold(first.entry, held, deadline), first.direction)
        (second,) = others
        self._check_room(route)
        async with AsyncExitStack() as turn:
            if first.entry.model is None or second.entry.model is None:
                await by(deadline, self._pairing.acquire())
                turn.callback(self._pairing.release)
            models = [await self._hold(leg.entry, held, deadline) for leg in route]
        return Lease(models[0], first.direction, Lease(models[1], second.direction))

    async def _hold(self, entry: Entry, held: AsyncExitStack, deadline: float) -> Model:
        model = await self._residence.hold(entry, deadline)
        held.callback(self._residence.release, entry)
        return model

    async def _any(self, error: Refusal, held: AsyncExitStack, deadline: float) -> Model:
        """A model that is in memory, if there is one; raises the error otherwise."""
        for entry in self._catalogue.entries:
            if entry.model is not None:
                return await self._hold(entry, held, deadline)
        raise error

    def _check_room(self, route: Route) -> None:
        """Raises ModelTooLargeError where the models can never be in memory together."""
        entries = {leg.entry: None for leg in route}  # one model may do both
        num_bytes, most = sum(entry.num_bytes for entry in entries), self._residence.max_bytes
        if most and num_bytes > most:
            names = " and ".join(repr(entry.name) for entry in entries)
            raise ModelTooLargeError(f"models {names} take {num_bytes} bytes; max_model_bytes is {most}")

    # -- changes -------------------------------------------------------------------------------

    async def add(self, place: Place) -> Entry:
        """Serves the bundle at a place, in place of what was served from there before.

        It is loaded first, unless models are loaded at their first use. Where that fails, nothing that is served
        changes; the entry of the place has the error.

        Raises:
            ModelFailedError: the bundle cannot be served.
            ModelExistsError: another folder is served under its name and version.
            ModelTooLargeError: it alone is over the limit of memory.
            NoRoomError, DrainingError: as for a lease.
        """
        async with self._changing:
            self.unloaded.pop(place, None)
            signature = await asyncio.to_thread(place.signature)
            old = self.at(place)
            try:
                entry = await self._listed(place)
                entry.signature = signature
                if old is not None and old.is_serving and _are_same(old, entry):
                    if old.signature != signature:
                        await self._check(place)
                    old.signature, old.error = signature, ""
                    self._changed()
                    return old
                if not self._residence.max_bytes:
                    await self._residence.load(entry)
            except (ModelFailedError, ModelExistsError, ModelTooLargeError) as error:
                self._note_failure(place, old, str(error.__cause__ or error)).signature = signature
                raise
            self._put(entry, old)
            return entry

    async def _check(self, place: Place) -> None:
        """Raises ModelFailedError where files are not those of the manifest."""
        try:
            await asyncio.to_thread(self._opener.check, place.folder)
        except BundleError as error:
            raise ModelFailedError(str(error)) from error

    async def _listed(self, place: Place) -> Entry:
        try:
            if place.fault:
                raise BundleError(f"{str(place.folder)!r}: {place.fault}")
            listing = await asyncio.to_thread(self._opener.peek, place.folder)
        except BundleError as error:
            self._on_load(place.name or place.folder.name, False, 0.0)
            raise ModelFailedError(str(error)) from error
        bundle = listing.bundle
        entry = Entry(place, place.name or bundle.manifest.name, place.version or bundle.version, *listing)
        for other in self._catalogue.entries:
            if other.resource_name == entry.resource_name and other.place != place and other.bundle is not None:
                raise ModelExistsError(f"model {entry.resource_name!r} is served already, from {other.folder}")
        if (most := self._residence.max_bytes) and entry.num_bytes > most:
            raise ModelTooLargeError(
                f"model {entry.name!r} takes {entry.num_bytes} bytes; max_model_bytes, for all models, is {most}"
            )
        return entry

    def _note_failure(self, place: Place, old: Entry | None, error: str) -> Entry:
        entry = old or Entry(place, place.name or place.folder.name, place.version)
        entry.error = error
        if old is None:
            self._put(entry, None)
        else:
            self._changed()
        return entry

    def _put(self, entry: Entry, old: Entry | None) -> None:
        self._catalogue.put(entry, old)
        if old is not None:
            self._retire(old)
        self._changed()

    async def remove(self, name: str, *, drain: bool = False) -> None:
        """Ends serving one version of a model, and returns when its memory is free.

        Raises:
            InvalidInputError: the name is empty, or it has several versions.
            ModelNotFoundError: there is no such model.
            ModelInUseError: calls are using it, and it is not to be drained.
        """
        async with self._changing:
            entry = self.find(name)
            if (num_versions := sum(other.name == name for other in self._catalogue.entries)) > 1:
                description = f"has {num_versions} versions: give one of them, NAME@VERSION"
                raise InvalidInputError(FieldViolation("model", description, Reason.AMBIGUOUS_MODEL))
            if entry.num_leases and not drain:
                raise ModelInUseError(f"{entry.num_leases} calls are using model {entry.resource_name!r}")
            freed = self.discard(entry)
            self.unloaded[entry.place] = await asyncio.to_thread(entry.place.signature)
        await asyncio.shield(freed)

    def discard(self, entry: Entry) -> "asyncio.Task[None]":
        """Ends serving a version; the task ends when the calls that use it have ended, too."""
        self._catalogue.remove(entry)
        return self._retire(entry)

    def _retire(self, entry: Entry) -> "asyncio.Task[None]":
        self._retired.append(entry)
        return self._residence.retire(entry)

    def set_default(self, name: str, source: str = "", target: str = "") -> None:
        """Chooses the model of calls that name none, in one direction or all of the model's.

        With name@version, the name stands for that version from now on; with the name alone, for the last again.

        Raises:
            InvalidInputError: a name or a language is missing.
            ModelNotFoundError: there is no such model.
            ModelFailedError: it cannot be loaded.
            UnsupportedLanguageError: the model does not translate this pair.
        """
        entry = self.find(name)
        for field, code in (("source_language_code", source), ("target_language_code", target)):
            if not code and (source or target):
                raise InvalidInputError(FieldViolation(field, "is required with the other", Reason.REQUIRED_FIELD))
        if not entry.is_serving or entry.languages is None or entry.bundle is None:
            raise failed(entry)
        if not source:
            directions: Iterable[Direction] = entry.bundle.manifest.languages
        elif found := entry.languages.find(source, target):
            directions = [found]
        else:
            raise no_pair(source, target, [entry])
        self._catalogue.choose_model(entry, directions)
        self._catalogue.choose_version(entry.name, entry if name == entry.resource_name else None)
        self._changed()

    def _changed(self) -> None:
        self._catalogue.forget_routes()
        self._on_change(self)

    async def give_back_memory(self, idle_seconds: float) -> None:
        """Has models that were not used for so long give back what their keys and values have grown to."""
        await self._residence.give_back_memory(idle_seconds)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes all models."""
        self._residence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _NoOpener:
    """Stands in where all models are open already."""

    def peek(self, folder: Path) -> Listing:
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        raise NotImplementedError

    def open(self, entry: Entry) -> Model:
        raise NotImplementedError


def _are_same(old: Entry, new: Entry) -> bool:
    """Whether both have the same contents under the same name."""
    assert new.bundle is not None
    return (
        old.state is not State.FAILED
        and old.bundle is not None
        and (old.resource_name, old.bundle.version) == (new.resource_name, new.bundle.version)
    )
