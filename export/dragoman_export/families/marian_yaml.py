"""The part of YAML that Marian's files are written in: settings and vocabularies, whose values are scalars and lists.

It is a mapping with a key on each line. A key or a scalar is plain, 'quoted' or "quoted"; a list is `[in, one, line]`,
or has an item on each line. JSON is read as well. Anything else that YAML has is refused, with the number of its line.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dragoman_export.reading import read_bytes
from dragoman_server.text import strict_json

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar]

_SPACE = " \t"  # of YAML; other white space is text
_ESCAPES = dict(zip('0abtnvfre "/\\N_LP', '\0\a\b\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029', strict=True))
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.)|$)", re.DOTALL)
_QUOTED = re.compile(r"""'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"\\]|\\.)*)\"""", re.DOTALL)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "~": None, "": None}
# What no plain scalar begins with: the rest of YAML.
_INDICATORS = "[]{},#&*!|>'\"%@`"
_COLON = re.compile(r":(?=[ \t]|$)")  # behind a key
_PLAIN_ITEM = re.compile(r"[^,\[\]{}]+")  # of a list
_COMMENT = re.compile(r"(?:^|[ \t])#.*$", re.DOTALL)


def read_yaml(path: Path) -> dict[str, Value]:
    """The mapping in a file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds something else, or what is not read of YAML; names the line.
    """
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> dict[str, Value]:
    """The mapping in a text.

    Args:
        text: of a file.
        origin: the name of the file, for errors.

    Raises:
        ValueError: as `read_yaml`.
    """
    if text.lstrip(_SPACE).startswith("{"):
        return _json(text, origin)
    values: dict[str, Value] = {}
    lines = _Lines(text)
    for number, line in lines:
        try:
            key, value = _entry(line, lines)
        except ValueError as error:
            raise ValueError(f"{origin}: line {number} is {line!r:.80}, which {error}") from error
        if key in values:
            raise ValueError(f"{origin}: line {number} has the key {key!r:.80} again")
        values[key] = value
    return values


def _json(text: str, origin: str) -> dict[str, Value]:
    try:
        values = strict_json.loads(text)
    except ValueError as error:
        raise ValueError(f"{origin} is neither JSON nor YAML with a key on each line: {error}") from error
    assert isinstance(values, dict)
    for key, value in values.items():
        if any(isinstance(item, Mapping | list) for item in (value if isinstance(value, list) else [value])):
            raise ValueError(
                f"{origin}: {key!r:.80} is {json.dumps(value):.80}, neither a scalar nor a list of scalars"
            )
    return values


class _Lines:
    """The lines that say something, with their numbers, and the next one in advance."""

    def __init__(self, text: str) -> None:
        # Not `splitlines`: entries of a vocabulary may have what it takes for the end of a line.
        lines = enumerate((line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")), 1)
        self._left = [
            (number, line) for number, line in lines if line.strip(_SPACE) and not line.lstrip(_SPACE).startswith("#")
        ]
        self._left = [entry for entry in self._left if entry[1].rstrip(_SPACE) not in ("---", "...")][::-1]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self._left:
            yield self._left.pop()

    def take(self, matches: Callable[[str], bool]) -> str | None:
        """The next line, if it is of a kind; it is not given again."""
        return self._left.pop()[1] if self._left and matches(self._left[-1][1]) else None


def _entry(line: str, lines: _Lines) -> tuple[str, Value]:
    """The key on a line and its value, which may be on lines of its own."""
    if line[0] in _SPACE:
        raise ValueError("is indented, but nothing is expected there")
    if line.startswith("? "):
        key, rest = _key(line[2:].lstrip(_SPACE) + ":")
        following = lines.take(lambda other: other.startswith(": ")) or ":"
        if rest:
            raise ValueError("is not a key")
        return key, _scalar_or_list(following[1:])
    if line.startswith("- "):
        raise ValueError("is an item of a list, but no key is above it")
    key, rest = _key(line)
    if rest.strip(_SPACE) and not rest.lstrip(_SPACE).startswith("#"):
        return key, _scalar_or_list(rest)
    items: list[Scalar] = []
    while (item := lines.take(lambda other: re.match(r"[ \t]*-([ \t]|$)", other) is not None)) is not None:
        items.append(_scalar(item.lstrip(_SPACE)[1:]))
    if items:
        return key, items
    indented = lines.take(lambda other: other[0] in _SPACE)
    return key, None if indented is None else _scalar_or_list(indented)


def _key(line: str) -> tuple[str, str]:
    """The key that a line begins with, and what follows the colon behind it."""
    if line[0] in "'\"":
        key, end = _quoted(line)
        colon = _COLON.match(line, _behind_spaces(line, end))
        if colon is None:
            raise ValueError("has no colon behind its key")
        return key, line[colon.end() :]
    colon = _COLON.search(line)
    if colon is None:
        raise ValueError("has no key and colon")
    key = line[: colon.start()].rstrip(_SPACE)
    _check_plain(key)
    return key, line[colon.end() :]


def _scalar_or_list(text: str) -> Value:
    text = text.strip(_SPACE)
    return _list(text) if text.startswith("[") else _scalar(text)


def _list(text: str) -> list[Scalar]:
    place, items = _behind_spaces(text, 1), list[Scalar]()
    while not text.startswith("]", place):
        if text.startswith(("'", '"'), place):
            item, place = _quoted(text, place)
            items.append(item)
        else:
            found = _PLAIN_ITEM.match(text, place)
            if found is None:
                raise ValueError("is not a list that ends on its line")
            items.append(_scalar(found[0]))
            place = found.end()
        place = _behind_spaces(text, place)
        if text.startswith(",", place):
            place = _behind_spaces(text, place + 1)
        elif not text.startswith("]", place):
            raise ValueError("is not a list that ends on its line")
    _check_end(text[place + 1 :])
    return items


def _behind_spaces(text: str, place: int) -> int:
    while text.startswith((" ", "\t"), place):
        place += 1
    return place


def _scalar(text: str) -> Scalar:
    text = text.strip(_SPACE)
    if text[:1] in ("'", '"'):
        quoted, end = _quoted(text)
        _check_end(text[end:])
        return quoted
    text = _COMMENT.sub("", text).strip(_SPACE)
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    _check_plain(text)
    if ": " in text or text.endswith(":") or text.startswith(("- ", "? ")):
        raise ValueError("is neither a scalar nor a list of scalars")
    if _INTEGER.fullmatch(text) and len(text) < 20:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) and len(text) < 40 else text


def _quoted(text: str, begin: int = 0) -> tuple[str, int]:
    """The string that stands at a place of a text, and the place behind it."""
    found = _QUOTED.match(text, begin)
    if found is None:
        raise ValueError("has a quotation mark without its counterpart")
    if found["single"] is not None:
        return found["single"].replace("''", "'"), found.end()
    return _ESCAPE.sub(_unescaped, found["double"]), found.end()


def _unescaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    if digits is None:
        if found[4] not in _ESCAPES:
            raise ValueError(f"has the unknown escape {found[0]}")
        return _ESCAPES[found[4]]
    code = int(digits, 16)
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        raise ValueError(f"has {found[0]}, which is no character")
    return chr(code)


def _check_plain(text: str) -> None:
    if text[:1] and text[0] in _INDICATORS:
        raise ValueError(f"begins a scalar with {text[0]}, which is not read here")


def _check_end(rest: str) -> None:
    if rest.strip(_SPACE) and not re.match(r"[ \t]+#", rest):
        raise ValueError("goes on behind its value")
