"""What of the input of a call is refused, and what becomes a request."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.manifest import DefaultSegmentation
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Priority
from dragoman_server.errors import DeadlineError, InvalidInputError
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.service.calls import CallContext, DecodingFields, Pair, TextInput
from dragoman_server.service.plan import Plan, PlannedText
from dragoman_server.service.planner import Planner
from dragoman_server.service.results import ScoredTarget
from dragoman_server.service.translate import Translator
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.text.tokenizer import Tokenizer
from support.calls import (
    INPUT_LIMITS,
    LONG_LINE,
    MAX_ROWS,
    MAX_SEGMENTS,
    NOW,
    call,
    config,
    refused,
    score_call,
    translated,
    violations,
)
from support.marian_tokenizer import EOS_ID as MARIAN_EOS_ID
from support.marian_tokenizer import write_tokenizer
from support.server_parts import EOS_ID, LIMITS, FakeEngine


@pytest.fixture
def marian(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle whose tokenizer has no word, and no bytes, for what it does not know."""
    vocabulary = write_tokenizer(tmp_path)
    architecture = replace(bundle.manifest.architecture, vocabulary_size=len(vocabulary))
    manifest = replace(bundle.manifest, architecture=architecture, eos_token_id=MARIAN_EOS_ID, tokenizer="marian")
    return Bundle(tmp_path, manifest, "0")


@pytest.fixture
def planner() -> Planner:
    return Planner(INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)


def plan_for(planner: Planner, bundle: Bundle, context: CallContext = NOW, **values: object) -> Plan:
    """The plan of a call for the model of a bundle."""
    asked = config(**values)
    registry = Registry.of(Model(bundle, FakeEngine()))

    async def plan() -> Plan:
        async with registry.lease("", asked.source_language_code, asked.target_language_code) as lease:
            return planner.plan(lease, asked, context)

    return asyncio.run(plan())


# -- segmentation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "asked_for", "num_segments"),
    [
        ("sentence", None, 2),
        ("line", None, 1),
        ("packed", None, 1),
        ("line", Segmentation.SENTENCE, 2),
        ("sentence", Segmentation.LINE, 1),
        ("sentence", Segmentation.PACKED, 1),
    ],
)
def test_lines_are_cut_as_is_asked_for_else_as_the_model_has_it(
    planner: Planner, bundle: Bundle, default: DefaultSegmentation, asked_for: Segmentation | None, num_segments: int
) -> None:
    bundle = replace(bundle, manifest=replace(bundle.manifest, segmentation=default))
    planned = planner.plan_text(TextInput("One. Two."), plan_for(planner, bundle, segmentation=asked_for), "input")
    assert isinstance(planned, PlannedText)
    assert len(planned.requests) == num_segments


def test_models_are_given_single_sentences_where_they_do_not_say(bundle: Bundle) -> None:
    assert bundle.manifest.segmentation == "sentence"


async def test_sentences_are_those_of_the_language_of_the_source(translator: Translator, engine: FakeEngine) -> None:
    await translator.translate(call("Etwa 3 Mio. Katzen.", source_language_code="de", target_language_code="en"), NOW)
    assert len(engine.requests) == 1
    await translator.translate(call("Etwa 3 Mio. Katzen.", source_language_code="en", target_language_code="de"), NOW)
    assert len(engine.requests) == 3


async def test_a_text_without_words_comes_back_and_nothing_is_decoded(
    translator: Translator, engine: FakeEngine
) -> None:
    texts = ["12:30", " 🙂\n•\n", "https://example.com/", "{name}"]
    outcome = await translator.translate(call(*texts), NOW)
    assert [translated(outcome, index).text for index in range(4)] == texts
    assert [translated(outcome, index).segments for index in range(4)] == [[]] * 4
    assert engine.requests == []


async def test_but_pairs_are_scored_whatever_they_are(translator: Translator, engine: FakeEngine) -> None:
    outcome = await translator.score(score_call(("12:30", "12 h 30"), ("One.\tTwo.   3", "Un.")), NOW)
    assert all(isinstance(result, ScoredTarget) for result in outcome.results)
    assert len(engine.requests) == 2


# -- prefixes and lengths ----------------------------------------------------------------------------------------------


