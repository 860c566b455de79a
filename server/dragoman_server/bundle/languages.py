"""From the language codes of a call to the direction of the model that they stand for."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_MAX_CODE_CHARACTERS = 64
_CODE = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")

# More of them would hide what an error says.
_MAX_NAMED_DIRECTIONS = 20


class Direction(NamedTuple):
    """What a model translates from and into: language codes, as its bundle has them."""

    source: str
    target: str


class Languages:
    """The directions of one model, found by the look-up of RFC 4647, section 3.4.

    Codes are compared without regard to case, and with `_` as `-`.
    """

    def __init__(self, directions: Iterable[tuple[str, str]]) -> None:
        self._directions = [Direction(source, target) for source, target in directions]
        self._by_codes = {(_folded(d.source), _folded(d.target)): d for d in self._directions}
        self._codes = frozenset(code for codes in self._by_codes for code in codes)

    def fault_of(self, code: str) -> str | None:
        """What is wrong with a code that no model should have, as a phrase that follows the field's name."""
        if len(code) > _MAX_CODE_CHARACTERS:
            return f"has {len(code)} characters, may have at most {_MAX_CODE_CHARACTERS}"
        if not _CODE.fullmatch(code) and _folded(code) not in self._codes:
            return 'is not a BCP 47 language tag, such as "en" or "pt-BR"'
        return None

    def find(self, source: str, target: str) -> Direction | None:
        """The nearest direction: by its source first, then by its target. None where there is none.

        Args:
            source: a code without fault.
            target: a code without fault.
        """
        for nearest_source in _ranges(source):
            for nearest_target in _ranges(target):
                if direction := self._by_codes.get((nearest_source, nearest_target)):
                    return direction
        return None

    def described(self, source: str) -> str:
        """The directions there are, such as "en-fr, fr-en". Of many only some, those from `source` first."""
        ranges = set(_ranges(source))
        ordered = sorted(self._directions, key=lambda direction: _folded(direction.source) not in ranges)
        names = ", ".join(map("-".join, ordered[:_MAX_NAMED_DIRECTIONS]))
        num_left = len(ordered) - _MAX_NAMED_DIRECTIONS
        return f"{names} and {num_left} more" if num_left > 0 else names


def _folded(code: str) -> str:
    return code.replace("_", "-").lower()


def _ranges(code: str) -> Iterator[str]:
    """The code, and what it becomes when subtags are taken from its end, down to the first."""
    subtags: Sequence[str] = _folded(code).split("-")
    while subtags:
        yield "-".join(subtags)
        subtags = subtags[:-1]
        if subtags and len(subtags[-1]) == 1:  # a singleton means nothing without what followed it
            subtags = subtags[:-1]
