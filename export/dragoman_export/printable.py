"""Text of unknown origin on a terminal."""

import unicodedata

_MAX_CHARACTERS = 2000


def printable(text: str) -> str:
    """A text with escapes in place of control characters, which could command the terminal, and cut off if it is long.

    The marks that change the direction of writing, such as U+202E, are escaped as well: with them a line shows other
    words than it has. So are halves of surrogate pairs, which no terminal could be sent.
    """
    if (num_left_out := len(text) - _MAX_CHARACTERS) > 0:
        text = f"{text[:_MAX_CHARACTERS]} ... and {num_left_out:,} more characters"
    return "".join(_escaped(character) if _is_command(character) else character for character in text)


def _is_command(character: str) -> bool:
    # Joiners are of the same category as the marks of direction, and part of words and emoji.
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS


_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
