"""Models as text for a terminal of 80 columns."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from textwrap import wrap
from typing import Final

from dragoman.cli.answers import one_line
from dragoman.models import LanguageGroup, ModelInfo, ModelMemory, ShortlistFacts

_COLUMNS: Final = 80
_GAP: Final = "  "
_UNKNOWN: Final = "-"
_HEADER: Final = ("MODEL", "STATE", "PRECISION", "MEMORY")

# Of the column of languages. A model whose name would leave less has its name on a line of its own.
_LEAST_FOR_LANGUAGES: Final = 20

_LABEL_COLUMNS: Final = 13

# So many that are translated to each other are not listed as pairs.
_MANY_LANGUAGES: Final = 10


def table(models: Sequence[ModelInfo]) -> str:
    """A line for each model, below a header."""
    rows = [_HEADER, *(_row(model) for model in models)]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
    most_for_name = _COLUMNS - _LEAST_FOR_LANGUAGES - sum(widths) - len(_GAP) * len(_HEADER)
    names = [name for name, *_ in rows]
    widths = [max((len(name) for name in names if len(name) <= most_for_name), default=0), *widths]
    num_left = max(_LEAST_FOR_LANGUAGES, _COLUMNS - sum(widths) - len(_GAP) * len(_HEADER))
    last_column = ["LANGUAGES", *(abbreviated(model.languages, num_left) for model in models)]
    lines: list[str] = []
    for (name, *others), last in zip(rows, last_column, strict=True):
        if len(name) > widths[0]:
            lines.append(name)
            name = ""
        cells = [cell.ljust(width) for cell, width in zip([name, *others], widths, strict=True)]
        lines.append(_GAP.join([*cells, last]))
    return "\n".join(lines)


def abbreviated(groups: Sequence[LanguageGroup], num_columns: int) -> str:
    """As many pairs as fit into so many columns, such as "en-fr, fr-en and 38 more"; of many languages their number."""
    if number := _num_any_to_any(groups):
        text = f"any of {number} to any"
        return text if len(text) <= num_columns else _counted(number, "language")
    num_pairs = sum(group.num_pairs for group in groups)
    pairs = chain.from_iterable(group.pairs() for group in groups)
    names = ["-".join(pair) for pair in islice(pairs, num_columns)]
    for num_shown in range(len(names), 0, -1):
        num_left = num_pairs - num_shown
        text = ", ".join(names[:num_shown]) + (f" and {num_left} more" if num_left else "")
        if len(text) <= num_columns:
            return text
    return _counted(num_pairs, "pair") if num_pairs else _UNKNOWN


def language_lines(targets: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each source with its targets; one for all sources that many languages are the targets of.

    Models of 200 languages have 40,000 pairs, which nobody could read.
    """
    by_languages: dict[frozenset[str], list[str]] = {}
    for source in targets:
        by_languages.setdefault(frozenset((source, *targets[source])), []).append(source)
    lines: list[str] = []
    for languages, sources in by_languages.items():
        listed = ", ".join(sorted(languages))
        if len(languages) < _MANY_LANGUAGES:
            lines += (f"{source}: {', '.join(targets[source])}" for source in sources)
        elif len(sources) == len(languages):
            lines.append(f"any of these {len(languages)} to any other: {listed}")
        elif len(sources) == 1:
            lines.append(f"{sources[0]}: {', '.join(targets[sources[0]])}")
        else:
            lines.append(f"{', '.join(sources)}: any other of {listed}")
    return lines


def details(model: ModelInfo) -> str:
    """Lines with all that is known of a model, each with a label."""
    calls = f", {_counted(model.active_calls, 'call')} under way" if model.active_calls else ""
    is_read = model.limits is not None
    values = {
        "model": model.full_name,
        "state": f"{model.state}{calls}",
        "error": one_line(model.error),
        "default": _defaults(model),
        "languages": _pairs(model.languages),
        "precision": model.precision,
        "device": f"{model.device} ({model.execution_provider})" if model.execution_provider else model.device,
        "limits": _limits(model),
        "decoding": _decoding(model),
        "vocabulary": _vocabulary(model),
        "parity": _parity(model),
        "determinism": model.determinism.value.replace("_", " ") if is_read else "",
        "attention": ("yes" if model.has_attention else "no") if is_read else "",
        "memory": _memory(model),
        "loaded": "" if model.load_time is None else f"{model.load_time:%Y-%m-%d %H:%M:%S} UTC",
    }
    return "\n".join(_labelled(label, value) for label, value in values.items() if value)


