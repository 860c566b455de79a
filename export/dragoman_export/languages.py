"""Language codes: what models and users write, and the BCP 47 tags that bundles have."""

from collections.abc import Collection, Iterable, Iterator
from itertools import chain, count

from langcodes import Language, standardize_tag, tag_is_valid
from langcodes.tag_parser import LanguageTagError

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

    Where several codes mean one language, the one that is most like the tag has it: `zho` before `cmn`, `pt_BR` before
    `pt_br`. The others say in a private-use subtag which they are: `zh-x-cmn`, `pt-BR-x-pt-br`. A code that is not of
    BCP 47's form stays as it is.
    """
    tags: dict[str, str] = {}
    for code in sorted(codes, key=_distance):
        tag = _tag_or_code(code)
        private = f"{tag}-x-{_hyphens(code).lower()}"
        candidates = chain((tag, private), (f"{private}-{number}" for number in count(2)))
        tags[code] = next(candidate for candidate in candidates if candidate not in tags.values())
    return tags


def _tag_or_code(code: str) -> str:
    try:
        return standardize_tag(code, macro=True)
    except LanguageTagError:
        return code


def _distance(code: str) -> tuple[bool, bool, str]:
    try:
        is_part_of_macrolanguage = standardize_tag(code) != standardize_tag(code, macro=True)
        return is_part_of_macrolanguage, not _is_cased(code), code
    except LanguageTagError:
        return False, False, code


def parse_pair(text: str, directions: Collection[Pair] = ()) -> Pair:
    """The source and the target of `en-fr`, `pt-BR-en` or `pt-BR:en`.

    Codes are separated by a colon, or by a hyphen. Of several hyphens it is the one with a language on both sides. If
    that is true of more than one, it is the one that gives a direction of the model, or one where both codes are
    written in BCP 47's letter case, as `en` and `pt-BR` are in `en-pt-BR`.

    Args:
        text: what a user wrote.
        directions: of the model, if it is known.

    Returns:
        The direction as the model has it, or two BCP 47 tags.

    Raises:
        ValueError: there are not two languages, or several ways to read them.
    """
    splits = list(_splits(text, ":" if ":" in text else "-"))
    for split in splits:
        if split in directions:
            return split
    pairs = {
        split: (standard_tag(split[0]), standard_tag(split[1])) for split in splits if all(map(tag_is_valid, split))
    }
    if not pairs:
        raise ValueError(
            f"{text!r:.80} is not of the form SOURCE-TARGET, two BCP 47 language tags such as en-fr or pt-BR-en"
        )
    own = {(_tag_or_code(source), _tag_or_code(target)): (source, target) for source, target in directions}
    readings = (
        {own[pair] for pair in pairs.values() if pair in own}
        or {pair for split, pair in pairs.items() if all(map(_is_cased, split))}
        or set(pairs.values())
    )
    if len(readings) > 1:
        choices = " or ".join(":".join(pair) for pair in sorted(readings))
        raise ValueError(f"{text!r} can be read in several ways; write {choices}")
    return readings.pop()


def split_pair(text: str, form: str, directions: Collection[Pair] = ()) -> tuple[Pair, str]:
    """The languages before the equals sign of `en-fr=pairs.tsv`, and the rest after it.

    Args:
        text: what a user wrote.
        form: what the user should have written, for the error.
        directions: of the model, if it is known.

    Raises:
        ValueError: there is no rest, or the languages are none for `parse_pair`.
    """
    pair, _, rest = text.partition("=")
    if not rest:
        raise ValueError(f"{text!r} is not of the form {form}")
    return parse_pair(pair, directions), rest


def _splits(text: str, separator: str) -> Iterator[Pair]:
    for position, character in enumerate(text):
        if character == separator:
            yield text[:position], text[position + 1 :]


def _is_cased(code: str) -> bool:
    """Whether a code's letters are small and capital as BCP 47 writes them."""
    return Language.get(code, normalize=False).to_tag() == _hyphens(code)


def _hyphens(code: str) -> str:
    return code.replace("_", "-")
