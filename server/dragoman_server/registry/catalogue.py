"""Which models there are, and which of them answers a call: plain bookkeeping, without loading anything."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dragoman_server.bundle.languages import Direction, Languages, folded
from dragoman_server.errors import ModelFailedError, ModelNotFoundError, UnsupportedLanguageError
from dragoman_server.registry.entry import Entry

# Routes that are kept, whatever codes callers make up.
_MAX_ROUTES = 1000
# More of them would make an error unreadable.
_MAX_NAMED = 10


class Leg(NamedTuple):
    """A model, and the direction in which it translates."""

    entry: Entry
    direction: Direction


Route = tuple[Leg, ...]
"""One leg, or two, the second of which goes on where the first ends."""

Refusal = ModelNotFoundError | ModelFailedError | UnsupportedLanguageError
"""Why no model answers a call."""


class Catalogue:
    """The versions of all models.

    Args:
        pivot: the language by way of which two models translate what none does alone; "auto" is English, else any
            other; "off" is none.

    Attributes:
        entries: in the order in which they came, each in the place of the one that it replaced.
    """

    def __init__(self, pivot: str = "auto") -> None:
        self._pivot = pivot
        self.entries: list[Entry] = []
        self._chosen_versions: dict[str, Entry] = {}  # by name
        self._chosen_models: dict[tuple[str, str], str] = {}  # names by folded languages
        self._routes: dict[tuple[str, str, str], Route] = {}

    # -- what there is -------------------------------------------------------------------------

    @property
    def serving(self) -> list[Entry]:
        """The entries that take calls."""
        return [entry for entry in self.entries if entry.is_serving]

    def named(self, name: str) -> Entry | None:
        """The entry of name@version; of a name alone the one that was chosen, else the last, of those that serve.

        Where none of these serves, one that does not.
        """
        found = [entry for entry in self.entries if name in (entry.name, entry.resource_name)]
        found = [entry for entry in found if entry.is_serving] or found
        chosen = self._chosen_versions.get(name)
        return chosen if chosen in found else found[-1] if found else None

    def default_versions(self) -> list[Entry]:
        """What the name of each model stands for, in the order of the models."""
        last = {entry.name: entry for entry in self.serving}
        chosen = self._chosen_versions
        return [chosen[name] if name in chosen and chosen[name].is_serving else last[name] for name in last]

    def chosen_directions(self, entry: Entry) -> list[Direction]:
        """The pairs of languages for which this model was chosen."""
        languages = entry.languages
        chosen = [codes for codes, name in self._chosen_models.items() if name == entry.name]
        return [found for codes in chosen if languages and (found := languages.find(*codes))]

    # -- changes -------------------------------------------------------------------------------

    def put(self, entry: Entry, old: Entry | None) -> None:
        """Has an entry take the place of an old one, or of none."""
        if old is None:
            self.entries.append(entry)
            return
        self.entries[self.entries.index(old)] = entry
        if self._chosen_versions.get(old.name) is old:
            del self._chosen_versions[old.name]
            self._chosen_versions[entry.name] = entry

    def remove(self, entry: Entry) -> None:
        """Forgets an entry."""
        self.entries.remove(entry)
        if self._chosen_versions.get(entry.name) is entry:
            del self._chosen_versions[entry.name]

    def choose_version(self, name: str, entry: Entry | None) -> None:
        """Has the name of a model stand for this version; None is the last."""
        if entry is None:
            self._chosen_versions.pop(name, None)
        else:
            self._chosen_versions[name] = entry

    def choose_model(self, entry: Entry, directions: Iterable[Direction]) -> None:
        """Has calls in these directions that name no model get this one."""
        self._chosen_models |= {(folded(d.source), folded(d.target)): entry.name for d in directions}

    def forget_routes(self) -> None:
        """To be called whenever an entry, or its state, has changed."""
        self._routes.clear()

    # -- which one answers ---------------------------------------------------------------------

    def route(self, name: str, source: str, target: str) -> Route | Refusal:
        """The model for a call, or the two.

        Args:
            name: of the model, or name@version; "" leaves the choice to the server.
            source: language code of the texts, as the caller has it.
            target: language code of the translations, likewise.
        """
        key = name, source, target
        if key not in self._routes:
            found = self._named_route(*key) if name else self._free_route(source, target)
            if not isinstance(found, tuple):
                return found
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[key] = found
        return self._routes[key]

    def _named_route(self, name: str, source: str, target: str) -> Route | Refusal:
        if (entry := self.named(name)) is None:
            return self.no_model(name)
        if entry.languages is None or not entry.is_serving:
            return failed(entry)
        if entry.languages.fault_of(source) or entry.languages.fault_of(target):
            return _no_codes()
        found = entry.languages.find(source, target)
        return (Leg(entry, found),) if found else no_pair(source, target, [entry])

    def _free_route(self, source: str, target: str) -> Route | Refusal:
        entries = self.default_versions()
        if entries and any(map(self._is_no_code, (source, target))):
            return _no_codes()
        if leg := self._nearest(source, target):
            return (leg,)
        # Between many models of many languages there are many ways to look for: not where none can be found.
        has_way = not _all_languages(entries).fault_of_pair(source, target)
        return (has_way and self._through_another(source, target)) or no_pair(source, target, entries)

    def _is_no_code(self, code: str) -> bool:
        return all(entry.languages is not None and entry.languages.fault_of(code) for entry in self.serving)

    def _nearest(self, source: str, target: str) -> Leg | None:
        """The model whose languages are nearest to these; of several the one that was chosen, else the first."""
        legs = {}
        for entry in self.default_versions():
            if entry.languages is not None and (match := entry.languages.match(source, target)):
                chosen = self._chosen_models.get((folded(match.direction.source), folded(match.direction.target)))
                legs[Leg(entry, match.direction)] = match.distance, entry.name != chosen
        return min(legs, key=lambda leg: legs[leg], default=None)

    def _through_another(self, source: str, target: str) -> Route | None:
        for language in self._pivots():
            first = self._nearest(source, language)
            second = self._nearest(first.direction.target, target) if first else None
            # From a language to itself, as from en-US to en-GB, there is no way.
            if first and second and _primary(first.direction.source) != _primary(second.direction.target):
                return first, second
        return None

    def _pivots(self) -> Iterable[str]:
        """The languages to try, in this order."""
        if self._pivot != "auto":
            return () if self._pivot == "off" else (self._pivot,)
        bundles = [entry.bundle for entry in self.serving if entry.bundle is not None]
        targets = {language for bundle in bundles for language in bundle.manifest.languages.targets}
        return "en", *sorted(targets - {"en"})

    def not_alone(self, source: str, target: str, route: Route) -> UnsupportedLanguageError:
        """The error of a call that only one model may answer, where two would."""
        refusal = no_pair(source, target, self.default_versions())
        language = route[0].direction.target
        text = f"{refusal}; Translate, StreamTranslation and ExchangeTranslations alone go through {language}"
        return UnsupportedLanguageError(refusal.language_pair, text)

    def no_model(self, name: str) -> ModelNotFoundError:
        """The error where there is no model of a name, or no such version."""
        model, _, _ = name.rpartition("@")
        if versions := [entry.version for entry in self.serving if entry.name == model]:
            named = ", ".join(versions[-_MAX_NAMED:])
            return ModelNotFoundError(name, f"there is no such version; model {model!r} has {named}")
        names = [*dict.fromkeys(repr(entry.name) for entry in self.serving)]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        named = ", ".join(names[:_MAX_NAMED]) or "none"
        return ModelNotFoundError(name, f"there is no such model; this server has {named}{more}")


def _primary(code: str) -> str:
    """The language without region or script."""
    return folded(code).partition("-")[0]


def failed(entry: Entry) -> ModelFailedError:
    """The error where a model has failed."""
    return ModelFailedError(f"model {entry.name!r} cannot be loaded: {entry.error}")


def _all_languages(entries: Sequence[Entry]) -> Languages:
    return Languages.of_all([entry.languages for entry in entries if entry.languages is not None])


def no_pair(source: str, target: str, entries: Sequence[Entry]) -> UnsupportedLanguageError:
    """The error where none of these models translates a pair of languages."""
    pair = f"{source}-{target}"
    named = [(entry.name, entry.languages) for entry in entries if entry.languages]
    match named:
        case []:
            text = "this server has no model"
        case [(name, languages)]:
            text = f"model {name!r} does not translate {pair}; {languages.not_found(source, target)}"
        case _ if fault := _all_languages(entries).fault_of_pair(source, target):
            text = f"no model translates {pair}; {fault}"
        case _:
            models = "; ".join(f"{name!r} {own.described(source)}" for name, own in named[:_MAX_NAMED])
            num_left = len(named) - _MAX_NAMED
            more = f"; and {num_left} more" if num_left > 0 else ""
            text = f"no model translates {pair}; there are {models}{more}"
    return UnsupportedLanguageError(pair, text)


def _no_codes() -> UnsupportedLanguageError:
    return UnsupportedLanguageError("", "the languages of the call are no language codes")  # they may be of any length