def _labelled(label: str, text: str) -> str:
    width = _COLUMNS - _LABEL_COLUMNS
    first, *others = wrap(text, width, break_long_words=False, break_on_hyphens=False)
    indent = " " * _LABEL_COLUMNS
    return "\n".join([f"{label:<{_LABEL_COLUMNS}}{first}", *(f"{indent}{line}" for line in others)])


def _row(model: ModelInfo) -> tuple[str, ...]:
    memory = _UNKNOWN if model.memory is None else _size(_total(model.memory))
    return model.full_name, model.state, model.precision or _UNKNOWN, memory


def _pairs(groups: Sequence[LanguageGroup]) -> str:
    """All pairs, those of a group of several as its sources and its targets."""
    if all(len(group.sources) == len(group.targets) == 1 for group in groups):
        return ", ".join("-".join(pair) for group in groups for pair in group.pairs())
    if number := _num_any_to_any(groups):
        return f"any of these {number} to any other: {', '.join(sorted(groups[0].sources))}"
    return "; ".join(f"from {', '.join(group.sources)} to {', '.join(group.targets)}" for group in groups)


def _num_any_to_any(groups: Sequence[LanguageGroup]) -> int:
    """Of a model that translates between any two of many languages, how many; else 0."""
    if len(groups) != 1 or {*groups[0].sources} != {*groups[0].targets}:
        return 0
    number = len(groups[0].sources)
    return number if number >= _MANY_LANGUAGES else 0


def _defaults(model: ModelInfo) -> str:
    parts = ["of its name"] if model.is_default_version else []
    if _num_any_to_any(model.default_for) and model.default_for == model.languages:
        parts.append("of calls without a model")
    elif model.default_for:
        parts.append(f"of calls without a model: {_pairs(model.default_for)}")
    return "; ".join(parts)


def _limits(model: ModelInfo) -> str:
    limits = model.limits
    if limits is None:
        return ""
    return (
        f"{limits.max_source_tokens} source tokens, {limits.max_target_tokens} target tokens, packed segments of "
        f"{limits.segment_tokens} tokens, beam size {limits.max_beam_size}"
    )


def _decoding(model: ModelInfo) -> str:
    defaults = model.defaults
    if defaults is None:
        return ""
    vocabulary = "" if defaults.vocabulary in (None, "full") else f", vocabulary: {defaults.vocabulary}"
    return f"beam size {defaults.beam_size}, length penalty {defaults.length_penalty:g}{vocabulary}"


def _vocabulary(model: ModelInfo) -> str:
    """The lists of tokens, and how translations over them compare."""
    lists = model.vocabulary_lists
    if lists is None:
        return ""
    parts = [f"lists of languages: {', '.join(lists.languages)}"] if lists.languages else []
    return "; ".join([*parts, *map(_shortlist, lists.shortlists)])


def _shortlist(facts: ShortlistFacts) -> str:
    bleu = "" if facts.bleu_difference is None else f" (BLEU {facts.bleu_difference:+.2f})"
    return (
        f"shortlists {facts.source}-{facts.target} of {facts.mean_length:.0f} tokens (95 in 100 of at most "
        f"{facts.p95_length:.0f}): {facts.share_identical:.1%} of {facts.num_sentences} sentences as with all "
        f"tokens{bleu}"
    )


def _parity(model: ModelInfo) -> str:
    parity = model.parity
    if parity is None:
        return ""
    replayed = parity.replayed_logprob_difference
    now = "" if replayed is None else f", {replayed:.2g} when it was loaded"
    return (
        f"log-probabilities within {parity.max_logprob_difference:.2g} of the source{now} (tolerance "
        f"{parity.logprob_tolerance:g}); the same tokens in {parity.token_agreement:.1%} of {parity.num_sentences} "
        "sentences"
    )


def _memory(model: ModelInfo) -> str:
    memory = model.memory
    if memory is None:
        return ""
    return (
        f"weights {_size(memory.weights_bytes)}, keys and values {_size(memory.kv_cache_bytes)} of at most "
        f"{_size(memory.max_kv_cache_bytes)}"
    )


def _total(memory: ModelMemory) -> int:
    return memory.weights_bytes + memory.kv_cache_bytes


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _size(num_bytes: int) -> str:
    """In MiB, rounded up, or in GiB."""
    return f"{math.ceil(num_bytes / 2**20)} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"
