"""From the decoding options of a call to those of the engine: defaults, limits, and everything that is wrong."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from dragoman_server.errors import FieldViolation, Reason, UnknownValue
from dragoman_server.service.calls import DecodingFields
from dragoman_server.text.tokenizer import TextCodec

MAX_LENGTH_RATIO = 1000.0
MAX_SUPPRESSED_WORDS = 64
MAX_SUPPRESSED_TOKENS = 16  # of one word
MAX_SUPPRESSED_CHARACTERS = 256  # of one word: what is longer is not even tokenized

# Those that are the engine's under the same name, and that have the engine's default where absent.
_SEARCH_FIELDS = ("num_hypotheses", "patience", "temperature", "top_k", "top_p", "seed")
# Those that have the model's.
_MODEL_FIELDS = ("length_penalty", "min_target_tokens", "repetition_penalty", "no_repeat_ngram_size")
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "seed")
_STOPPINGS = {
    False: EarlyStopping.HEURISTIC,
    True: EarlyStopping.FIRST,
    "never": EarlyStopping.NEVER,
    "narrowing": EarlyStopping.NARROWING,
}  # by what a manifest says

MAX_GROWTH = 3
_MAX_GROWTH_OF_BYTES = 9  # a letter of English is one byte, of Hindi or Thai three


@dataclass(frozen=True, slots=True)
class TargetLimit:
    """How many tokens the target of a segment may have, end-of-sentence included.

    `max_growth` counts where a caller sets no limit: no translation between our languages has so many times the tokens
    of its source.
    """

    model_limit: int
    max_target_tokens: int | None = None
    max_length_ratio: float | None = None
    min_target_tokens: int = 0
    max_growth: int = MAX_GROWTH

    def of(self, num_source_tokens: int) -> int:
        """The limit for a source of this many tokens, at least 1."""
        limits = [self.model_limit]
        if self.max_target_tokens is not None:
            limits.append(self.max_target_tokens)
        if self.max_length_ratio is not None:
            limits.append(math.ceil(self.max_length_ratio * num_source_tokens))
        if len(limits) == 1:
            # A model that has run into a loop goes on to the limit.
            limits.append(max(self.max_growth * num_source_tokens + 32, self.min_target_tokens + 1))
        return min(limits)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Checked options."""

    search: SearchOptions
    limit: TargetLimit


def resolve(
    fields: DecodingFields, manifest: Manifest, tokenizer: TextCodec, max_rows: int
) -> tuple[Decoding, list[FieldViolation]]:
    """The options with the model's defaults in place of what is absent, and all that is wrong with them.

    Args:
        fields: as the caller gave them.
        manifest: of the model.
        tokenizer: of the model.
        max_rows: rows that are decoded together at most.

    Returns:
        Options, which can be used if there are no violations, whose fields are relative to the options.
    """
    suppressed, violations = _suppressed(fields, tokenizer)
    defaults = manifest.generation
    of_model = {name: getattr(defaults, name) for name in _MODEL_FIELDS}
    if fields.max_target_tokens is not None:
        # What a call asks for goes before what it does not mention.
        of_model["min_target_tokens"] = max(min(defaults.min_target_tokens, fields.max_target_tokens), 0)
    names = (*_SEARCH_FIELDS, *_MODEL_FIELDS)
    given = of_model | {name: value for name in names if (value := getattr(fields, name)) is not None}
    is_sampling = any(getattr(fields, name) is not None for name in _SAMPLING_FIELDS)
    default_beam_size = 1 if is_sampling else defaults.beam_size
    stopping = fields.early_stopping
    search = SearchOptions(
        **given,
        is_sampling=is_sampling,
        beam_size=default_beam_size if fields.beam_size is None else fields.beam_size,
        early_stopping=stopping if isinstance(stopping, EarlyStopping) else _STOPPINGS[defaults.early_stopping],
        suppressed=suppressed,
    )
    limit = TargetLimit(
        manifest.limits.max_target_tokens,
        fields.max_target_tokens,
        fields.max_length_ratio,
        search.min_target_tokens,
        _MAX_GROWTH_OF_BYTES if manifest.tokenizer == "bytes" else MAX_GROWTH,
    )
    violations += _limit_violations(limit)
    violations += [_out_of_range(name, description) for name, description in search.faults(max_rows)]
    if isinstance(stopping, UnknownValue):
        violations.append(stopping.violation("early_stopping"))
    if isinstance(fields.vocabulary, UnknownValue):
        violations.append(fields.vocabulary.violation("vocabulary"))
    return Decoding(search, limit), violations


def unknown_piece(field: str) -> FieldViolation:
    """The violation of a text that must be spelt in the tokens of the target."""
    return FieldViolation(field, "has characters that the model's vocabulary cannot spell", Reason.UNKNOWN_PIECE)


def _limit_violations(limit: TargetLimit) -> Iterator[FieldViolation]:
    most = limit.model_limit
    if limit.max_target_tokens is not None and not 1 <= limit.max_target_tokens <= most:
        yield _out_of_range("max_target_tokens", f"is {limit.max_target_tokens}, must be from 1 to {most}")
    elif limit.max_target_tokens is not None:
        most = limit.max_target_tokens
    if limit.min_target_tokens > most:
        name = "max_target_tokens" if limit.max_target_tokens == most else "the model's limit"
        yield _out_of_range("min_target_tokens", f"is {limit.min_target_tokens}, must be at most {most}: {name}")
    ratio = limit.max_length_ratio
    if ratio is not None and not 0.0 < ratio <= MAX_LENGTH_RATIO:  # also where it is NaN
        yield _out_of_range("max_length_ratio", f"is {ratio:g}, must be above 0 and at most {MAX_LENGTH_RATIO:g}")


def _suppressed(
    fields: DecodingFields, tokenizer: TextCodec
) -> tuple[tuple[tuple[int, ...], ...], list[FieldViolation]]:
    words = fields.suppressed_words
    if len(words) > MAX_SUPPRESSED_WORDS:
        description = f"has {len(words)} elements, may have at most {MAX_SUPPRESSED_WORDS}"
        return (), [FieldViolation("suppressed_words", description, Reason.TOO_MANY_SUPPRESSED_WORDS)]
    suppressed: list[tuple[int, ...]] = []
    violations: list[FieldViolation] = []
    for index, word in enumerate(words):
        field = f"suppressed_words[{index}]"
        if len(word) > MAX_SUPPRESSED_CHARACTERS:
            description = f"has {len(word)} characters, may have at most {MAX_SUPPRESSED_CHARACTERS}"
            violations.append(FieldViolation(field, description, Reason.SUPPRESSED_WORD_TOO_LONG))
            continue
        token_ids = tuple(tokenizer.encode_target(word))
        if not token_ids:
            violations.append(
                FieldViolation(field, "has no tokens, must have at least 1", Reason.SUPPRESSED_WORD_EMPTY)
            )
        elif len(token_ids) > MAX_SUPPRESSED_TOKENS:
            description = f"has {len(token_ids)} tokens, may have at most {MAX_SUPPRESSED_TOKENS}"
            violations.append(FieldViolation(field, description, Reason.SUPPRESSED_WORD_TOO_LONG))
        elif tokenizer.unknown_id in token_ids:
            violations.append(unknown_piece(field))
        else:
            suppressed.append(token_ids)
    return tuple(suppressed), violations


def _out_of_range(name: str, description: str) -> FieldViolation:
    return FieldViolation(name, description, Reason.OUT_OF_RANGE)
