"""Changed copies of pairs, from which a model learns to copy text and to tolerate sloppy typing.

A corpus of everyday sentences has one name ("Tom"), few numbers and no addresses. Here names, numbers and placeholders
are replaced on both sides alike, sentences are put beside addresses and into markup, and some are written in capitals,
in small letters or without a full stop. The result depends on the pairs and a seed alone.
"""

import csv
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dragoman_export.train.copied import (
    KINDS,
    anything,
    count_placeholder,
    email,
    in_back_quotes,
    invented_name,
    number,
    person,
    placeholder,
)
from dragoman_export.train.corpus import TextPair

RENAMED_SHARE = 0.5  # of the pairs that name Tom or Mary
MAX_REPETITIONS = 10  # changes of one pair by one transform, at most

# The most frequent names in corpora of example sentences, as translators wrote them; group 1 is the genitive's ending.
_NAMES: tuple[tuple[bool, Mapping[str, str]], ...] = (
    (False, {"en": "Tom()", "fr": "Tom()", "de": "Tom(s?)", "es": "Tom()"}),
    (True, {"en": "Mary()", "fr": "(?:Mary|Marie)()", "de": "(?:Mary|Maria)(s?)", "es": "(?:Mary|María|Maria)()"}),
)
_NUMBER = re.compile(r"(?<![\w.,:'/$%\\-])(?!1\b|0)\d{1,7}(?![\w:'/-]|[.,]\w)")
_PLACEHOLDER = re.compile(r"\{\w*\}|%(?:\d\$)?[sdi]\b")
_TECHNICAL = re.compile(r"[{}<>%$`@\\_=]|://|www\.|\d[.:]\d")
_WORD = re.compile(r"\w+(?:[-'’]\w+)*")


class Variant(NamedTuple):
    """A changed pair, and the text that was put on both of its sides."""

    pair: TextPair
    copied: tuple[str, ...] = ()


Transform = Callable[[random.Random, TextPair, tuple[str, str]], Variant | None]
"""Returns None for a pair that it cannot change."""


def augment(pairs: Sequence[TextPair], languages: tuple[str, str], seed: int, share: float) -> list[TextPair]:
    """The pairs, half of those that name Tom or Mary with other names, and then `share` times as many changed ones."""
    rng = random.Random(f"{seed}-{'-'.join(languages)}")
    renamed = [_renamed(rng, pair, languages) for pair in pairs]
    variants = (
        variant
        for transform, weight in TRANSFORMS.items()
        for variant in _variants(
            rng, transform, pairs, languages, round(share * len(pairs) * weight / sum(TRANSFORMS.values()))
        )
    )
    return [*renamed, *variants]


def _variants(
    rng: random.Random, transform: Transform, pairs: Sequence[TextPair], languages: tuple[str, str], num_wanted: int
) -> Iterator[TextPair]:
    """Changes pairs in random order. If few can be changed, each is changed several times, in different ways."""
    remaining = rng.sample(pairs, len(pairs))
    for _ in range(MAX_REPETITIONS):
        usable = []
        for pair in remaining:
            if num_wanted == 0:
                return
            changed = transform(rng, pair, languages)
            if changed is not None:
                usable.append(pair)
                num_wanted -= 1
                yield changed.pair
        remaining = usable


