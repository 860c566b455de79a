"""Language codes of models and users, and the BCP 47 tags of bundles."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count

from langcodes import Language, standardize_tag, tag_is_valid
from langcodes.data_dicts import LIKELY_SUBTAGS, MACROLANGUAGES, NORMALIZED_MACROLANGUAGES
from langcodes.tag_parser import LanguageTagError

from dragoman_server.bundle.languages import LanguageTable, folded

Pair = tuple[str, str]


def standard_tag(code: str) -> str:
    """The shortest BCP 47 tag of a language: "fra" -> "fr", "cmn_Hans" -> "zh-Hans", "pt_br" -> "pt-BR".

    Raises:
        ValueError: no such language, script or region is registered.
    """
    if not tag_is_valid(code):
        raise ValueError(f'{code!r:.80} is not a BCP 47 language tag, such as "en" or "pt-BR"')
    return standardize_tag(code, macro=True)


def standard_tags(codes: Iterable[str]) -> dict[str, str]:
    """The tags of all target languages of a model, by its own codes; no two have the same tag.

    A script that goes without saying is left out: `fra_Latn` is `fr`, but `zho_Hans` beside `zho_Hant` is `zh-Hans`.

    Where several codes mean one language, the code most like the tag gets it: `zho` before `cmn`, `pt_BR` before
    `pt_br`. The others get a tag of the narrower language, `cmn`, or a private-use subtag with their code:
    `pt-BR-x-pt-br`. A code that does not have BCP 47's form stays as it is.
    """
    tags: dict[str, str] = {}
    for code in sorted(codes, key=_distance):
        tag = _tag_or_code(code)
        private = f"{tag}-x-{_hyphens(code).lower()}"
        narrower = _tag_or_code(code, macro=False)
        candidates = chain((tag, narrower, private), (f"{private}-{number}" for number in count(2)))
        tags[code] = next(candidate for candidate in candidates if candidate not in tags.values())
    return _without_needless_scripts(tags)


def aliases(tags: Mapping[str, str], others: Iterable[str] = ()) -> dict[str, str]:
    """Other codes by which callers may name a model's languages beside the tags, where they are unambiguous.

    They are the model's own codes, and tags that mean one of its languages and do not begin with its tag: `zh` and
    `zh-TW` where the model has `zh-Hans` and `zh-Hant`, `cmn-Hans` for `zh-Hans`, `no` for `nb`.

    Args:
        tags: by the model's own codes, as `standard_tags` gives them.
        others: tags of the model that these codes must not be taken for.
    """
    taken = {folded(tag) for tag in (*tags.values(), *others)}
    found = {}
    for code, tag in chain(tags.items(), _other_names(tags.values())):
        if folded(code) not in taken:
            taken.add(folded(code))
            found[code] = tag
    return found


def _without_needless_scripts(tags: Mapping[str, str]) -> dict[str, str]:
    without = {code: _divided(tag) for code, tag in tags.items()}
    numbers = Counter(short for _, short in without.values())
    taken = {*tags.values()}
    return {
        code: short
        if script and numbers[short] == 1 and short not in taken and script in _usual_scripts(short, script)
        else tags[code]
        for code, (script, short) in without.items()
    }


def _divided(tag: str) -> tuple[str, str]:
    """The script of a tag, or nothing, and the tag without it."""
    language, *others = tag.split("-")
    has_script = bool(others) and len(others[0]) == 4 and others[0].isalpha() and "x" not in others
    return (others[0], "-".join([language, *others[1:]])) if has_script else ("", tag)


def _usual_scripts(tag: str, default: str) -> tuple[str, ...]:
    """The script of texts in a language, and its other names; `default` where it is not known."""
    likely = LIKELY_SUBTAGS.get(tag)
    script = likely.split("-")[1] if likely else default
    return ("Kore", "Hang") if script == "Kore" else (script,)


def _other_names(tags: Iterable[str]) -> Iterator[Pair]:
    own = {*tags}
    by_language: dict[str, dict[str, str]] = {}  # language -> script -> tag, of tags without a region
    for tag in sorted(own):
        script, short = _divided(tag)
        if "-" not in short:
            by_language.setdefault(short, {})[script] = tag
    for language, scripts in by_language.items():
        usual = next((scripts[s] for s in _usual_scripts(language, "") if s in scripts), "")
        bare = scripts.get("") or usual or (next(iter(scripts.values())) if len(scripts) == 1 else "")
        if bare:
            yield language, bare
        for narrower, wider in NORMALIZED_MACROLANGUAGES.items():
            if wider == language:
                yield from ((f"{narrower}-{script}", tag) for script, tag in scripts.items() if script)
                if bare:
                    yield narrower, bare
        for place, likely in LIKELY_SUBTAGS.items():
            found, _, region = place.partition("-")
            script = likely.split("-")[1]
            if found == language and region.isupper() and scripts.get(script, bare) != bare:
                yield place, scripts[script]
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for language, scripts in by_language.items():
        parts[MACROLANGUAGES.get(language, "")] |= {*scripts.values()}
    yield from ((wider, next(iter(tags))) for wider, tags in parts.items() if wider and len(tags) == 1)
    for name, other in (("no", "nb"), ("nb", "no"), ("tl", "fil")):
        if other in own:
            yield name, other


def _tag_or_code(code: str, *, macro: bool = True) -> str:
    try:
        return standardize_tag(code, macro=macro)
    except LanguageTagError:
        return code


def _distance(code: str) -> tuple[bool, bool, str]:
    try:
        is_part_of_macrolanguage = standardize_tag(code) != standardize_tag(code, macro=True)
        return is_part_of_macrolanguage, not _is_cased(code), code
    except LanguageTagError:
        return False, False, code


def parse_pair(text: str, table: LanguageTable | None = None) -> Pair:
    """The source and the target of `en-fr`, `pt-BR-en` or `pt-BR:en`.

    Codes are separated by a colon, or by a hyphen. Of several hyphens, the separator is the one with a language on both
    sides. If several have, it is the one that gives a direction of the model, or else the one where both codes are
    written in BCP 47's letter case, as `en` and `pt-BR` are in `en-pt-BR`.

    Args:
        text: as a user wrote it.
        table: of the model, if it is known.

    Returns:
        The direction as the model has it, or two BCP 47 tags.

    Raises:
        ValueError: there are not two languages, or several ways to read them.
    """
    splits = list(_splits(text, ":" if ":" in text else "-"))
    for split in splits:
        if table is not None and split in table:
            return split
    pairs = {
        split: (standard_tag(split[0]), standard_tag(split[1])) for split in splits if all(map(tag_is_valid, split))
    }
    if not pairs:
        raise ValueError(
            f"{text!r:.80} is not of the form SOURCE-TARGET, two BCP 47 language tags such as en-fr or pt-BR-en"
        )
    readings = (
        _own_pairs(pairs.values(), table)
        or {pair for split, pair in pairs.items() if all(map(_is_cased, split))}
        or set(pairs.values())
    )
    if len(readings) > 1:
        choices = " or ".join(":".join(pair) for pair in sorted(readings))
        raise ValueError(f"{text!r} can be read in several ways; write {choices}")
    return readings.pop()


def _own_pairs(pairs: Iterable[Pair], table: LanguageTable | None) -> set[Pair]:
    """The directions of a model among pairs of tags, in the model's own codes."""
    if table is None:
        return set()
    own = {_tag_or_code(code): code for code in table.sources | table.targets}
    in_codes = [(own.get(source, source), own.get(target, target)) for source, target in pairs]
    return {pair for pair in in_codes if pair in table}


def parse_pair_and_value(text: str, value_name: str, table: LanguageTable | None = None) -> tuple[Pair, str]:
    """The pair, as `parse_pair` reads it, and the value of `en-fr=VALUE`.

    Raises:
        ValueError: the text has another form; the message calls the value `value_name`.
    """
    pair, _, value = text.partition("=")
    if not value:
        raise ValueError(f"{text!r} is not of the form SOURCE-TARGET={value_name}")
    return parse_pair(pair, table), value


def _splits(text: str, separator: str) -> Iterator[Pair]:
    for position, character in enumerate(text):
        if character == separator:
            yield text[:position], text[position + 1 :]


def _is_cased(code: str) -> bool:
    """Whether a code is written in BCP 47's letter case."""
    return Language.get(code, normalize=False).to_tag() == _hyphens(code)


def _hyphens(code: str) -> str:
    return code.replace("_", "-")
