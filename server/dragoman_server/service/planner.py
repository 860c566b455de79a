"""From what a caller asks for to requests for the engine: limits -> segment -> tokenize.

Everything that can be wrong with a call is found here, before anything is queued.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dragoman.types import Vocabulary
from dragoman_server.bundle.languages import Direction
from dragoman_server.config import InputLimits
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Completion, Request
from dragoman_server.errors import DeadlineError, FieldViolation, InvalidInputError, Reason, UnknownValue
from dragoman_server.registry.registry import Lease
from dragoman_server.service.calls import CallContext, DecodingFields, Pair, TextInput, TranslateConfig
from dragoman_server.service.options import Decoding, resolve
from dragoman_server.service.pivot import FirstLeg, refusal
from dragoman_server.service.plan import Plan, PlannedText
from dragoman_server.service.violations import (
    config_violations,
    length_violations,
    not_one_segment,
    over_tokens,
    prefix_violations,
    target_violations,
    token_id_violations,
    too_many_inputs,
    unknown_violations,
)
from dragoman_server.service.vocabulary import Vocabularies, only_full
from dragoman_server.text.segmentation import (
    Segmentation,
    SegmentedText,
    lines,
    num_lines_with_words,
    segment,
)


class Planner:
    """Checks calls against the limits of the server and of the models that they were given.

    Args:
        limits: what a call may ask for.
        max_segments: how many segments a call may have; more than the engine can queue would
            be refused for ever.
        max_rows: how many rows the engine decodes together; a beam that needs more would never
            be decoded.
        vocabulary: what targets are chosen from where a call does not say.
    """

    def __init__(self, limits: InputLimits, max_segments: int, max_rows: int, vocabulary: Vocabulary = "full") -> None:
        self._limits, self._max_segments, self._max_rows = limits, max_segments, max_rows
        self._vocabularies = Vocabularies(vocabulary)

    # -- the call ------------------------------------------------------------------------------

    def plan(
        self,
        lease: Lease,
        config: TranslateConfig,
        context: CallContext,
        num_inputs: int = 1,
        path: str = "",
        options_path: str = "options.",
        *,
        include_signals: bool = False,
        takes_lists: bool = True,
    ) -> Plan:
        """Checks what holds for all inputs.

        Args:
            lease: what the call was given.
            config: as the caller gave it.
            context: of the call.
            num_inputs: how many inputs the call has.
            path: what stands before the names of the config's fields in the request.
            options_path: what stands there before the names of decoding options, after `path`.
            include_signals: whether the caller asks for signals.
            takes_lists: whether targets may be chosen from lists of tokens; else it is the full vocabulary.

        Returns:
            The plan of the model that writes the answer.

        Raises:
            InvalidInputError: has all violations.
            ModelNotFoundError: there is no model of the name that is asked for.
            UnsupportedLanguageError: the model does not translate this pair of languages.
            NoVocabularyListError: a model has no list of tokens as the call wants it.
            DeadlineError: the deadline has passed.
        """
        legs = [lease] if lease.second is None else [lease, lease.second]
        route = "" if lease.second is None else _route(lease, lease.second)
        decodings, faults = self._decodings(config.options, legs, route)
        if not takes_lists:
            faults = [*faults, *only_full(config.options.vocabulary)]
        violations = [
            *self._number_violations(num_inputs),
            *(_below(path, violation) for violation in config_violations(config, legs[0].model, legs[-1].model)),
            *(_below(path + options_path, violation) for violation in faults),
        ]
        if route and include_signals:
            violations.append(refusal("include_signals", "must be false", route))
        segmentation, priority, vocabulary = config.segmentation, config.priority, config.options.vocabulary
        # Where one of the three is unknown, there is a violation.
        if violations or isinstance(segmentation, UnknownValue) or isinstance(priority, UnknownValue):
            raise InvalidInputError(*violations)
        assert not isinstance(vocabulary, UnknownValue)

        def planned(leg: Lease, decoding: Decoding, first: Plan | None = None) -> Plan:
            manifest, direction = leg.model.manifest, _direction(leg)
            return Plan(
                leg.model,
                direction,
                manifest.framing_of(direction),
                segmentation or Segmentation(manifest.segmentation),
                decoding,
                self._vocabularies.of(vocabulary if takes_lists else "full", leg.model, direction),
                context.caller.lowered(priority),
                context.deadline,
                context.identity,
                route,
                first,
                record=context.record,
            )

        context.record.model = legs[-1].model.name
        plan = planned(lease, decodings[0])
        check_deadline(context.deadline)
        return plan if lease.second is None else planned(lease.second, decodings[1], plan)

    def _decodings(
        self, options: DecodingFields, legs: Sequence[Lease], route: str
    ) -> tuple[list[Decoding], Iterable[FieldViolation]]:
        """The options of each leg, and all that is wrong with them; what is wrong for both is told once."""
        decodings: list[Decoding] = []
        faults: dict[FieldViolation, None] = {}
        for leg in legs:
            # Suppressed words are words of the target.
            own = options if leg is legs[-1] else replace(options, suppressed_words=())
            decoding, own_faults = resolve(own, leg.model.manifest, leg.model.tokenizer, self._max_rows)
            decodings.append(decoding)
            faults |= dict.fromkeys(own_faults)
        if route and (options.num_hypotheses or 1) > 1:
            faults[refusal("num_hypotheses", f"is {options.num_hypotheses}, may be at most 1", route)] = None
        return decodings, faults

    def _number_violations(self, num_inputs: int) -> Iterator[FieldViolation]:
        most = self._limits.max_inputs
        if not num_inputs:
            yield FieldViolation("inputs", "is empty, must have at least one element", Reason.NO_INPUTS)
        if num_inputs > most:
            yield too_many_inputs("inputs", num_inputs, most)

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
        target_prefix, prefix_path = text_input.target_prefix, f"{path}.target_prefix"
        refused = [refusal(prefix_path, "must be empty", plan.route)] if target_prefix and plan.route else []
        violations = [
            *self._over_characters(text_input.text, f"{path}.text"),
            *self._over_characters(target_prefix, prefix_path),
        ]
        if not violations:
            violations += self._over_segments(num_lines_with_words(text_input.text), path)
        if violations:
            return InvalidInputError(*violations, *refused)
        segmented = _segmented(text_input.text, plan, self._max_segments + 1)
        has_prefix = target_prefix and not refused
        prefix_text_ids = plan.model.tokenizer.encode_target(target_prefix) if has_prefix else ()
        violations = [
            *self._over_segments(len(segmented.segments), path),
            *over_tokens(segmented, plan, f"{path}.text"),
            *refused,
            *unknown_violations(prefix_text_ids, plan.model, prefix_path),
            *prefix_violations(segmented, prefix_text_ids, plan, path),
            *length_violations(segmented, plan, f"{path}.text"),
        ]
        if violations:
            return InvalidInputError(*violations)
        forced_ids = (*plan.framing.target_prefix, *prefix_text_ids)
        all_source_ids = (plan.framing.frame(source.token_ids) for source in segmented.segments)
        requests = [
            Request(
                source_ids,
                plan.max_target_tokens(source),
                plan.deadline,
                plan.decoding.search,
                forced_ids,
                len(plan.framing.target_prefix),
                plan.priority,
                plan.vocabulary.candidates(source_ids, forced_ids),
                plan.seconds_after,
            )
            for source, source_ids in zip(segmented.segments, all_source_ids, strict=True)
        ]
        return PlannedText(segmented, plan.framing, requests, vocabulary=plan.vocabulary.name)

    # -- texts that another model has translated -----------------------------------------------

    def plan_seconds(
        self,
        texts: Sequence[PlannedText | InvalidInputError],
        completions: Sequence[Sequence[Completion]],
        first: Plan,
        plan: Plan,
    ) -> Iterator[PlannedText | InvalidInputError]:
        """The requests of the second leg of every input of a call, or what is wrong with it, one after the other.

        Together they may have any number of segments: the first leg had no more than a call may.
        """
        for index, (text, own) in enumerate(zip(texts, completions, strict=True)):
            if isinstance(text, PlannedText):
                yield self.plan_second(text, own, first, plan, f"inputs[{index}]")
            else:
                yield text

    def plan_second(
        self, text: PlannedText, completions: Sequence[Completion], first: Plan, plan: Plan, path: str
    ) -> PlannedText | InvalidInputError:
        """The requests of the second leg of a text, or what is wrong with its translation into the third language.

        Args:
            text: as the first leg has read it.
            completions: the answers of the first leg.
            first: of the first leg.
            plan: of the second leg.
            path: that of the input in the request.

        Raises:
            DeadlineError: the deadline passed first.
        """
        leg = FirstLeg.of(text.text, text.requests, completions, first.model.tokenizer)
        planned = self.plan_text(TextInput(leg.text), plan, path)
        if isinstance(planned, PlannedText):
            return replace(planned, first=leg)
        prefix = f"translated into {first.direction.target}, "
        return InvalidInputError(*(replace(v, description=prefix + v.description) for v in planned.violations))

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
        target, model = pair.target, plan.model
        violations = [
            *self._over_characters(pair.text, f"{path}text"),
            *self._over_characters(target if isinstance(target, str) else "", f"{path}target_text"),
        ]
        if violations:
            return InvalidInputError(*violations)
        segmented = lines(pair.text, model.tokenizer.encode, 2)
        violations = [*over_tokens(segmented, plan, f"{path}text"), *not_one_segment(segmented, f"{path}text")]
        target_ids: tuple[int, ...] | None = None
        if isinstance(target, str):
            target_ids = plan.framing.frame_target(model.tokenizer.encode_target(target))
            violations += target_violations(target_ids, model, f"{path}target_text")
            if must_spell:
                violations += unknown_violations(target_ids, model, f"{path}target_text")
        elif target is not None:
            field = f"{path}target_token_ids"
            too_long = [*target_violations(target, model, field)]
            target_ids = () if too_long else tuple(target)
            violations += too_long or token_id_violations(target_ids, model, field)
        else:
            violations += length_violations(segmented, plan, f"{path}text")
        if violations:
            return InvalidInputError(*violations)
        (source,) = segmented.segments
        if target_ids is None:
            num_tokens, search = plan.max_target_tokens(source), plan.decoding.search
            forced_ids = plan.framing.target_prefix
        else:  # all of the target is forced, and nothing is left to search
            num_tokens, search = len(target_ids), SearchOptions(length_penalty=plan.decoding.search.length_penalty)
            forced_ids = target_ids
        source_ids = plan.framing.frame(source.token_ids)
        num_framing_ids = plan.framing.num_forced(forced_ids)
        request = Request(
            source_ids,
            num_tokens,
            plan.deadline,
            search,
            forced_ids,
            num_framing_ids,
            plan.priority,
            seconds_after=plan.seconds_after,
        )
        text = target if isinstance(target, str) else None
        return PlannedText(segmented, plan.framing, [request], target_ids, text)

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

    def _over_characters(self, text: str, field: str) -> Iterator[FieldViolation]:
        most = self._limits.max_text_characters
        if len(text) > most:
            yield FieldViolation(field, f"has {len(text)} characters, may have at most {most}", Reason.TEXT_TOO_LONG)

    def _over_segments(self, num_segments: int, path: str) -> Iterator[FieldViolation]:
        if num_segments > self._max_segments:
            description = f"has more than the {self._max_segments} segments one call may have"
            yield FieldViolation(f"{path}.text", description, Reason.TOO_MANY_SEGMENTS)


def check_deadline(deadline: float) -> None:
    """Raises DeadlineError where there is no time left; `deadline` is on the `time.monotonic` clock, in seconds."""
    if time.monotonic() >= deadline:
        raise DeadlineError("the deadline passed before the translation was started")


def _segmented(text: str, plan: Plan, max_segments: int) -> SegmentedText:
    """The text, cut as far as this number of segments: more than there may be show that there are too many."""

    def encode(part: str) -> Sequence[int]:
        check_deadline(plan.deadline)  # a long text takes long
        return plan.model.tokenizer.encode(part)

    segment_tokens = plan.model.manifest.limits.segment_tokens - plan.framing.num_specials
    return segment(text, encode, plan.segmentation, segment_tokens, plan.direction, max_segments)


def _direction(lease: Lease) -> Direction:
    if not isinstance(lease.direction, Direction):
        raise lease.direction
    return lease.direction


def _route(first: Lease, second: Lease) -> str:
    source, language = _direction(first)
    target = _direction(second).target
    return f"{source}-{target} goes through {language}, by {first.model.name} and {second.model.name}"


def _below(path: str, violation: FieldViolation) -> FieldViolation:
    return FieldViolation(path + violation.field, violation.description, violation.reason)
