"""Rules for the fields of a manifest beyond their types and ranges, declared and checked one by one."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Rule(Generic[Facts]):
    """A rule for every value of one field.

    Args:
        field: its path, such as `parity.golden[*].source_ids`; `*` is every element of a list or entry of an object.
        holds: whether a value, given the facts, obeys the rule.
        demand: follows "must" in the message; the facts are formatted into it as `{0}`.
    """

    field: str
    holds: Callable[[Any, Facts], bool]
    demand: str


def check(rules: Iterable[Rule[Facts]], manifest: object, facts: Facts) -> None:
    """Raises ValueError naming the first value at fault, its path and the demand. None has no values."""
    for rule in rules:
        for path, value in _values(manifest, re.findall(r"\w+|\*", rule.field), ""):
            if not rule.holds(value, facts):
                shown = list(value) if isinstance(value, dict) else value
                raise ValueError(f"{path} is {shown!r:.80}, must {rule.demand.format(facts)}")


@contextmanager
def about(file: str) -> Iterator[None]:
    """Puts the name of a file before a fault of it; raises ValueError also where it cannot be read."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def are_distinct(values: Sequence[Any], _: object) -> bool:
    """Whether no value occurs twice."""
    return len(set(values)) == len(values)


def _values(value: Any, steps: Sequence[str], path: str) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if not steps:
        yield path, value
    elif steps[0] == "*":
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, element in items:
            yield from _values(element, steps[1:], f"{path}[{key}]")
    else:
        yield from _values(getattr(value, steps[0]), steps[1:], f"{path}.{steps[0]}".lstrip("."))