async def test_a_target_prefix_is_forced(translator: Translator, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    outcome = await translator.translate(call(TextInput("The cat.", "Le chat"), "How?"), NOW)
    first, second = engine.requests
    assert first.prefix_ids == tuple(tokenizer.encode("Le chat"))
    assert second.prefix_ids == ()
    assert translated(outcome).text == "Le chat The cat."


@pytest.fixture
def forcing(bundle: Bundle) -> Bundle:
    """Of a model that is told both languages by tokens, that of the target as its first word."""
    framing = FramingTemplate(("source",), (EOS_ID,), ("target",))
    return replace(bundle, manifest=replace(bundle.manifest, framing=framing))


def test_what_a_model_is_forced_to_begin_with_stands_before_everything(
    planner: Planner, forcing: Bundle, tokenizer: Tokenizer
) -> None:
    english, french = (4,), (5,)
    plan, words, begun = plan_for(planner, forcing), tokenizer.encode("The cat."), tokenizer.encode("Le chat")
    planned = planner.plan_text(TextInput("The cat.", "Le chat"), plan, "input")
    assert isinstance(planned, PlannedText)
    assert planned.requests[0].source_ids == (*english, *words, EOS_ID)
    assert planned.requests[0].prefix_ids == (*french, *begun)
    assert planned.target_ids is None
    decoded = planner.plan_pair(Pair("The cat.", None), plan, "")
    assert isinstance(decoded, PlannedText)
    assert decoded.requests[0].prefix_ids == french
    assert decoded.target_ids is None  # a forced beginning is no target that was given
    given = planner.plan_pair(Pair("The cat.", "Le chat"), plan, "")
    assert isinstance(given, PlannedText)
    assert given.target_ids == given.requests[0].prefix_ids == (*french, *begun, EOS_ID)
    assert given.requests[0].max_target_tokens == len(begun) + 2
    as_ids = planner.plan_pair(Pair("The cat.", [5, 7, EOS_ID]), plan, "")
    assert isinstance(as_ids, PlannedText)
    assert as_ids.target_ids == (5, 7, EOS_ID)


def test_what_is_forced_takes_its_part_of_the_targets_limit(
    planner: Planner, forcing: Bundle, tokenizer: Tokenizer
) -> None:
    num_begun = len(tokenizer.encode("Le chat"))
    for limit, fits in [(num_begun + 1, False), (num_begun + 2, True)]:
        plan = plan_for(planner, forcing, options=DecodingFields(max_target_tokens=limit))
        planned = planner.plan_text(TextInput("The cat.", "Le chat"), plan, "input")
        assert isinstance(planned, PlannedText) == fits
        if isinstance(planned, InvalidInputError):
            (violation,) = planned.violations
            assert violation.description.startswith(f"has {num_begun} tokens, may have at most {num_begun - 1}:")


async def test_a_blank_target_prefix_is_none(translator: Translator, engine: FakeEngine) -> None:
    await translator.translate(call(TextInput("One.\nTwo.", " ")), NOW)
    assert [request.prefix_ids for request in engine.requests] == [(), ()]


@pytest.mark.parametrize(("text", "num_segments"), [("", 0), ("One.\nTwo.", 2), (LONG_LINE, 8)])
async def test_a_target_prefix_needs_a_single_segment(
    translator: Translator, engine: FakeEngine, text: str, num_segments: int
) -> None:
    outcome = await translator.translate(call(TextInput(text, "Le"), "Two."), NOW)
    ((field, description),) = violations(outcome)
    assert field == "inputs[0].target_prefix"
    assert description == f"needs a text of exactly 1 segment, this one has {num_segments}"
    assert translated(outcome, 1).text == "Two."
    assert len(engine.requests) == 1


def test_a_target_prefix_that_the_vocabulary_cannot_spell_is_refused(planner: Planner, marian: Bundle) -> None:
    plan = plan_for(planner, marian)
    assert isinstance(planner.plan_text(TextInput("the dog", "le chien"), plan, "input"), PlannedText)
    planned = planner.plan_text(TextInput("the dog", "le 日本"), plan, "input")
    assert isinstance(planned, InvalidInputError)
    assert [(found.field, found.reason) for found in planned.violations] == [("input.target_prefix", "UNKNOWN_PIECE")]


async def test_a_target_prefix_must_leave_room(translator: Translator, tokenizer: Tokenizer) -> None:
    num_tokens = len(tokenizer.encode("Le chat"))
    fits = await translator.translate(call(TextInput("Cat.", "Le chat"), max_target_tokens=num_tokens + 1), NOW)
    assert translated(fits).text.startswith("Le chat")
    too_long = await translator.translate(call(TextInput("Cat.", "Le chat"), max_target_tokens=num_tokens), NOW)
    assert violations(too_long) == [
        (
            "inputs[0].target_prefix",
            f"has {num_tokens} tokens, may have at most {num_tokens - 1}: the target's limit less one",
        )
    ]


async def test_a_target_prefix_is_measured_before_it_is_tokenized(translator: Translator) -> None:
    outcome = await translator.translate(call(TextInput("x" * 3_001, "y" * 3_001)), NOW)
    assert [field for field, _ in violations(outcome)] == ["inputs[0].text", "inputs[0].target_prefix"]


async def test_all_violations_of_an_input_are_listed_at_once(translator: Translator) -> None:
    bad = call(TextInput("Q" * 100 + "\nb", "Le"), max_length_ratio=0.01, min_target_tokens=3)
    assert [field for field, _ in violations(await translator.translate(bad, NOW))] == [
        "inputs[0].text",
        "inputs[0].target_prefix",
        "inputs[0].text",
    ]


async def test_a_ratio_that_leaves_less_than_the_least_is_told(translator: Translator, engine: FakeEngine) -> None:
    outcome = await translator.translate(call("Hi.", "Number 1000.", max_length_ratio=1.0, min_target_tokens=12), NOW)
    num_tokens = len(engine.requests[0].source_ids)
    assert num_tokens >= 12
    ((field, description),) = violations(outcome)
    assert field == "inputs[0].text"
    assert "by max_length_ratio; min_target_tokens is 12" in description
    assert engine.requests[0].max_target_tokens == num_tokens


async def test_one_text_may_not_have_more_segments_than_can_ever_queue(translator: Translator) -> None:
    outcome = await translator.translate(call("a\n" * (MAX_SEGMENTS + 1), "b"), NOW)
    assert violations(outcome) == [("inputs[0].text", "has more than the 500 segments one call may have")]
    assert translated(outcome, 1).text == "b"


@pytest.fixture
def encoded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that was tokenized."""
    parts: list[str] = []
    encode = tokenizer.encode

    def noting(text: str) -> list[int]:
        parts.append(text)
        return encode(text)

    monkeypatch.setattr(tokenizer, "encode", noting)
    return parts


async def test_a_text_of_too_many_lines_is_not_tokenized(translator: Translator, encoded: list[str]) -> None:
    outcome = await translator.translate(call("a\n" * (MAX_SEGMENTS + 1), "b"), NOW)
    assert refused(outcome) == ("inputs[0].text", "TOO_MANY_SEGMENTS")
    assert encoded == ["b"]


async def test_a_text_is_tokenized_as_far_as_it_shows_that_it_has_too_many_segments(
    translator: Translator, encoded: list[str]
) -> None:
    """In one line, so that the number of lines does not show it."""
    outcome = await translator.translate(call("A b. " * 510), NOW)
    assert refused(outcome) == ("inputs[0].text", "TOO_MANY_SEGMENTS")
    assert len(encoded) == MAX_SEGMENTS + 1


async def test_a_call_is_tokenized_as_far_as_it_shows_that_it_has_too_many_segments(
    translator: Translator, encoded: list[str]
) -> None:
    with pytest.raises(InvalidInputError, match="more than the 500 segments"):
        await translator.translate(call(*["a\n" * 300] * 4), NOW)
    assert len(encoded) == 600


async def test_a_pair_of_many_lines_is_tokenized_as_far_as_it_shows_that(
    translator: Translator, encoded: list[str]
) -> None:
    outcome = await translator.score(score_call(("a\n" * 400, "a")), NOW)
    (error,) = outcome.results
    assert isinstance(error, InvalidInputError)
    assert str(error) == "inputs[0].text: has 400 lines that are not blank, must have exactly 1"
    assert len(encoded) == 2


def test_a_text_is_tokenized_no_longer_than_until_the_deadline(
    planner: Planner, bundle: Bundle, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(planner, bundle, CallContext(deadline=time.monotonic() + 60))
    num_encoded = 0

    def encode(_: str) -> list[int]:
        nonlocal num_encoded
        num_encoded += 1
        if num_encoded == 10:
            monkeypatch.setattr(time, "monotonic", lambda: plan.deadline)
        return [9]

    monkeypatch.setattr(tokenizer, "encode", encode)
    with pytest.raises(DeadlineError):
        planner.plan_text(TextInput("a\n" * 400), plan, "input")
    assert num_encoded == 10


async def test_options_and_priority_reach_the_engine(translator: Translator, engine: FakeEngine) -> None:
    outcome = await translator.translate(
        call("One.", beam_size=4, num_hypotheses=2, priority=Priority.INTERACTIVE), NOW
    )
    assert engine.requests[0].options == SearchOptions(beam_size=4, num_hypotheses=2)
    assert engine.requests[0].priority is Priority.INTERACTIVE
    assert len(translated(outcome).segments[0].candidates) == 2


# -- score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target", "field", "description"),
    [
        ("", "a", "text", "has 0 lines that are not blank, must have exactly 1"),
        ("One.\nTwo.", "a", "text", "has 2 lines that are not blank, must have exactly 1"),
        ("x" * 3_001, "a", "text", "has 3001 characters, may have at most 3000"),
        ("Q" * 100, "a", "text", "are one segment of"),
        ("a", "y" * 3_001, "target_text", "has 3001 characters, may have at most 3000"),
        ("a", "Q" * 200, "target_text", f"tokens; the model takes at most {LIMITS.max_target_tokens}"),
        ("a", [9] * 97, "target_token_ids", f"has 97 tokens; the model takes at most {LIMITS.max_target_tokens}"),
        ("a", None, "target", "is required: a text or token ids"),
        ("a", [], "target_token_ids", "is empty, must have at least one id"),
        ("a", [9, 400], "target_token_ids", "has 400 at index 1, the vocabulary has ids below 400"),
        ("a", [9, 3, 9], "target_token_ids", "has end-of-sentence (3) at index 1, which only the last may be"),
    ],
)
async def test_a_pair_at_fault_is_named_and_does_not_disturb_the_others(
    translator: Translator, engine: FakeEngine, text: str, target: str | list[int] | None, field: str, description: str
) -> None:
    outcome = await translator.score(score_call((text, target), ("The cat.", "Le chat.")), NOW)
    error, good = outcome.results
    assert isinstance(error, InvalidInputError)
    (violation,) = error.violations
    assert violation.field == f"inputs[0].{field}"
    assert description in violation.description
    assert isinstance(good, ScoredTarget)
    assert len(engine.requests) == 1


async def test_an_empty_target_is_end_of_sentence(translator: Translator, engine: FakeEngine) -> None:
    outcome = await translator.score(score_call(("The cat.", "")), NOW)
    assert engine.requests[0].prefix_ids == (EOS_ID,)
    (result,) = outcome.results
    assert isinstance(result, ScoredTarget)
    assert result.pieces == ["</s>"]


async def test_the_length_penalty_of_a_score_is_its_own_field(translator: Translator) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await translator.score(score_call(("a", "b"), length_penalty=11.0), NOW)
    assert [violation.field for violation in caught.value.violations] == ["length_penalty"]


async def test_a_score_call_may_not_have_more_pairs_than_can_ever_queue(registry: Registry) -> None:
    translator = Translator(registry, INPUT_LIMITS, 1, MAX_ROWS)
    with pytest.raises(InvalidInputError, match="have more than the 1 segments"):
        await translator.score(score_call(("a", "b"), ("a", "b")), NOW)
    translator.close()


# -- pairs whose target must be one of the model's ---------------------------------------------------------------------


@pytest.mark.parametrize("must_spell", [False, True])
def test_a_target_that_the_vocabulary_cannot_spell_is_refused_only_where_it_must(
    planner: Planner, marian: Bundle, must_spell: bool
) -> None:
    plan = plan_for(planner, marian, segmentation=Segmentation.LINE)
    spelt = planner.plan_pair(Pair("the dog", "le chien"), plan, "", must_spell=must_spell)
    assert isinstance(spelt, PlannedText)
    planned = planner.plan_pair(Pair("the 日本 dog", "le 日本"), plan, "inputs[2].", must_spell=must_spell)
    assert isinstance(planned, InvalidInputError) == must_spell
    if isinstance(planned, InvalidInputError):
        (violation,) = planned.violations
        assert (violation.field, violation.reason) == ("inputs[2].target_text", "UNKNOWN_PIECE")
