"""What a translation takes over as it is: numbers, addresses, placeholders, markup and code."""

import re
import unicodedata
from collections.abc import Iterator

# All that repeats is bounded, or begins only where a run of its characters does: time is linear in the text.
_VERBATIM = re.compile(
    r"""
    (?:https?|ftp)://[^\s<>"“”«»]+ | (?<![\w.])www\.[^\s<>"“”«»]+
    | (?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+  # an e-mail address
    | `[^`\n]{1,200}`  # code
    | \$?\{\{[^{}\n]{1,64}\}\} | \$?\{[^{}\s]{0,64}\}
    | %(?:\(\w{1,64}\)|\d\$)?[-+0\#]?\d{0,3}(?:\.\d)?[sdifuxXgGeEc@](?![^\W_])
    | </?[A-Za-z][^<>\n]{0,200}> | &\#?\w{1,16};  # markup
    """,
    re.VERBOSE,
)
_TRAILING = ".,;:!?)]}'’"  # behind an address, of the sentence

# What separates thousands, decimals, hours and minutes in some language. A space does where three digits follow.
_SEPARATOR = re.compile(r"(?<=\d)(?:[.,:'’٫٬](?=\d)|[ \u00a0\u2009\u202f](?=\d{3}(?!\d)))")
_NUMBER = re.compile(r"\d+")
_TIME_OF_DAY = re.compile(r"(?<![\d.,])\d{1,2}:\d{2}(?![\d:])")
# Smaller numbers are often written as words.
_LEAST_DIGITS = 2


def has_words(text: str) -> bool:
    """Whether there is anything to translate: a letter that is of no address, placeholder, markup or code."""
    return any(map(str.isalpha, _VERBATIM.sub(" ", text)))


def is_something_missing(source: str, target: str) -> bool:
    """Whether an address, a placeholder, markup, code or a number of the source is not in the target.

    Numbers may be written in another way: 1,234.56 is 1.234,56 and 1 234,56. Those of one digit do not count.
    """
    for match in _VERBATIM.finditer(source):
        item = match[0].rstrip(_TRAILING) if match[0][-1] not in "}`>" else match[0]
        if item not in target and not item.startswith("&"):
            return True
    found = set(_numbers(target))
    all_digits = "".join(found)
    rest = _TIME_OF_DAY.sub(" ", _VERBATIM.sub(" ", source))
    return any(number not in found and number not in all_digits for number in _numbers(rest))


def _numbers(text: str) -> Iterator[str]:
    for number in _NUMBER.findall(_SEPARATOR.sub("", text)):
        if len(number) >= _LEAST_DIGITS:
            yield "".join(str(unicodedata.decimal(digit)) for digit in number)