def _renamed(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> TextPair:
    found = rename(rng, pair, languages) if rng.random() < RENAMED_SHARE else None
    return pair if found is None else found.pair


def rename(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Another person for Tom, and another for Mary."""
    names = []
    for is_female, patterns in _NAMES:
        if not all(language in patterns for language in languages):
            continue
        regexes = [re.compile(rf"\b{patterns[language]}\b") for language in languages]
        if all(regex.search(side) for regex, side in zip(regexes, pair, strict=True)):
            name = person(rng, is_female)
            pair = _both(lambda side, regex, name=name: regex.sub(lambda m: name + m[1], side), pair, regexes)
            names.append(name)
    return Variant(pair, tuple(names)) if names else None


def replace_name(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Copied text in place of Tom, where he stands once on each side and not in the genitive."""
    _, patterns = _NAMES[0]
    if not all(language in patterns for language in languages):
        return None
    make = rng.choice([placeholder, placeholder, email, invented_name, in_back_quotes, anything])
    # "Tom's" and "Toms" belong to what follows.
    return _replace_single(pair, re.compile(r"\bTom\b(?!['’]s)"), re.compile(r"\b(?:Tom|Toms)\b"), lambda: make(rng))


def renumber(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Other numbers for those that stand on both sides; at times a placeholder."""
    found = [_NUMBER.findall(side) for side in pair]
    if not found[0] or Counter(found[0]) != Counter(found[1]):
        return None
    others = {text: _other_number(rng, text) for text in dict.fromkeys(found[0])}
    pair = _both(lambda side: _NUMBER.sub(lambda m: others[m[0]], side), pair)
    return Variant(pair, tuple(others.values()))


def _other_number(rng: random.Random, text: str) -> str:
    if rng.random() < 0.15:
        return count_placeholder(rng)
    if len(text) <= 2 and int(text) <= 31 and rng.random() < 0.5:  # maybe a day or a month
        return str(rng.randint(2, 31))
    return number(rng, len(text) if rng.random() < 0.6 else None)


def replace_placeholder(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Copied text in place of a placeholder that stands once on each side."""
    found = _PLACEHOLDER.findall(pair[0])
    make = count_placeholder if found and found[0][-1] in "di" else anything
    return _replace_single(pair, _PLACEHOLDER, _PLACEHOLDER, lambda: make(rng))


def _replace_single(
    pair: TextPair, pattern: re.Pattern[str], competitor: re.Pattern[str], make: Callable[[], str]
) -> Variant | None:
    """Replaces the pattern by an item if each side has one match, which is also the only match of `competitor`."""
    if any(len(regex.findall(side)) != 1 for regex in (pattern, competitor) for side in pair):
        return None
    item = make()
    return Variant(_both(lambda side: pattern.sub(lambda _: item, side), pair), (item,))


def replace_word(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """An invented name for a name that stands once on each side, or markup around it."""
    first, second = (Counter(_WORD.findall(side)[1:]) for side in pair)  # any word that comes first has a capital
    shared = [w for w in first if len(w) > 3 and w[0].isupper() and not w.isupper() and first[w] == second[w] == 1]
    if not shared:
        return None
    word = rng.choice(shared)
    name = invented_name(rng) if word[0] not in "AEIOUYH" and rng.random() < 0.6 else word
    item = rng.choice(["{}", "{}", "<b>{}</b>", "<i>{}</i>", "`{}`", '"{}"', "**{}**", "[{}]"]).format(name)
    regex = re.compile(rf"(?<![\w'’-]){re.escape(word)}(?![\w'’-])")
    return _replace_single(pair, regex, regex, lambda: item) if item != word else None


def fill_frame(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """A sentence with copied text in its places, instead of the pair."""
    frame = rng.choice(FRAMES)
    return _fill(rng, (frame[languages[0]], frame[languages[1]])) if all(la in frame for la in languages) else None


def surround(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """The pair with copied text before, behind or around it."""
    template = rng.choice(AROUND)
    templates = (template.replace(": ", " : ") if language == "fr" else template for language in languages)
    before, after = zip(*(t.split("{s}") for t in templates), strict=True)
    filled = _fill(rng, (before[0] + "\0" + after[0], before[1] + "\0" + after[1]))
    sides = (side.replace("\0", text) for side, text in zip(filled.pair, pair, strict=True))
    return Variant((next(sides), next(sides)), filled.copied)


def _fill(rng: random.Random, templates: TextPair) -> Variant:
    """Places of one kind are filled in their order on the left, with the same text on the right."""
    items = [KINDS[kind](rng) for kind in _PLACE.findall(templates[0])]
    sides = []
    for template in templates:
        waiting: dict[str, list[str]] = {}
        for kind, item in zip(_PLACE.findall(templates[0]), items, strict=True):
            waiting.setdefault(kind, []).append(item)
        parts = _PLACE.split(template)  # text and kinds by turns
        parts[1::2] = [waiting[kind].pop(0) for kind in parts[1::2]]
        sides.append("".join(parts))
    return Variant((sides[0], sides[1]), tuple(items))


def in_capitals(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Both sides in capitals, unless there is code in them."""
    return None if any(map(_TECHNICAL.search, pair)) else Variant(_both(str.upper, pair))


def in_small_letters(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Both sides in small letters, mostly without a full stop, unless there is code in them."""
    if any(map(_TECHNICAL.search, pair)):
        return None
    stopless = without_stop(rng, pair, languages) if rng.random() < 0.7 else None
    return Variant(_both(str.lower, pair if stopless is None else stopless.pair))


def without_stop(rng: random.Random, pair: TextPair, languages: tuple[str, str]) -> Variant | None:
    """Both sides without the full stop at their end."""
    if not all(side.endswith(".") and not side.endswith("..") for side in pair):
        return None
    return Variant(_both(lambda side: side[:-1].rstrip(), pair))


def _both(change: Callable[..., str], pair: TextPair, *others: Iterable[re.Pattern[str]]) -> TextPair:
    first, second = (change(*arguments) for arguments in zip(pair, *others, strict=True))
    return first, second


TRANSFORMS: Mapping[Transform, float] = {
    replace_name: 3,
    renumber: 3,
    replace_placeholder: 3,
    replace_word: 2,
    fill_frame: 2,
    surround: 2,
    in_capitals: 1,
    in_small_letters: 2,
    without_stop: 2,
}
"""The transforms, and their shares of the changed pairs."""

_PLACE = re.compile(r"\{(\w+)\}")
with Path(__file__).with_name("frames.tsv").open(encoding="utf-8", newline="") as _lines:
    FRAMES: tuple[Mapping[str, str], ...] = tuple(csv.DictReader(_lines, delimiter="\t", quoting=csv.QUOTE_NONE))
AROUND = (
    "{any}: {s}",
    "{s} {any}",
    "{s} ({any})",
    "({any}) {s}",
    "[{any}] {s}",
    "- {s}",
    "* {s}",
    "{index}. {s}",
    "{index}) {s}",
    "> {s}",
    "{placeholder} - {s}",
    "**{s}**",
    "<b>{s}</b>",
    "<p>{s}</p>",
    "<i>{s}</i>",
    '<a href="{url}">{s}</a>',
    "{s} {url}",
    "{email}: {s}",
    "{s} <br/>",
)
