"""Where sentences end: rules for Latin scripts, and the end marks of other scripts.

The rules would rather join two sentences than cut one in half: the model copes with two
sentences, but half of one is translated without its context.
"""

import re
from collections.abc import Iterator

# These end a sentence whatever stands behind them, space or not.
_SOVEREIGN_MARKS = "。！？｡।॥؟۔"
_MARKS = ".!?…" + _SOVEREIGN_MARKS

_QUOTES = "\"'“”‘’«»‹›"
_CLOSERS = re.escape(_QUOTES + ")]}」』）】〉》")
_OPENERS = re.escape(_QUOTES + "([{„‚「『（【〈《–—-")

_END = re.compile(
    rf"[{re.escape(_MARKS)}]+"
    # A French closing quote stands behind a space, which also opens a German quotation;
    # but there the next letter follows at once.
    rf"(?:[{_CLOSERS}]|[ \u00a0\u202f]»(?=\s|$))*"
)
_FOLLOWING = re.compile(rf"[\s{_OPENERS}]*+(.)")
_WORD_BREAK = re.compile(rf"[\s{_OPENERS}]")
# No abbreviation is longer; without a bound, a text of nothing but full stops takes ages.
_LONGEST_ABBREVIATION = 12
_DOTTED_LETTERS = re.compile(r"(?:\w\.)+\w")


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Followed by a name: never the end of a sentence.
_TITLES = _words(
    "mr mrs ms dr prof rev hon gen col capt lt sgt st sr jr messrs",  # English
    "hr fr frl dipl ing bzw ca bspw vgl evtl ggf inkl zzgl sog geb gest",  # German
    "mm mme mlle mgr",  # French
    "sra srta srs dra ud uds vd vds dña",  # Spanish
)
# Followed by a number: the end of a sentence where none follows.
_COUNTED = _words(
    "no nos nr nro núm num vol bd fig figs abb pp pg pág págs art abs eq sec ch chap tel approx",
    "jan feb febr apr aug sep sept oct okt nov dec dez",
)


def sentence_spans(line: str) -> Iterator[tuple[int, int]]:
    """The sentences of a line as [begin, end), in order, without the white space around them.

    White space apart, every character of the line is in exactly one of them.
    """
    begin = 0
    for match in _END.finditer(line):
        if match.end() > begin and _is_end(line, begin, match):
            yield from _stripped(line, begin, match.end())
            begin = match.end()
    yield from _stripped(line, begin, len(line))


def _stripped(line: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    part = line[begin:end]
    if stripped := part.strip():
        begin += len(part) - len(part.lstrip())
        yield begin, begin + len(stripped)


def _is_end(line: str, begin: int, match: re.Match[str]) -> bool:
    marks = match[0]
    if any(mark in _SOVEREIGN_MARKS for mark in marks):
        return True
    # A number such as 3.14, an address such as example.com.
    if match.end() < len(line) and not line[match.end()].isspace():
        return False
    following = _FOLLOWING.match(line, match.end())
    if following is None:
        return False  # nothing but white space and quotes is left
    if following[1].islower():
        return False  # "Why?" he asked
    if marks != ".":
        return True
    before = line[max(begin, match.start() - _LONGEST_ABBREVIATION - 1) : match.start()]
    return not _is_abbreviation(_WORD_BREAK.split(before)[-1], following[1])


def _is_abbreviation(word: str, following: str) -> bool:
    """Whether the full stop behind `word` belongs to it, with `following` the next letter."""
    if len(word) == 1 and word.isalpha():
        return True  # an initial, as in J. R. R. Tolkien
    if len(word) <= 2 and word.isdecimal():
        return True  # an ordinal, as in 3. Mai, or the number of an item
    if _DOTTED_LETTERS.fullmatch(word):
        return True  # U.S., z.B., e.g.
    folded = word.casefold()
    return folded in _TITLES or (folded in _COUNTED and following.isdecimal())
