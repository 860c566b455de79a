"""JSON that means the same to whoever reads it."""

import json
import re
from typing import Any

# Escapes are the only way to half of a surrogate pair in text that was decoded from UTF-8.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(text: str) -> Any:
    """Parses a document.

    Raises:
        ValueError: it is no JSON, is nested too deeply, has a key twice in one object, of which readers take either, or
            has half of a surrogate pair, which is no character and cannot be written anywhere.
    """
    try:
        values = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])
            place = ascii(error.object[max(0, error.start - 20) : error.start])
            raise ValueError(f"it has {half}, half of a surrogate pair, after {place}") from None
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"it has the key {key!r:.60} twice in one object")
            seen.add(key)
    return values
