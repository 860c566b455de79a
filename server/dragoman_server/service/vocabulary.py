"""The tokens that the targets of a call are chosen from: all that the model has, or a list of likely ones."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dragoman.types import Vocabulary
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.engine.candidates import Candidates
from dragoman_server.errors import FieldViolation, NoVocabularyListError, Reason, UnknownValue
from dragoman_server.registry.model import Model

_MAX_IDLE_LISTS = 8  # of languages, by model
_Key = tuple[int, tuple[int, ...]]  # of the array of a list, and what is required beside it


@dataclass(frozen=True, slots=True)
class TargetVocabulary:
    """What the targets of one direction of a model are chosen from."""

    name: Vocabulary
    direction: Direction
    tables: VocabularyTables | None = None  # None with "full"
    of_language: Candidates | None = None  # the list for all texts, with "language"
    required_ids: tuple[int, ...] = ()  # what no target can do without: end-of-sentence, and what its framing forces

    def candidates(self, source_ids: Sequence[int], forced_ids: Sequence[int]) -> Candidates | None:
        """The tokens that may come in the target of a segment; None: all.

        Args:
            source_ids: as the encoder reads them.
            forced_ids: what the target begins with; they are among the candidates in any case.
        """
        if self.of_language is not None:
            ids = with_ids(self.of_language.ids, forced_ids)
            return self.of_language if ids is self.of_language.ids else Candidates(ids)
        if self.tables is None:
            return None
        shortlist = self.tables.shortlist(source_ids, self.direction)
        return shortlist if shortlist is None else Candidates(with_ids(shortlist, (*self.required_ids, *forced_ids)))


class Vocabularies:
    """Decides what the targets of calls are chosen from. Belongs to one event loop.

    Args:
        default: of calls that do not say, where the model has such lists; else the full vocabulary.
    """

    def __init__(self, default: Vocabulary) -> None:
        self._default = default
        self._of_languages: WeakKeyDictionary[Model, _SharedLists] = WeakKeyDictionary()

    def of(self, asked: Vocabulary | None, model: Model, direction: Direction) -> TargetVocabulary:
        """The vocabulary of a call in one direction of a model.

        Args:
            asked: what the call says; None: nothing.
            model: that writes the targets.
            direction: of the model.

        Raises:
            NoVocabularyListError: the model has no such list for the direction.
        """
        name, tables = asked or self._default, model.vocabulary
        target_prefix = model.manifest.framing_of(direction).target_prefix
        required_ids = (model.manifest.eos_token_id, *target_prefix)
        if name == "language" and tables is not None and (ids := tables.language(direction.target)) is not None:
            shared = self._of_languages.setdefault(model, _SharedLists()).of(ids, required_ids)
            return TargetVocabulary(name, direction, tables, shared, required_ids)
        if name == "shortlist" and tables is not None and direction in tables.directions:
            return TargetVocabulary(name, direction, tables, None, required_ids)
        if asked in ("language", "shortlist"):
            raise NoVocabularyListError(_absence(asked, model, direction))
        return TargetVocabulary("full", direction)


class _SharedLists:
    """The lists of languages of a model, as the engine takes them: it has weights for each object while that lives.

    Those of the latest languages are kept, and those that requests have. Languages that have a list in common have one.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[_Key, Candidates] = OrderedDict()
        self._living: WeakValueDictionary[_Key, Candidates] = WeakValueDictionary()

    def of(self, ids: NDArray[np.int32], required_ids: tuple[int, ...]) -> Candidates:
        """Of an array that is the same each time."""
        key = id(ids), required_ids
        candidates = self._living.get(key)
        if candidates is None:
            candidates = self._living[key] = Candidates(with_ids(ids, required_ids), is_shared=True)
        self._latest[key] = candidates
        self._latest.move_to_end(key)
        if len(self._latest) > _MAX_IDLE_LISTS:
            self._latest.popitem(last=False)
        return candidates


def only_full(asked: Vocabulary | UnknownValue | None) -> list[FieldViolation]:
    """What is wrong with the option where lists are not taken; the field is relative to the options."""
    if asked not in ("language", "shortlist"):
        return []
    description = f"is {asked}, must be full or absent: attention and alignments take the full vocabulary"
    return [FieldViolation("vocabulary", description, Reason.NOT_WITH_ATTENTION)]


def with_ids(ids: NDArray[np.int32], others: Collection[int]) -> NDArray[np.int32]:
    """Sorted and unique ids with others among them; the very same array where they are there already."""
    wanted = np.unique(np.fromiter(others, np.int32, len(others)))
    places = np.searchsorted(ids, wanted)
    is_missing = places == len(ids)
    is_missing[~is_missing] = ids[places[~is_missing]] != wanted[~is_missing]
    return np.insert(ids, places[is_missing], wanted[is_missing]) if is_missing.any() else ids


def _absence(asked: Vocabulary, model: Model, direction: Direction) -> str:
    pair = "-".join(direction)
    if asked == "language":
        lists, option = f"list of tokens of {direction.target} for {pair}", ""
    else:
        lists, option = f"shortlists for {pair}", f" --sources {pair}=FILE"
    return f"model {model.name} has no {lists}; make them by `dragoman-export shortlist BUNDLE NEW_BUNDLE{option}`"
