"""The languages of a model, and the direction for the language codes of a call."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property
from itertools import chain, combinations, islice
from typing import Annotated, NamedTuple

from msgspec import Meta

from dragoman_server.bundle.fields import LanguageCode, TokenIds

_MAX_CODE_CHARACTERS = 64
_CODE = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")

# More of them would make an error unreadable.
_MAX_NAMED_DIRECTIONS = 20
_MAX_NAMED_LANGUAGES = 20
_MAX_ALIKE = 5

_Codes = Annotated[tuple[LanguageCode, ...], Meta(min_length=1, max_length=1 << 10)]


class Direction(NamedTuple):
    """Source and target language of a translation: language codes, as the bundle has them."""

    source: LanguageCode
    target: LanguageCode


@dataclass(frozen=True)
class DirectionGroup:
    """Directions from each of `sources` to each of `targets`.

    A language to itself is not among them, unless the group names nothing else.
    """

    sources: _Codes
    targets: _Codes

    def __contains__(self, direction: tuple[str, str]) -> bool:
        source, target = direction
        is_translation = source != target or len(self.sources) == len(self.targets) == 1
        return is_translation and source in self.sources and target in self.targets

    def __len__(self) -> int:
        num_pairs = len(self.sources) * len(self.targets)
        return num_pairs if num_pairs == 1 else num_pairs - len({*self.sources} & {*self.targets})

    def overlaps(self, other: "DirectionGroup") -> bool:
        """Whether a direction is in both groups."""
        sources, targets = {*self.sources} & {*other.sources}, {*self.targets} & {*other.targets}
        if not (sources and targets):
            return False
        if len(sources | targets) > 1:
            return True
        (code,) = sources
        return (code, code) in self and (code, code) in other


@dataclass(frozen=True)
class LanguageTable:
    """The languages of a model by their BCP 47 tags: its directions, and its own names for them."""

    directions: Annotated[tuple[DirectionGroup, ...], Meta(min_length=1, max_length=1 << 10)]
    token_ids: dict[LanguageCode, TokenIds] = field(default_factory=dict)  # of a language in a framing
    # Other codes that callers may give, such as the model's own: "eng_Latn" for "en".
    aliases: dict[LanguageCode, LanguageCode] = field(default_factory=dict)

    @classmethod
    def of(
        cls, directions: Iterable[tuple[str, str]], token_ids: Mapping[str, tuple[int, ...]] | None = None
    ) -> "LanguageTable":
        """The table of exactly these directions, in their order."""
        groups = tuple(DirectionGroup((source,), (target,)) for source, target in directions)
        return cls(groups, {**(token_ids or {})})

    def __contains__(self, direction: tuple[str, str]) -> bool:
        return any(direction in group for group in self.directions)

    def __iter__(self) -> Iterator[Direction]:
        """All directions, group by group."""
        return self.starting_from(self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.directions))

    def starting_from(self, sources: Collection[str]) -> Iterator[Direction]:
        """The directions from any of these languages, group by group."""
        for group in self.directions:
            for source in group.sources:
                if source in sources:
                    directions = (Direction(source, target) for target in group.targets)
                    yield from (direction for direction in directions if direction in group)

    @cached_property
    def sources(self) -> frozenset[str]:
        """The languages of all sources."""
        return frozenset(chain.from_iterable(group.sources for group in self.directions))

    @cached_property
    def targets(self) -> frozenset[str]:
        """The languages of all targets."""
        return frozenset(chain.from_iterable(group.targets for group in self.directions))


def are_apart(groups: Sequence[DirectionGroup]) -> bool:
    """Whether no direction is in two groups."""
    return not any(first.overlaps(second) for first, second in combinations(groups, 2))


def are_told_apart(codes: Iterable[str]) -> bool:
    """Whether codes differ in more than letter case, and in more than `_` for `-`."""
    compared = [*map(folded, codes)]
    return len(set(compared)) == len(compared)


class Match(NamedTuple):
    """A direction for the languages of a call."""

    distance: tuple[int, int]
    """How many steps of RFC 4647's look-up lie between both, by source and target; (0, 0) where they are the same."""

    direction: Direction


