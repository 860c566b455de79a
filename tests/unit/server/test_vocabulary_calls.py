"""What the targets of calls are chosen from: by what is asked for, the server's default, and what there is."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from dragoman.types import Vocabulary
from dragoman_server.attention.worker import AttentionWorker
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Precision
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.engine.candidates import Candidates
from dragoman_server.errors import (
    InferenceError,
    InvalidInputError,
    NoVocabularyListError,
    UnknownValue,
    UnsupportedLanguageError,
)
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.service.attention import Attender
from dragoman_server.service.calls import (
    AlignCall,
    AttentionCall,
    ExchangeInput,
    Pair,
    StreamCall,
    TextInput,
    TranslateConfig,
)
from dragoman_server.service.results import StreamOutcome, TranslatedText
from dragoman_server.service.translate import Translator
from dragoman_server.service.vocabulary import _MAX_IDLE_LISTS, Vocabularies, with_ids
from dragoman_server.text.tokenizer import TextCodec
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS, NOW, call, config, score_call, translated
from support.lists import with_lists
from support.pivot import Leg, across, exchanged, stream_call, streamed
from support.server_parts import EOS_ID, FakeEngine

EN_FR = ("en", "fr")
FRENCH, GERMAN = (20, 30, 40), (50, 60)
FREQUENT = (100, 101)


@pytest.fixture
def listed(bundle: Bundle, tokenizer: TextCodec) -> Bundle:
    """A bundle with lists of French and German, and with shortlists from English to French."""
    return with_lists(bundle, {"fr": FRENCH, "de": GERMAN}, {EN_FR: links_of(tokenizer)}, FREQUENT)


def links_of(tokenizer: TextCodec) -> dict[int, tuple[int, ...]]:
    """Each token of a sentence with two likely ones, one of them its own."""
    return {token_id: (200 + place, 250) for place, token_id in enumerate(tokenizer.encode("The cat."))}


def translator_of(
    bundle: Bundle, engine: FakeEngine, default: Vocabulary = "full", counted: list[object] | None = None
) -> closing[Translator]:
    def count(*values: object) -> None:
        if counted is not None:
            counted.append(values)

    registry = Registry.of(Model(bundle, engine))
    return closing(Translator(registry, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS, vocabulary=default, on_translated=count))


@pytest.fixture
def lister(listed: Bundle, engine: FakeEngine) -> Iterator[Translator]:
    """Of a server that takes the full vocabulary unless asked otherwise."""
    with translator_of(listed, engine) as translator:
        yield translator


def ids_of(engine: FakeEngine, place: int = -1) -> list[int] | None:
    candidates = engine.requests[place].candidates
    return None if candidates is None else candidates.ids.tolist()


# -- what is asked for -------------------------------------------------------------------------------------------------


async def test_without_a_word_it_is_the_full_vocabulary(lister: Translator, engine: FakeEngine) -> None:
    for asked in (None, "full"):
        outcome = await lister.translate(call("The cat.", vocabulary=asked), NOW)
        assert translated(outcome).vocabulary == "full"
        assert ids_of(engine) is None


async def test_the_list_of_a_language_is_one_object_for_all_texts(lister: Translator, engine: FakeEngine) -> None:
    outcome = await lister.translate(call("The cat. A dog.", "The cat.", vocabulary="language"), NOW)
    assert [translated(outcome, index).vocabulary for index in (0, 1)] == ["language"] * 2
    await lister.translate(call("The cat.", vocabulary="language"), NOW)
    assert ids_of(engine) == sorted({EOS_ID, *FRENCH})
    assert len({id(request.candidates) for request in engine.requests}) == 1
    assert len(engine.requests) == 4
    assert engine.requests[0].candidates is not None
    assert engine.requests[0].candidates.is_shared
    await lister.translate(call("The cat.", vocabulary="language", target_language_code="de"), NOW)
    assert ids_of(engine) == sorted({EOS_ID, *GERMAN})


async def test_a_shortlist_is_that_of_its_segment(lister: Translator, engine: FakeEngine, tokenizer: TextCodec) -> None:
    texts, links = ["The cat.", "Q"], links_of(tokenizer)
    outcome = await lister.translate(call("\n".join(texts), vocabulary="shortlist"), NOW)
    assert translated(outcome).vocabulary == "shortlist"
    for place, text in enumerate(texts):
        likely = [target for token_id in tokenizer.encode(text) for target in links.get(token_id, ())]
        assert ids_of(engine, place) == sorted({EOS_ID, *FREQUENT, *likely})
    assert ids_of(engine, 0) != ids_of(engine, 1)
    for request in engine.requests:
        assert request.candidates is not None
        assert not request.candidates.is_shared


@pytest.mark.parametrize("vocabulary", ["language", "shortlist"])
async def test_what_a_target_begins_with_is_in_its_list(
    lister: Translator, engine: FakeEngine, tokenizer: TextCodec, vocabulary: Vocabulary
) -> None:
    await lister.translate(call("The cat.", vocabulary=vocabulary), NOW)
    without = {*(ids_of(engine) or ())}
    await lister.translate(call(TextInput("The cat.", "Le vieux chat"), vocabulary=vocabulary), NOW)
    prefix_ids = {*tokenizer.encode_target("Le vieux chat")}
    assert prefix_ids - without
    assert ids_of(engine) == sorted(without | prefix_ids)
    assert engine.requests[-1].candidates is not None
    assert not engine.requests[-1].candidates.is_shared


async def test_a_prefix_that_the_list_of_a_language_has_makes_no_list(
    bundle: Bundle, engine: FakeEngine, tokenizer: TextCodec
) -> None:
    listed = with_lists(bundle, {"fr": tokenizer.encode_target("Le vieux chat dort")})
    with translator_of(listed, engine) as translator:
        inputs = [TextInput("The cat."), TextInput("The cat.", "Le vieux chat")]
        await translator.translate(call(*inputs, vocabulary="language"), NOW)
    assert engine.requests[0].candidates is engine.requests[1].candidates is not None


@pytest.mark.parametrize("vocabulary", ["language", "shortlist"])
async def test_what_a_framing_forces_is_in_every_list(
    bundle: Bundle, engine: FakeEngine, vocabulary: Vocabulary
) -> None:
    framing = FramingTemplate(("source",), (EOS_ID,), (77, "target"))
    bundle = replace(bundle, manifest=replace(bundle.manifest, framing=framing))
    listed = with_lists(bundle, {"fr": FRENCH, "de": FRENCH}, {EN_FR: {}, ("en", "de"): {}}, FREQUENT)
    with translator_of(listed, engine) as translator:
        for code in ("fr", "de"):
            await translator.translate(call("The cat.", vocabulary=vocabulary, target_language_code=code), NOW)
            of_language = bundle.manifest.languages.token_ids[code]
            likely = FRENCH if vocabulary == "language" else FREQUENT
            assert ids_of(engine) == sorted({EOS_ID, 77, *of_language, *likely})


async def test_languages_with_the_same_list_have_one_object(bundle: Bundle, engine: FakeEngine) -> None:
    listed = with_lists(bundle, {"fr": FRENCH, "de": FRENCH})
    with translator_of(listed, engine) as translator:
        for code in ("fr", "de"):
            await translator.translate(call("The cat.", vocabulary="language", target_language_code=code), NOW)
    assert engine.requests[0].candidates is engine.requests[1].candidates is not None


class SlowModel(Model):
    """Takes the weights of a list when it is told to, or fails."""

    def __init__(self, bundle: Bundle, engine: FakeEngine) -> None:
        super().__init__(bundle, engine)
        self.opened: list[Candidates] = []
        self.may_open, self.fails = threading.Event(), False

    def has_list(self, candidates: Candidates) -> bool:
        return candidates in self.opened

    def open_list(self, candidates: Candidates) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert self.may_open.wait(10)
        if self.fails:
            raise InferenceError("no memory")
        self.opened.append(candidates)


async def test_a_call_waits_for_the_weights_of_its_list_and_others_do_not(listed: Bundle, engine: FakeEngine) -> None:
    model = SlowModel(listed, engine)
    of_language = call("The cat.", vocabulary="language")
    with closing(Translator(Registry.of(model), INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)) as translator:
        waiting = [asyncio.ensure_future(translator.translate(of_language, NOW)) for _ in range(2)]
        await translator.translate(call("The cat."), NOW)
        await translator.translate(call("The cat.", vocabulary="shortlist"), NOW)
        assert not any(each.done() for each in waiting)
        assert len(engine.requests) == 2
        model.may_open.set()
        await asyncio.gather(*waiting)
        assert {request.candidates for request in engine.requests[2:]} == {*model.opened}
        model.fails = True
        with pytest.raises(InferenceError, match="no memory"):
            await translator.translate(call("The cat.", vocabulary="language", target_language_code="de"), NOW)
        await translator.translate(of_language, NOW)


async def test_the_lists_of_the_latest_languages_are_kept_and_those_in_use(bundle: Bundle, engine: FakeEngine) -> None:
    model, latest = Model(with_lists(bundle, {"fr": FRENCH}), engine), _MAX_IDLE_LISTS
    vocabularies, direction = Vocabularies("full"), Direction(*EN_FR)

    def list_of(number: int) -> Candidates:
        """That of one more language: each array of ids is another."""
        with patch.object(VocabularyTables, "language", lambda *_: arrays[number]):
            found = vocabularies.of("language", model, direction).of_language
        assert found is not None
        return found

    arrays = [np.array([EOS_ID, 20 + number], np.int32) for number in range(latest + 2)]
    held, dropped = list_of(0), weakref.ref(list_of(1))
    assert list_of(1) is dropped()
    for number in range(2, latest + 2):
        assert dropped() is not None or number > latest
        list_of(number)
    assert dropped() is None
    assert list_of(0) is held


async def test_streams_and_exchanges_take_lists(lister: Translator, engine: FakeEngine) -> None:
    asked = StreamCall(TextInput("The cat."), config(vocabulary="language"))
    *_, last = [part async for part in lister.stream(asked, NOW)]
    assert isinstance(last, StreamOutcome)
    assert last.result.vocabulary == "language"
    assert ids_of(engine) == sorted({EOS_ID, *FRENCH})

    async def messages() -> AsyncIterator[TranslateConfig | ExchangeInput]:
        for vocabulary in ("shortlist", "language", None):
            yield config(vocabulary=vocabulary)
            yield ExchangeInput(str(vocabulary), TextInput("The cat."))

    async with aclosing(lister.exchange(messages(), NOW)) as outcomes:
        results = {outcome.id: outcome.result async for outcome in outcomes}
    told = {key: value.vocabulary for key, value in results.items() if isinstance(value, TranslatedText)}
    assert told == {"shortlist": "shortlist", "language": "language", "None": "full"}


# -- what there is not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "direction", "message"),
    [
        (
            "shortlist",
            ("en", "de"),
            "model tiny@0123456789ab has no shortlists for en-de; make them by `dragoman-export shortlist BUNDLE "
            "NEW_BUNDLE --sources en-de=FILE`",
        ),
        (
            "language",
            ("fr", "en"),
            "model tiny@0123456789ab has no list of tokens of en for fr-en; make them by `dragoman-export shortlist "
            "BUNDLE NEW_BUNDLE`",
        ),
    ],
)
async def test_a_list_that_there_is_not_is_refused(
    lister: Translator, engine: FakeEngine, vocabulary: Vocabulary, direction: tuple[str, str], message: str
) -> None:
    source, target = direction
    languages = {"source_language_code": source, "target_language_code": target}
    with pytest.raises(NoVocabularyListError) as caught:
        await lister.translate(call("The cat.", vocabulary=vocabulary, **languages), NOW)
    assert str(caught.value) == message
    with pytest.raises(NoVocabularyListError):
        await anext(lister.stream(StreamCall(TextInput("A"), config(vocabulary=vocabulary, **languages)), NOW))
    with pytest.raises(NoVocabularyListError):
        await exchanged(lister, "A", vocabulary=vocabulary, source_language_code=source, target_language_code=target)
    assert engine.requests == []


@pytest.mark.parametrize("vocabulary", ["language", "shortlist"])
async def test_a_model_may_have_no_lists_at_all(translator: Translator, vocabulary: Vocabulary) -> None:
    with pytest.raises(NoVocabularyListError, match="model tiny@0123456789ab has no "):
        await translator.translate(call("The cat.", vocabulary=vocabulary), NOW)


async def test_what_else_is_wrong_is_told_first(lister: Translator) -> None:
    with pytest.raises(InvalidInputError, match="beam_size"):
        await lister.translate(call("A", vocabulary="shortlist", target_language_code="de", beam_size=0), NOW)
    with pytest.raises(UnsupportedLanguageError):
        await lister.translate(call("A", vocabulary="shortlist", target_language_code="pt"), NOW)


async def test_a_vocabulary_that_the_server_does_not_know_is_refused(lister: Translator) -> None:
    with pytest.raises(InvalidInputError) as caught:
        await lister.translate(call("A", vocabulary=UnknownValue(9)), NOW)
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("options.vocabulary", "UNKNOWN_ENUM_VALUE")


# -- the default of the server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("default", "target", "asked", "used"),
    [
        ("shortlist", "fr", None, "shortlist"),
        ("shortlist", "fr", "language", "language"),
        ("shortlist", "fr", "full", "full"),
        ("shortlist", "de", None, "full"),
        ("language", "de", None, "language"),
        ("language", "de", "full", "full"),
    ],
)
async def test_the_default_holds_where_there_are_such_lists(
    listed: Bundle, engine: FakeEngine, default: Vocabulary, target: str, asked: Vocabulary | None, used: Vocabulary
) -> None:
    with translator_of(listed, engine, default) as translator:
        outcome = await translator.translate(call("The cat.", vocabulary=asked, target_language_code=target), NOW)
    assert translated(outcome).vocabulary == used
    assert (ids_of(engine) is None) == (used == "full")


async def test_scores_are_those_of_the_full_vocabulary(listed: Bundle, engine: FakeEngine) -> None:
    with translator_of(listed, engine, "shortlist") as translator:
        await translator.score(score_call(("The cat.", "Le chat."), ("The cat.", [7, 8, EOS_ID])), NOW)
    assert [request.candidates for request in engine.requests] == [None, None]


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def attender(tiny_bundles: dict[Precision, Bundle], engine: FakeEngine) -> Iterator[Attender]:
    bundle = tiny_bundles["fp32"]
    worker = AttentionWorker(AttentionPass(bundle, num_threads=1), max_waiting=100)
    with (
        Model(bundle, engine, worker) as model,
        closing(Attender(Registry.of(model), INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS)) as attender,
    ):
        yield attender


@pytest.mark.parametrize("vocabulary", ["language", "shortlist"])
async def test_attention_and_alignments_refuse_lists(attender: Attender, vocabulary: Vocabulary) -> None:
    pair, asked = Pair("the old dog", None), config(vocabulary=vocabulary, beam_size=0)
    found = []
    with pytest.raises(InvalidInputError) as caught:
        await anext(attender.attention(AttentionCall(pair, asked), NOW))
    found.append(caught.value.violations)
    with pytest.raises(InvalidInputError) as caught:
        await attender.align(AlignCall([pair], asked), NOW)
    found.append(caught.value.violations)
    for violations in found:
        assert [(v.field, v.reason) for v in violations] == [
            ("options.beam_size", "OUT_OF_RANGE"),
            ("options.vocabulary", "NOT_WITH_ATTENTION"),
        ]
        assert violations[1].description.startswith(f"is {vocabulary}, must be full or absent: ")


async def test_but_they_take_the_full_vocabulary(attender: Attender, engine: FakeEngine) -> None:
    await attender.align(AlignCall([Pair("the old dog", None)], config(vocabulary="full")), NOW)
    assert engine.requests[0].candidates is None


# -- two models --------------------------------------------------------------------------------------------------------


def across_two(bundle: Bundle, first_lists: bool, second_lists: bool) -> tuple[Leg, Leg]:
    first, second = Leg.of(bundle, "de", "en", str.upper), Leg.of(bundle, "en", "es", str.lower)
    legs = []
    for leg, has_lists, direction in (
        (first, first_lists, ("de", "en")),
        (second, second_lists, ("en", "es")),
    ):
        own = leg.model.bundle
        made = with_lists(own, {direction[1]: FRENCH}, {direction: {}}, FREQUENT) if has_lists else own
        legs.append(Leg(Model(made, leg.engine), leg.engine))
    return legs[0], legs[1]


@pytest.mark.parametrize("vocabulary", ["language", "shortlist"])
async def test_each_model_takes_its_own_lists(bundle: Bundle, vocabulary: Vocabulary) -> None:
    first, second = across_two(bundle, True, True)
    counted: list[object] = []
    registry = Registry.of(first.model, second.model)
    with closing(
        Translator(registry, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS, on_translated=lambda *seen: counted.append(seen))
    ) as translator:
        outcome = await translator.translate(across("Eins. Zwei.", vocabulary=vocabulary), NOW)
        assert outcome.pivot is not None
        assert (outcome.pivot.vocabulary, translated(outcome).vocabulary) == (vocabulary, vocabulary)
        _, result = await streamed(translator, stream_call("Eins.", vocabulary=vocabulary))
        assert result.vocabulary == vocabulary
    expected = {EOS_ID, *(FRENCH if vocabulary == "language" else FREQUENT)}
    assert ids_of(first.engine) == ids_of(second.engine) == sorted(expected)
    assert counted == [
        ("en-es", vocabulary, 2),
        ("de-en", vocabulary, 2),
        ("en-es", vocabulary, 1),
        ("de-en", vocabulary, 1),
    ]


@pytest.mark.parametrize(("first_lists", "second_lists"), [(False, True), (True, False)])
async def test_both_models_must_have_the_lists_that_are_asked_for(
    bundle: Bundle, first_lists: bool, second_lists: bool
) -> None:
    first, second = across_two(bundle, first_lists, second_lists)
    lacking, pair = ("de-en", "de-en") if not first_lists else ("en-es", "en-es")
    registry = Registry.of(first.model, second.model)
    with closing(Translator(registry, INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS, vocabulary="shortlist")) as translator:
        with pytest.raises(NoVocabularyListError, match=rf"model {lacking}@0123456789ab has no shortlists for {pair};"):
            await translator.translate(across("Eins.", vocabulary="shortlist"), NOW)
        outcome = await translator.translate(across("Eins."), NOW)
    assert outcome.pivot is not None
    used = {True: "shortlist", False: "full"}
    assert (outcome.pivot.vocabulary, translated(outcome).vocabulary) == (used[first_lists], used[second_lists])


# -- what is counted, and lists by themselves --------------------------------------------------------------------------


async def test_segments_are_counted_by_what_they_were_chosen_from(listed: Bundle, engine: FakeEngine) -> None:
    counted: list[object] = []
    with translator_of(listed, engine, "shortlist", counted) as translator:
        await translator.translate(call("The cat. A dog.", "The cat.", "x" * 3_001), NOW)
        asked = StreamCall(TextInput("A"), config(vocabulary="language"))
        assert [part async for part in translator.stream(asked, NOW)]
        await exchanged(translator, "One. Two.", source_language_code="en", target_language_code="de")
        await translator.score(score_call(("The cat.", "Le chat.")), NOW)
    assert counted == [
        ("tiny", "shortlist", 2),
        ("tiny", "shortlist", 1),
        ("tiny", "language", 1),
        ("tiny", "full", 2),
    ]


def test_ids_are_added_in_order_and_once() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        ids = np.unique(random.integers(0, 40, random.integers(0, 20)).astype(np.int32))
        others = random.integers(0, 45, random.integers(0, 8)).tolist()
        found = with_ids(ids, others)
        assert found.tolist() == sorted({*ids.tolist(), *others})
        assert found.dtype == np.int32
        assert (found is ids) == ({*others} <= {*ids.tolist()})
