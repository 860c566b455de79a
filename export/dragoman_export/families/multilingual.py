"""The languages of models that translate between any two of many."""

from collections import Counter
from collections.abc import Mapping

from dragoman_export.languages import aliases, parse_pair, standard_tags
from dragoman_export.stated import Stated
from dragoman_server.bundle.languages import DirectionGroup, Languages, LanguageTable, folded


def any_to_any(language_ids: Mapping[str, int], readings: Mapping[str, str]) -> LanguageTable:
    """The table of a model that translates between any two of its languages; their own codes are aliases of the tags.

    Args:
        language_ids: ids of the language tokens by the model's own codes.
        readings: of codes that are not to be read as BCP 47 tags, such as `en_XX`: the tags that they mean.
    """
    numbers = Counter(readings.get(code, code) for code in language_ids)
    read = {code: tag if numbers[tag := readings.get(code, code)] == 1 else code for code in language_ids}
    tags = standard_tags(read.values())
    token_ids: dict[str, tuple[int, ...]] = {tags[read[code]]: (i,) for code, i in language_ids.items()}
    names = aliases(tags)
    taken = {folded(name) for name in (*token_ids, *names)}
    names |= {code: tags[reading] for code, reading in read.items() if folded(code) not in taken}
    return LanguageTable((DirectionGroup(tuple(token_ids), tuple(token_ids)),), token_ids, names)


def narrowed(table: LanguageTable, stated: Stated, target: str | None = None) -> LanguageTable:
    """The part of a table that the user stated, and of one target language, if the model has but one.

    Raises:
        ValueError: a stated language is none of the model's.
    """
    ((sources, targets),) = ((group.sources, group.targets) for group in table.directions)
    if target is not None:
        targets = (target,)
    if stated.pair is not None:
        source, wanted = parse_pair(stated.pair, table)
        sources, found = (own_language(table, source, "--pair"),), own_language(table, wanted, "--pair")
        if found not in targets:
            raise ValueError(f"--pair {stated.pair}: the model translates to {', '.join(targets)} alone")
        targets = (found,)
    elif stated.source is not None:
        sources = (own_language(table, stated.source, "--from"),)
    kept = {*sources, *targets}
    return LanguageTable(
        (DirectionGroup(sources, targets),),
        {tag: ids for tag, ids in table.token_ids.items() if tag in kept},
        {name: tag for name, tag in table.aliases.items() if tag in kept},
    )


def own_language(table: LanguageTable, code: str, option: str) -> str:
    """A language of a model by any of its names.

    Raises:
        ValueError: it is none of the model's.
    """
    alone = LanguageTable(tuple(DirectionGroup((tag,), (tag,)) for tag in table.token_ids), aliases=table.aliases)
    direction = Languages(alone).find(code, code)
    if direction is None:
        raise ValueError(f"{option} {code}: the model has no such language")
    return direction.source


def language_of(table: LanguageTable, token_id: int | None) -> str | None:
    """The language whose token has this id."""
    return next((tag for tag, ids in table.token_ids.items() if ids == (token_id,)), None)
