"""What an option is: a field of a frozen dataclass with a type, a range, a unit, a default and a meaning.

Flags, variables, keys of the configuration file and the table in docs/operations.md are derived from such fields.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from msgspec.inspect import (
    BoolType,
    CustomType,
    FloatType,
    IntType,
    LiteralType,
    NoneType,
    UnionType,
    VarTupleType,
    type_info,
)

from dragoman_server.errors import StartError

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class About:
    """What a field says of its option beside type and range."""

    help: str
    unit: str = ""  # of a number; the form of a text
    default_text: str = ""  # where the default itself says nothing
    check: Callable[[str, str], object] | None = None  # raises StartError; takes the option's name and its value
    below: Callable[[str, Path], str] | None = None  # of a text with a path in it: the same from another folder


@dataclass(frozen=True, slots=True)
class Option:
    """An option as users see it."""

    name: str
    """Its key in the configuration file. The flag and the variable are made of it."""

    title: str
    """Of the group of options that it belongs to."""

    type: Any
    default: Any
    about: About

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DRAGOMAN_" + self.name.upper()

    @property
    def is_repeated(self) -> bool:
        """Whether it has any number of values, in a tuple."""
        return isinstance(type_info(self.type), VarTupleType)

    @property
    def is_switch(self) -> bool:
        """Whether its flag alone, without a value, says that it is true."""
        return isinstance(type_info(self.type), BoolType)

    @property
    def default_text(self) -> str:
        if self.is_switch:
            return "true" if self.default else "false"
        return self.about.default_text or (
            f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        )

    def below(self, folder: Path, given: object) -> object:
        """What was given in a file in this folder: a relative path in it counts from there."""
        if isinstance(given, list):
            return [self.below(folder, one) for one in given]
        if not isinstance(given, str):
            return given
        if self.about.below is not None:
            return self.about.below(given, folder)
        return folder / given if any(isinstance(kind, CustomType) for kind in self._kinds) else given

    @property
    def metavar(self) -> str:
        """The form of a value, such as "auto|NUMBER"; in brackets where the flag needs none."""
        forms = self._forms("|", "NUMBER", "NUMBER")
        return f"[{forms}]" if self.is_switch else forms

    @property
    def range(self) -> str:
        """The values with their unit, such as "auto or 1 to 64 lanes"."""
        numbers = f"{{}} to {{}} {self.about.unit}"
        return self._forms(" or ", numbers, numbers)

    def read(self, given: object, where: str, *, is_text: bool = False) -> Any:
        """The value that `given` is, or that it spells if it `is_text`; of a repeated option one or several.

        Raises:
            StartError: a sentence that begins with `where` and has the range and what is given.
        """
        if not self.is_repeated:
            return self._read(given, self.type, where, is_text=is_text)
        item, _ = get_args(self.type.__origin__)
        several = given if isinstance(given, list | tuple) else [given]
        return tuple(self._read(one, item, where, is_text=is_text) for one in several)

    def _read(self, given: object, kind: Any, where: str, *, is_text: bool) -> Any:
        try:
            value = msgspec.convert(given, kind, strict=not is_text, dec_hook=_decode)
        except msgspec.ValidationError:
            allowed = self._forms(" or ", "a whole number from {} to {}", "a number from {} to {}")
            raise StartError(f"{where} must be {allowed} and is {given!r:.200}.") from None
        if self.about.check is not None and value is not None:
            self.about.check(where, value)
        return value

    @property
    def _kinds(self) -> tuple[Any, ...]:
        """The types of `msgspec.inspect` that a value may have, None aside."""
        info = type_info(self.type)
        if isinstance(info, VarTupleType):
            info = info.item_type
        kinds = info.types if isinstance(info, UnionType) else (info,)
        return tuple(kind for kind in kinds if not isinstance(kind, NoneType))

    def _forms(self, separator: str, whole_number: str, number: str) -> str:
        forms = []
        for kind in self._kinds:
            match kind:
                case IntType(ge=least, le=most):
                    forms.append(whole_number.format(least, most))
                case FloatType(ge=least, le=most):
                    forms.append(number.format(least, most))
                case BoolType():
                    forms.extend(("true", "false"))
                case LiteralType(values=values):
                    forms.extend(map(str, values))
                case _:
                    forms.append(self.about.unit)
        return separator.join(forms)


def build(cls: Any, values: Mapping[str, Any]) -> Any:
    """An object of dataclasses of options with these values by the options' names, and the defaults of the others."""
    arguments = {
        item.name: build(item.type, values) if is_dataclass(item.type) else values[item.name]
        for item in fields(cls)
        if is_dataclass(item.type) or item.name in values
    }
    return cls(**arguments)


def options_of(cls: Any) -> Iterator[Option]:
    """The options that are fields of a dataclass, or of those in it."""
    for item in fields(cls):
        if is_dataclass(item.type):
            yield from options_of(item.type)
        else:
            about = next(note for note in get_args(item.type) if isinstance(note, About))
            yield Option(item.name, cls.TITLE, item.type, item.default, about)


def values_of(part: Any) -> dict[str, Any]:
    """The values of all options by their names."""
    values: dict[str, Any] = {}
    for item in fields(part):
        value = getattr(part, item.name)
        values |= values_of(value) if is_dataclass(value) else {item.name: value}
    return values


def _decode(kind: type[_T], value: Any) -> _T:
    """Makes what msgspec has no type for: a Path."""
    return kind(value)  # type: ignore[call-arg]
