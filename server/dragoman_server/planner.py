"""From what a caller asks for to requests for the engine: limits -> segment -> tokenize.

Everything that can be wrong with a call is found here, before anything is queued.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.calls import CallContext, Pair, TextInput, TranslateConfig
from dragoman_server.config import InputLimits
from dragoman_server.decoding_options import Decoding, resolve, unknown_enum_value, unknown_piece
from dragoman_server.engine.sequence import Priority, Request
from dragoman_server.errors import (
    DeadlineError,
    FieldViolation,
    InvalidInputError,
    ModelNotFoundError,
    Reason,
    UnsupportedLanguageError,
)
from dragoman_server.languages import Direction, Languages
from dragoman_server.text.segmentation import (
    Segmentation,
    SegmentedText,
    SourceSegment,
    lines,
    num_lines_with_words,
    segment,
)
from dragoman_server.text.tokenizer import TextCodec

_MODEL_DEFAULT = 0
_SEGMENTATIONS = frozenset((_MODEL_DEFAULT, *Segmentation))
_PRIORITIES = {0: Priority.DEFAULT, 1: Priority.INTERACTIVE, 2: Priority.DEFAULT, 3: Priority.BULK}


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked config: what turns an input into requests."""

    direction: Direction
    source_prefix_ids: Sequence[int]  # language tags
    segmentation: Segmentation
    decoding: Decoding
    priority: Priority
    deadline: float  # seconds on the time.monotonic clock

    @property
    def num_specials(self) -> int:
        """Tokens of a source beside those of its text: language tags and end-of-sentence."""
        return len(self.source_prefix_ids) + 1

    def max_target_tokens(self, source: SourceSegment) -> int:
        """How many tokens the target of a segment may have, end-of-sentence included."""
        return self.decoding.limit.of(len(source.token_ids) + self.num_specials)


@dataclass(frozen=True, slots=True)
class PlannedText:
    """An input that can be decoded: a request for each of its segments."""

    text: SegmentedText
    requests: Sequence[Request]
    target_text: str | None = None  # that was given as a text


