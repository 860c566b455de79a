"""The languages of Marian models of any layout: from tags in the vocabulary, from the folder, from the user."""

import re
from collections.abc import Mapping

from dragoman_export.languages import aliases, parse_pair, standard_tag, standard_tags
from dragoman_export.stated import ANY_PAIR, ANY_SOURCE, NotStatedError, Stated
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import DirectionGroup, LanguageTable
from dragoman_server.text.tokenizer import target_language

_NONE_NAMED = "no file of the model names its languages"
# The Tatoeba Challenge's names of groups: `cat_oci_spa`, `deu+eng`.
_GROUP = re.compile(r"[a-z]{3}(?:[_+][a-z]{3})+")


def marian_languages(
    vocabulary: Mapping[str, int],
    named: tuple[str | None, str | None],
    origin: str | None,
    stated: Stated,
    eos_token_id: int,
) -> tuple[LanguageTable, FramingTemplate]:
    """The languages as BCP 47 tags, and their framing: the token of the target, if it has one, precedes the source.

    Args:
        vocabulary: of the source, whose entries such as `>>fra<<` are tokens of target languages.
        named: source and target as the folder names them; a source may be a group such as `cat_oci_spa`.
        origin: the file where it names them; None in layouts that have no names of languages.
        stated: languages, as far as the user stated them. Several sources are separated by commas.
        eos_token_id: of the model.

    Raises:
        NotStatedError: no languages are known.
        ValueError: a language is not known, or stated in a way that is not for such a model.
    """
    tokens = sorted((token_id, code) for piece, token_id in vocabulary.items() if (code := target_language(piece)))
    if tokens:
        if stated.pair is not None:
            raise ValueError(
                f"the model has {len(tokens)} target languages, chosen by tokens such as >>{tokens[0][1]}<<: give the "
                "source language with --from instead of --pair"
            )
        sources = _stated(stated.source) if stated.source else _tags_of(named[0])
        if not sources:
            missing = f"there is no source_lang that is a language in {origin}" if origin else _NONE_NAMED
            raise NotStatedError(f"{missing}: give the source language with --from", ANY_SOURCE)
        tags = standard_tags(code for _, code in tokens)
        token_ids: dict[str, tuple[int, ...]] = {tags[code]: (token_id,) for token_id, code in tokens}
        group = DirectionGroup(sources, tuple(token_ids))
        table = LanguageTable((group,), token_ids, aliases(tags, sources))
        return table, FramingTemplate(("target",), (eos_token_id,), ())
    if stated.source is not None:
        raise ValueError("the model has one target language: give both languages with --pair instead of --from")
    sources, targets = _tags_of(named[0]), _tags_of(named[1])
    if stated.pair is not None:
        *others, last = stated.pair.split(",")
        source, target = parse_pair(last)
        sources, targets = tuple(dict.fromkeys((*map(standard_tag, others), source))), (target,)
    if not sources or len(targets) != 1:
        missing = f"there are no source_lang and target_lang that are languages in {origin}" if origin else _NONE_NAMED
        raise NotStatedError(f"{missing}: give them with --pair, such as en-fr", ANY_PAIR)
    return LanguageTable((DirectionGroup(sources, targets),), {}, {}), FramingTemplate((), (eos_token_id,), ())


def _stated(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(standard_tag, text.split(","))))


def _tags_of(code: str | None) -> tuple[str, ...]:
    """The tags of a language, or of each of a group; none where there is no language, such as ROMANCE."""
    parts = re.split(r"[_+]", code) if code and _GROUP.fullmatch(code) else [code or ""]
    try:
        return tuple(dict.fromkeys(map(standard_tag, parts)))
    except ValueError:
        return ()
