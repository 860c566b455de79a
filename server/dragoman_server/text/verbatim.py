"""What a translation takes over as it is: numbers, addresses, placeholders, markup and code."""

import re
import unicodedata
from collections.abc import Iterator

# All that repeats is bounded, or begins only where a run of its characters does: time is linear in the text.
_VERBATIM = re.compile(
    r"""
    (?:(?:https?|ftp)://|mailto:)[^\s<>"“”«»]+ | (?<![\w.])www\.[^\s<>"“”«»]+
    | (?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+  # an e-mail address
    | `[^`\n]{1,200}`  # code
    | \$?\{\{[^{}\n]{1,64}\}\} | \$?\{[^{}\s]{0,64}\}
    | %(?:\(\w{1,64}\)|\d\$)?[-+0\#]?\d{0,3}(?:\.\d)?[sdifuxXgGeEc@](?![^\W_])
    | </?[A-Za-z][^<>\n]{0,200}> | &\#?\w{1,16};  # markup
    """,
    re.VERBOSE,
)
# Each of these has one of: most texts have none, which is found in a tenth of the time.
_SIGN = re.compile(r"[:@`{%<&]|www\.")
_TRAILING = ".,;:!?)]}'’。，、）」"  # behind an address, of the sentence

# What separates thousands, decimals, hours and minutes in some language. A space does where three digits follow.
_SEPARATOR = re.compile(r"(?<=\d)(?:[.,:'’٫٬](?=\d)|[ \u00a0\u2009\u202f](?=\d{3}(?!\d)))")
_NUMBER = re.compile(r"\d{2,}")  # one digit is often written as a word
_TIME_OF_DAY = re.compile(r"(?<![\d.,])\d{1,2}:\d{2}(?![\d:])")


def has_words(text: str) -> bool:
    """Whether there is anything to translate: a letter that is of no address, placeholder, markup or code."""
    return any(map(str.isalpha, _VERBATIM.sub(" ", text) if _SIGN.search(text) else text))


def is_copied(source: str, target: str) -> bool:
    """Whether the target has all addresses, placeholders, markup, code and numbers of the source.

    Numbers may be written in another way: 1,234.56 is 1.234,56 and 1 234,56. Those of one digit and times of day do not
    count, which languages write in too many ways.
    """
    digits = "".join(_numbers(target))
    return all(_without_trailing(match[0]) in target for match in _VERBATIM.finditer(source)) and all(
        number in digits for number in _numbers(_TIME_OF_DAY.sub(" ", _VERBATIM.sub(" ", source)))
    )


def _without_trailing(item: str) -> str:
    """An address without the marks of the sentence behind it."""
    return item if item[-1] in "}`>;" else item.rstrip(_TRAILING)


def _numbers(text: str) -> Iterator[str]:
    for number in _NUMBER.findall(_SEPARATOR.sub("", text)):
        yield "".join(str(unicodedata.decimal(digit)) for digit in number)