class Planner:
    """Checks calls against the limits of one model and one server.

    Args:
        manifest: of the model.
        resource_name: name@version of the model.
        tokenizer: of the model.
        limits: what a call may ask for.
        max_segments: how many segments a call may have; more than the engine can queue would
            be refused for ever.
        max_rows: how many rows the engine decodes together; a beam that needs more would never
            be decoded.
    """

    def __init__(
        self,
        manifest: Manifest,
        resource_name: str,
        tokenizer: TextCodec,
        limits: InputLimits,
        max_segments: int,
        max_rows: int,
    ) -> None:
        self._manifest = manifest
        self._resource_name = resource_name
        self._tokenizer = tokenizer
        self._limits = limits
        self._max_segments = max_segments
        self._max_rows = max_rows
        self._languages = Languages(manifest.directions)

    # -- the call ------------------------------------------------------------------------------

    def plan(
        self,
        config: TranslateConfig,
        context: CallContext,
        num_inputs: int = 1,
        path: str = "",
        options_path: str = "options.",
    ) -> Plan:
        """Checks what holds for all inputs.

        Args:
            config: as the caller gave it.
            context: of the call.
            num_inputs: how many inputs the call has.
            path: what stands before the names of the config's fields in the request.
            options_path: what stands there before the names of decoding options, after `path`.

        Raises:
            InvalidInputError: has all violations.
            ModelNotFoundError: another model is asked for.
            UnsupportedLanguageError: the model does not translate this pair of languages.
            DeadlineError: the deadline has passed.
        """
        decoding, faults = resolve(config.options, self._manifest, self._tokenizer, self._max_rows)
        violations = [
            *self._number_violations(num_inputs),
            *(_below(path, violation) for violation in self._config_violations(config)),
            *(_below(path + options_path, violation) for violation in faults),
        ]
        if violations:
            raise InvalidInputError(*violations)
        self._check_model(config.model)
        direction = self._direction(config.source_language_code, config.target_language_code)
        check_deadline(context.deadline)
        return Plan(
            direction,
            self._manifest.source_prefix_ids[direction.target],
            self._segmentation(config.segmentation),
            decoding,
            _PRIORITIES[config.priority],
            context.deadline,
        )

    def _segmentation(self, number: int) -> Segmentation:
        is_default = number == _MODEL_DEFAULT
        return Segmentation[self._manifest.segmentation.upper()] if is_default else Segmentation(number)

    def _number_violations(self, num_inputs: int) -> Iterator[FieldViolation]:
        most = self._limits.max_inputs
        if not num_inputs:
            yield FieldViolation("inputs", "is empty, must have at least one element", Reason.NO_INPUTS)
        if num_inputs > most:
            yield FieldViolation(
                "inputs", f"has {num_inputs} elements, may have at most {most}", Reason.TOO_MANY_INPUTS
            )

    def _config_violations(self, config: TranslateConfig) -> Iterator[FieldViolation]:
        for field in ("source_language_code", "target_language_code"):
            code = getattr(config, field)
            if not code:
                yield FieldViolation(field, "is required", Reason.REQUIRED_FIELD)
            elif fault := self._languages.fault_of(code):
                yield FieldViolation(field, fault, Reason.INVALID_LANGUAGE_CODE)
        if config.segmentation not in _SEGMENTATIONS:
            yield unknown_enum_value("segmentation", config.segmentation)
        if config.priority not in _PRIORITIES:
            yield unknown_enum_value("priority", config.priority)

    def _check_model(self, model: str) -> None:
        if model not in ("", self._manifest.name, self._resource_name):
            raise ModelNotFoundError(model, f"there is no such model; this server has {self._manifest.name!r}")

    def _direction(self, source: str, target: str) -> Direction:
        direction = self._languages.find(source, target)
        if direction is None:
            raise UnsupportedLanguageError(
                f"{source}-{target}",
                f"model {self._manifest.name!r} does not translate {source}-{target}; "
                f"it translates {self._languages.described(source)}",
            )
        return direction

    # -- texts to translate --------------------------------------------------------------------

    def plan_texts(self, inputs: Sequence[TextInput], plan: Plan) -> Iterator[PlannedText | InvalidInputError]:
        """The requests of every input of a call, or what is wrong with it, one after the other.

        Raises:
            InvalidInputError: the call has too many segments.
        """
        return self._within_one_call(
            self.plan_text(text_input, plan, f"inputs[{index}]") for index, text_input in enumerate(inputs)
        )

    def plan_text(self, text_input: TextInput, plan: Plan, path: str) -> PlannedText | InvalidInputError:
        """The requests of one input, or what is wrong with it; `path` is that of the input in the request.

        Raises:
            DeadlineError: the deadline passed first.
        """
        violations = [
            *self._over_characters(text_input.text, f"{path}.text"),
            *self._over_characters(text_input.target_prefix, f"{path}.target_prefix"),
        ]
        if not violations:
            violations += self._over_segments(num_lines_with_words(text_input.text), path)
        if violations:
            return InvalidInputError(*violations)
        segmented = self._segmented(text_input.text, plan, self._max_segments + 1)
        target_prefix = text_input.target_prefix
        target_prefix_ids = tuple(self._tokenizer.encode_target(target_prefix)) if target_prefix else ()
        violations = [
            *self._over_segments(len(segmented.segments), path),
            *self._over_tokens(segmented, plan, f"{path}.text"),
            *self._unknown_violations(target_prefix_ids, f"{path}.target_prefix"),
            *_prefix_violations(segmented, target_prefix_ids, plan, path),
            *_length_violations(segmented, plan, f"{path}.text"),
        ]
        if violations:
            return InvalidInputError(*violations)
        requests = [
            Request(
                self._source_ids(source, plan),
                plan.max_target_tokens(source),
                plan.deadline,
                plan.decoding.search,
                target_prefix_ids,
                plan.priority,
            )
            for source in segmented.segments
        ]
        return PlannedText(segmented, requests)

    # -- pairs of source and target ------------------------------------------------------------

    def plan_scores(self, inputs: Sequence[Pair], plan: Plan) -> Iterator[PlannedText | InvalidInputError]:
        """The one request of every pair, which forces its target, or what is wrong with it.

        Raises:
            InvalidInputError: there are more pairs than can ever queue.
        """

        def planned(pair: Pair, path: str) -> PlannedText | InvalidInputError:
            if pair.target is None:
                fault = FieldViolation(f"{path}target", "is required: a text or token ids", Reason.REQUIRED_FIELD)
                return InvalidInputError(fault)
            return self.plan_pair(pair, plan, path)

        return self._within_one_call(planned(pair, f"inputs[{index}].") for index, pair in enumerate(inputs))

    def plan_alignments(self, inputs: Sequence[Pair], plan: Plan) -> Iterator[PlannedText | InvalidInputError]:
        """The one request of every pair, which forces or decodes its target, or what is wrong with it.

        Raises:
            InvalidInputError: there are more pairs than can ever queue.
        """
        return self._within_one_call(
            self.plan_pair(pair, plan, f"inputs[{index}].", must_spell=True) for index, pair in enumerate(inputs)
        )

    def plan_pair(
        self, pair: Pair, plan: Plan, path: str, *, must_spell: bool = False
    ) -> PlannedText | InvalidInputError:
        """The one request of a pair, or what is wrong with it.

        Args:
            pair: without a target it is decoded.
            plan: of the call.
            path: what stands before the names of the pair's fields in the request.
            must_spell: whether a target text is refused where the vocabulary has no word for a part of it.
        """
        target = pair.target
        violations = [
            *self._over_characters(pair.text, f"{path}text"),
            *self._over_characters(target if isinstance(target, str) else "", f"{path}target_text"),
        ]
        if violations:
            return InvalidInputError(*violations)
        segmented = lines(pair.text, self._tokenizer.encode, 2)
        violations = [*self._over_tokens(segmented, plan, f"{path}text"), *_not_one_segment(segmented, f"{path}text")]
        target_ids: tuple[int, ...] = ()
        if isinstance(target, str):
            target_ids = (*self._tokenizer.encode_target(target), self._manifest.eos_token_id)
            violations += self._target_violations(target_ids, f"{path}target_text")
            if must_spell:
                violations += self._unknown_violations(target_ids, f"{path}target_text")
        elif target is not None:
            target_ids = tuple(target)
            field = f"{path}target_token_ids"
            violations += [*self._target_violations(target_ids, field)] or self._token_id_violations(target_ids, field)
        else:
            violations += _length_violations(segmented, plan, f"{path}text")
        if violations:
            return InvalidInputError(*violations)
        (source,) = segmented.segments
        # Where all of the target is forced, nothing is left to search.
        num_tokens = len(target_ids) or plan.max_target_tokens(source)
        source_ids, search = self._source_ids(source, plan), plan.decoding.search
        request = Request(source_ids, num_tokens, plan.deadline, search, target_ids, plan.priority)
        return PlannedText(segmented, [request], target if isinstance(target, str) else None)

    def _target_violations(self, target_ids: Sequence[int], field: str) -> Iterator[FieldViolation]:
        most = self._manifest.limits.max_target_tokens
        if len(target_ids) > most:
            description = f"has {len(target_ids)} tokens; the model takes at most {most}"
            yield FieldViolation(field, description, Reason.TARGET_TOO_LONG)

    def _unknown_violations(self, token_ids: Sequence[int], field: str) -> Iterator[FieldViolation]:
        if self._tokenizer.unknown_id in token_ids:
            yield unknown_piece(field)

    def _token_id_violations(self, token_ids: Sequence[int], field: str) -> Iterator[FieldViolation]:
        if not token_ids:
            yield FieldViolation(field, "is empty, must have at least one id", Reason.NO_TARGET_TOKENS)
        size, eos = self._manifest.architecture.vocabulary_size, self._manifest.eos_token_id
        for index, token_id in enumerate(token_ids):
            if token_id >= size:
                description = f"has {token_id} at index {index}, the vocabulary has ids below {size}"
                yield FieldViolation(field, description, Reason.UNKNOWN_TOKEN_ID)
                return
        if eos in token_ids[:-1]:
            index = list(token_ids).index(eos)
            description = f"has end-of-sentence ({eos}) at index {index}, which only the last may be"
            yield FieldViolation(field, description, Reason.TOKENS_AFTER_END)

    # -- what all need ------------------------------------------------------------------------

    def _within_one_call(
        self, planned: Iterable[PlannedText | InvalidInputError]
    ) -> Iterator[PlannedText | InvalidInputError]:
        num_segments = 0
        for text in planned:
            num_segments += len(text.requests) if isinstance(text, PlannedText) else 0
            if num_segments > self._max_segments:
                raise InvalidInputError(
                    FieldViolation(
                        "inputs",
                        f"have more than the {self._max_segments} segments one call may have",
                        Reason.TOO_MANY_SEGMENTS,
                    )
                )
            yield text

    def _segmented(self, text: str, plan: Plan, max_segments: int) -> SegmentedText:
        """The text, cut as far as this number of segments: more than there may be show that there are too many."""

        def encode(part: str) -> Sequence[int]:
            check_deadline(plan.deadline)  # a long text takes long
            return self._tokenizer.encode(part)

        segment_tokens = self._manifest.limits.segment_tokens - plan.num_specials
        return segment(text, encode, plan.segmentation, segment_tokens, plan.direction, max_segments)

    def _source_ids(self, source: SourceSegment, plan: Plan) -> tuple[int, ...]:
        return (*plan.source_prefix_ids, *source.token_ids, self._manifest.eos_token_id)

    def _over_characters(self, text: str, field: str) -> Iterator[FieldViolation]:
        most = self._limits.max_text_characters
        if len(text) > most:
            yield FieldViolation(field, f"has {len(text)} characters, may have at most {most}", Reason.TEXT_TOO_LONG)

    def _over_segments(self, num_segments: int, path: str) -> Iterator[FieldViolation]:
        if num_segments > self._max_segments:
            description = f"has more than the {self._max_segments} segments one call may have"
            yield FieldViolation(f"{path}.text", description, Reason.TOO_MANY_SEGMENTS)

    def _over_tokens(self, text: SegmentedText, plan: Plan, field: str) -> Iterator[FieldViolation]:
        most = self._manifest.limits.max_source_tokens
        for source in text.segments:
            num_tokens = len(source.token_ids) + plan.num_specials
            if num_tokens > most:
                yield FieldViolation(
                    field,
                    f"characters {source.begin} to {source.end} are one segment of {num_tokens} "
                    f"tokens; the model takes at most {most}",
                    Reason.SEGMENT_TOO_LONG,
                )
                return


