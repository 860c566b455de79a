"""The languages of models that are told what to do by the beginning of their source: T5's tasks, MADLAD-400's tags."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dragoman_export.families.huggingface import CONFIG_FILE
from dragoman_export.families.multilingual import any_to_any, narrowed
from dragoman_export.families.spiece import Bytes, Spiece
from dragoman_export.languages import Pair, parse_pair, standard_tag
from dragoman_export.stated import ANY_PAIR, NotStatedError, Stated
from dragoman_server.bundle.framing import FramingTemplate, Part
from dragoman_server.bundle.languages import DirectionGroup, LanguageTable

_TASK = re.compile(r"translation_([A-Za-z_-]+)_to_([A-Za-z_-]+)")

_SOURCE: Part = "source"
_TARGET: Part = "target"

Ids = tuple[int, ...]


def languages_and_framing(
    config: Mapping[str, Any], tokenizer: Spiece | Bytes, stated: Stated, eos_token_id: int
) -> tuple[LanguageTable, FramingTemplate]:
    """The languages of a model, and what its sources begin with.

    MADLAD-400 has tokens of its target languages. T5 v1.0 names its directions in `task_specific_params`, with what
    stands before a text. Of other models the user states the pair and, if there is one, the prefix.

    Raises:
        NotStatedError: the model has none and the user states none.
        ValueError: these do not go together.
    """
    if isinstance(tokenizer, Spiece) and tokenizer.language_ids:
        if stated.source_prefix is not None:
            raise ValueError(
                f"the model has tokens for its {len(tokenizer.language_ids)} target languages, which stand where "
                "--source-prefix would"
            )
        table = narrowed(any_to_any(tokenizer.language_ids, {}), stated)
        return table, FramingTemplate((*tokenizer.tag_prefix, "target"), (eos_token_id,), ())
    prefixes = _prefixes(_tasks(config), stated)
    return _framed({pair: tokenizer.prefix_ids(prefix) for pair, prefix in prefixes.items()}, eos_token_id)


def _tasks(config: Mapping[str, Any]) -> dict[Pair, str]:
    """The prefixes of a configuration by direction. A task that translates between no two languages is left out."""
    tasks = config.get("task_specific_params") or {}
    if not isinstance(tasks, dict):
        raise ValueError(f"{CONFIG_FILE}: task_specific_params is {tasks!r:.80}, must be an object")
    prefixes = {}
    for name, values in tasks.items():
        found = _TASK.fullmatch(name)
        try:
            pair = (standard_tag(found[1]), standard_tag(found[2])) if found else None
        except ValueError:
            continue
        if pair is None:
            continue
        prefix = values.get("prefix", "") if isinstance(values, dict) else None
        if not isinstance(prefix, str):
            raise ValueError(f"{CONFIG_FILE}: task_specific_params has {values!r:.80} for {name}, which has no prefix")
        prefixes[pair] = prefix
    return prefixes


def _prefixes(tasks: Mapping[Pair, str], stated: Stated) -> dict[Pair, str]:
    """The directions that the bundle shall have, with their prefixes."""
    if stated.source_prefix is not None:
        if stated.pair is None:
            raise ValueError("--source-prefix is of one pair of languages: give it with --pair, such as en-fr")
        return {parse_pair(stated.pair): stated.source_prefix}
    if not tasks:
        if stated.pair is None:
            raise NotStatedError(
                "the model has no languages of its own: give its source and its target with --pair, such as en-fr, and "
                "with --source-prefix what stood before the texts that it was trained on, if anything did",
                ANY_PAIR,
            )
        return {parse_pair(stated.pair): ""}
    kept = dict(tasks)
    if stated.pair is not None:
        pair = parse_pair(stated.pair)
        kept = {pair: tasks[pair]} if pair in tasks else {}
    elif stated.source is not None:
        source = standard_tag(stated.source)
        kept = {pair: prefix for pair, prefix in tasks.items() if pair[0] == source}
    if not kept:
        option = f"--pair {stated.pair}" if stated.pair is not None else f"--from {stated.source}"
        names = ", ".join(map("-".join, tasks))
        raise ValueError(
            f"{option}: the model has prefixes for {names} in {CONFIG_FILE}; give another pair together with its own "
            "by --source-prefix, which may be empty"
        )
    return kept


def _framed(prefixes: Mapping[Pair, Ids], eos_token_id: int) -> tuple[LanguageTable, FramingTemplate]:
    """The table of these directions; what their prefixes do not have in common are the ids of a language.

    Raises:
        ValueError: the prefixes depend on both languages, or are the same for several.
    """
    if len(set(prefixes.values())) == 1:
        (prefix,) = set(prefixes.values())
        return LanguageTable(_groups(prefixes)), FramingTemplate(prefix, (eos_token_id,), ())
    by_target, by_source = (_by_language(prefixes, place) for place in (1, 0))
    by_code, part = (by_target, _TARGET) if by_target else (by_source, _SOURCE)
    if not by_code:
        names = ", ".join(map("-".join, prefixes))
        raise ValueError(f"{CONFIG_FILE}: the prefixes of {names} are not by one language each: choose one with --pair")
    head, tail = _in_common([*by_code.values()])
    if not head + tail:
        raise ValueError(f"{CONFIG_FILE}: the prefixes have nothing in common: choose one with --pair")
    token_ids = {code: ids[len(head) : len(ids) - len(tail)] for code, ids in by_code.items()}
    return LanguageTable(_groups(prefixes), token_ids), FramingTemplate((*head, part, *tail), (eos_token_id,), ())


def _groups(pairs: Iterable[Pair]) -> tuple[DirectionGroup, ...]:
    """The directions by their sources."""
    targets: dict[str, list[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, []).append(target)
    return tuple(DirectionGroup((source,), tuple(codes)) for source, codes in targets.items())


def _by_language(prefixes: Mapping[Pair, Ids], place: int) -> dict[str, Ids]:
    """The prefixes by one language of each pair, if they depend on it alone and all differ, or nothing."""
    by_code: dict[str, Ids] = {}
    depend = all(by_code.setdefault(pair[place], ids) == ids for pair, ids in prefixes.items())
    return by_code if depend and len(set(by_code.values())) == len(by_code) else {}


def _in_common(sequences: Sequence[Ids]) -> tuple[Ids, Ids]:
    """What all begin with and what all end with, so that every one has something left between."""
    num_left = min(map(len, sequences)) - 1
    num_head = _num_equal(sequences, num_left)
    num_tail = _num_equal([ids[::-1] for ids in sequences], num_left - num_head)
    first = sequences[0]
    return first[:num_head], first[len(first) - num_tail :]


def _num_equal(sequences: Sequence[Ids], most: int) -> int:
    """How many ids all sequences begin with, at most so many."""
    number = 0
    while number < most and len({ids[number] for ids in sequences}) == 1:
        number += 1
    return number