class Languages:
    """Look-up of the directions of one model, by RFC 4647, section 3.4.

    Codes are compared without regard to case, and with `_` as `-`.
    """

    @classmethod
    def of_all(cls, models: Sequence["Languages"]) -> "Languages":
        """Those of several models; an alias is that of the first that has it."""
        tables = [model._table for model in models]
        aliases = {name: code for table in reversed(tables) for name, code in table.aliases.items()}
        return cls(LanguageTable(tuple(chain.from_iterable(table.directions for table in tables)), aliases=aliases))

    def __init__(self, table: LanguageTable) -> None:
        self._table = table
        own = table.sources | table.targets
        self._codes = {folded(alias): code for alias, code in table.aliases.items()}
        self._codes.update((folded(code), code) for code in own)

    def fault_of(self, code: str) -> str | None:
        """The fault of a code that no model should have, as a phrase that follows the field's name."""
        if len(code) > _MAX_CODE_CHARACTERS:
            return f"has {len(code)} characters, may have at most {_MAX_CODE_CHARACTERS}"
        if not _CODE.fullmatch(code) and folded(code) not in self._codes:
            return 'is not a BCP 47 language tag, such as "en" or "pt-BR"'
        return None

    def find(self, source: str, target: str) -> Direction | None:
        """The nearest direction: by its source first, then by its target. None where there is none.

        Args:
            source: a code without fault.
            target: a code without fault.
        """
        match = self.match(source, target)
        return match.direction if match else None

    def match(self, source: str, target: str) -> "Match | None":
        """The same, with how near it is."""
        for source_distance, nearest_source in self._nearest(source):
            for target_distance, nearest_target in self._nearest(target):
                direction = Direction(nearest_source, nearest_target)
                if direction in self._table:
                    return Match((source_distance, target_distance), direction)
        return None

    def required(self, *, is_source: bool) -> str:
        """What to say of a call without a language, as a phrase that follows the field's name."""
        names = sorted(self._table.sources if is_source else self._table.targets)
        more = f" and {num_left} more" if (num_left := len(names) - _MAX_NAMED_LANGUAGES) > 0 else ""
        return f"is required: the model has no default; it has {', '.join(names[:_MAX_NAMED_LANGUAGES])}{more}"

    def not_found(self, source: str, target: str) -> str:
        """The reason why the model does not translate a pair of languages: those that it has not, or all that it has.

        Of many directions only the first are named, and of many languages the nearest.
        """
        return self.fault_of_pair(source, target) or f"it translates {self.described(source)}"

    def fault_of_pair(self, source: str, target: str) -> str:
        """Which language of a pair is none of many, with the nearest, or that they are one; else empty.

        Also empty where there are so few directions that all can be named.
        """
        if len(self._table) <= _MAX_NAMED_DIRECTIONS:
            return ""
        sides = (source, self._table.sources, "source"), (target, self._table.targets, "target")
        unknown = [
            f"{code} is none of the {len(own)} {side} languages; the nearest are {', '.join(self._alike(code, own))}"
            for code, own, side in sides
            if not self._find(code, own)
        ]
        if not unknown and (one := self._find(source, self._table.sources)) == self._find(target, self._table.targets):
            return f"source and target are both {one}"
        return "; ".join(unknown)

    def _find(self, code: str, own: Collection[str]) -> str:
        """The nearest of these languages that a code may stand for, or nothing."""
        return next((name for _, name in self._nearest(code) if name in own), "")

    def _alike(self, code: str, languages: Collection[str]) -> list[str]:
        """Those of some languages that are spelt most like a code, by any of their names."""
        wanted = SequenceMatcher(b=folded(code), autojunk=False)
        likeness: dict[str, float] = {}
        for name, own in self._codes.items():
            if own in languages:
                wanted.set_seq1(name)
                likeness[own] = max(likeness.get(own, 0.0), wanted.ratio())
        return sorted(likeness, key=lambda own: (-likeness[own], own))[:_MAX_ALIKE]

    def described(self, source: str = "") -> str:
        """All directions, such as "en-fr, fr-en"; of many only the first, with those from `source` in front."""
        first = {code for _, code in self._nearest(source)}
        ordered = chain(self._table.starting_from(first), self._table.starting_from(self._table.sources - first))
        names = ", ".join(map("-".join, islice(ordered, _MAX_NAMED_DIRECTIONS)))
        num_left = len(self._table) - _MAX_NAMED_DIRECTIONS
        return f"{names} and {num_left} more" if num_left > 0 else names

    def _nearest(self, code: str) -> Iterator[tuple[int, str]]:
        """The model's languages that a code may stand for, the nearest first, and how far each is."""
        for distance, candidate in enumerate(_ranges(code)):
            if own := self._codes.get(candidate):
                yield distance, own


def folded(code: str) -> str:
    """The form in which codes are compared: in small letters, with `-` for `_`."""
    return code.replace("_", "-").lower()


def _ranges(code: str) -> Iterator[str]:
    """The code, and its beginnings by whole subtags, the longest first."""
    subtags: Sequence[str] = folded(code).split("-")
    while subtags:
        yield "-".join(subtags)
        subtags = subtags[:-1]
        if subtags and len(subtags[-1]) == 1:  # a singleton means nothing without what followed it
            subtags = subtags[:-1]