def check_deadline(deadline: float) -> None:
    """Raises DeadlineError where there is no time left; `deadline` is on the `time.monotonic` clock, in seconds."""
    if time.monotonic() >= deadline:
        raise DeadlineError("the deadline passed before the translation was started")


def _not_one_segment(text: SegmentedText, field: str) -> Iterator[FieldViolation]:
    if (num_segments := len(text.segments)) != 1:
        num_lines = num_segments and sum(bool(line.strip()) for line in text.text.splitlines())
        description = f"has {num_lines} lines that are not blank, must have exactly 1"
        yield FieldViolation(field, description, Reason.NOT_ONE_SEGMENT)


def _prefix_violations(
    text: SegmentedText, target_prefix_ids: Sequence[int], plan: Plan, path: str
) -> Iterator[FieldViolation]:
    if not target_prefix_ids:
        return
    field = f"{path}.target_prefix"
    if len(text.segments) != 1:
        description = f"needs a text of exactly 1 segment, this one has {len(text.segments)}"
        yield FieldViolation(field, description, Reason.NOT_ONE_SEGMENT)
        return
    most = plan.max_target_tokens(text.segments[0]) - 1
    if len(target_prefix_ids) > most:
        description = f"has {len(target_prefix_ids)} tokens, may have at most {most}: the target's limit less one"
        yield FieldViolation(field, description, Reason.TARGET_PREFIX_TOO_LONG)


def _length_violations(text: SegmentedText, plan: Plan, field: str) -> Iterator[FieldViolation]:
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


def _below(path: str, violation: FieldViolation) -> FieldViolation:
    return FieldViolation(path + violation.field, violation.description, violation.reason)
