"""What can be wrong with a config, a text and a target, each a function that finds it."""

from collections.abc import Iterator, Sequence

from dragoman_server.errors import FieldViolation, Reason, UnknownValue
from dragoman_server.registry.model import Model
from dragoman_server.service.calls import TranslateConfig
from dragoman_server.service.options import unknown_piece
from dragoman_server.service.plan import Plan
from dragoman_server.text.segmentation import SegmentedText


def config_violations(config: TranslateConfig, first: Model, last: Model) -> Iterator[FieldViolation]:
    """What is wrong with language codes and enums; `first` reads the text, `last` answers."""
    for field, model in (("source_language_code", first), ("target_language_code", last)):
        code = getattr(config, field)
        if not code:
            description = model.languages.required(is_source=field == "source_language_code")
            yield FieldViolation(field, description, Reason.REQUIRED_FIELD)
        elif fault := model.languages.fault_of(code):
            yield FieldViolation(field, fault, Reason.INVALID_LANGUAGE_CODE)
    for field in ("segmentation", "priority"):
        if isinstance(value := getattr(config, field), UnknownValue):
            yield value.violation(field)


def too_many_inputs(field: str, number: int, most: int) -> FieldViolation:
    """What is wrong with more texts than a call may have."""
    return FieldViolation(field, f"has {number} elements, may have at most {most}", Reason.TOO_MANY_INPUTS)


def target_violations(target_ids: Sequence[int], model: Model, field: str) -> Iterator[FieldViolation]:
    """Where a target that was given has more tokens than the model writes."""
    most = model.manifest.limits.max_target_tokens
    if len(target_ids) > most:
        description = f"has {len(target_ids)} tokens; the model takes at most {most}"
        yield FieldViolation(field, description, Reason.TARGET_TOO_LONG)


def unknown_violations(token_ids: Sequence[int], model: Model, field: str) -> Iterator[FieldViolation]:
    """Where a text was not spelt in the model's vocabulary."""
    if model.tokenizer.unknown_id in token_ids:
        yield unknown_piece(field)


def token_id_violations(token_ids: Sequence[int], model: Model, field: str) -> Iterator[FieldViolation]:
    """Where ids are no target."""
    if not token_ids:
        yield FieldViolation(field, "is empty, must have at least one id", Reason.NO_TARGET_TOKENS)
    size, eos = model.manifest.architecture.vocabulary_size, model.manifest.eos_token_id
    for index, token_id in enumerate(token_ids):
        if token_id >= size:
            description = f"has {token_id} at index {index}, the vocabulary has ids below {size}"
            yield FieldViolation(field, description, Reason.UNKNOWN_TOKEN_ID)
            return
    if eos in token_ids[:-1]:
        index = list(token_ids).index(eos)
        description = f"has end-of-sentence ({eos}) at index {index}, which only the last may be"
        yield FieldViolation(field, description, Reason.TOKENS_AFTER_END)


def over_tokens(text: SegmentedText, plan: Plan, field: str) -> Iterator[FieldViolation]:
    """The first segment that has more tokens than the model reads."""
    most = plan.model.manifest.limits.max_source_tokens
    for source in text.segments:
        num_tokens = len(source.token_ids) + plan.framing.num_specials
        if num_tokens > most:
            yield FieldViolation(
                field,
                f"characters {source.begin} to {source.end} are one segment of {num_tokens} "
                f"tokens; the model takes at most {most}",
                Reason.SEGMENT_TOO_LONG,
            )
            return


def not_one_segment(text: SegmentedText, field: str) -> Iterator[FieldViolation]:
    """Where a text has another number of lines than one."""
    if (num_segments := len(text.segments)) != 1:
        num_lines = num_segments and sum(bool(line.strip()) for line in text.text.splitlines())
        description = f"has {num_lines} lines that are not blank, must have exactly 1"
        yield FieldViolation(field, description, Reason.NOT_ONE_SEGMENT)


def prefix_violations(
    text: SegmentedText, prefix_text_ids: Sequence[int], plan: Plan, path: str
) -> Iterator[FieldViolation]:
    """Where what a translation shall begin with, as `prefix_text_ids`, does not fit the text; `path` is the input's."""
    if not prefix_text_ids:
        return
    field = f"{path}.target_prefix"
    if len(text.segments) != 1:
        description = f"needs a text of exactly 1 segment, this one has {len(text.segments)}"
        yield FieldViolation(field, description, Reason.NOT_ONE_SEGMENT)
        return
    most = plan.max_target_tokens(text.segments[0]) - len(plan.framing.target_prefix) - 1
    if len(prefix_text_ids) > most:
        description = f"has {len(prefix_text_ids)} tokens, may have at most {most}: the target's limit less one"
        yield FieldViolation(field, description, Reason.TARGET_PREFIX_TOO_LONG)


def length_violations(text: SegmentedText, plan: Plan, field: str) -> Iterator[FieldViolation]:
    """Where `max_length_ratio` leaves a segment less than `min_target_tokens`."""
    least = plan.decoding.search.min_target_tokens
    for source in text.segments:
        most = plan.max_target_tokens(source)
        if most < least:
            yield FieldViolation(
                field,
                f"characters {source.begin} to {source.end} may have {most} target tokens by max_length_ratio; "
                f"min_target_tokens is {least}",
                Reason.SEGMENT_TOO_SHORT,
            )
            return
