import dataclasses
import json
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dragoman import (
    Determinism,
    LanguageGroup,
    LanguagePairs,
    ModelDefaults,
    ModelInfo,
    ModelLimits,
    ModelMemory,
    ModelState,
    NotFoundError,
    ParityCertificate,
    ShortlistFacts,
    VocabularyLists,
)
from dragoman.v1 import models_pb2 as pb
from support.fake_models import LOAD_TIME, failed, group, ready
from support.fake_server import FakeServer

Call = Callable[..., Any]


def names(models: list[ModelInfo]) -> list[str]:
    return [model.full_name for model in models]


def test_all_models_are_listed_in_the_order_of_the_server(server: FakeServer, call: Call) -> None:
    server.models.models = [ready("b", version="2"), ready("a", version="1"), ready("b", version="1")]
    assert names(call("models")) == ["b@2", "a@1", "b@1"]
    assert server.models.requests == [pb.ListModelsRequest()]


def test_a_server_may_have_no_models(server: FakeServer, call: Call) -> None:
    server.models.models = []
    assert call("models") == []
    assert call("languages") == {}


def test_every_field_of_a_model_is_converted(server: FakeServer, call: Call) -> None:
    server.models.models = [ready("en-fr", group("en", "fr de"), group("fr", "en"))]
    server.models.models[0].error = "damaged"
    model = call("model", "en-fr")

    assert model == ModelInfo(
        name="en-fr",
        version="0123456789ab",
        state=ModelState.READY,
        error="damaged",
        is_default_version=True,
        languages=(LanguageGroup(("en",), ("fr", "de")), LanguageGroup(("fr",), ("en",))),
        default_for=(LanguageGroup(("en",), ("fr", "de")),),
        precision="int8",
        device="cpu",
        execution_provider="CPUExecutionProvider",
        limits=ModelLimits(max_source_tokens=512, max_target_tokens=500, segment_tokens=128, max_beam_size=64),
        parity=ParityCertificate(
            max_logprob_difference=0.25,
            logprob_tolerance=0.5,
            token_agreement=0.975,
            num_sentences=200,
            replayed_logprob_difference=0.125,
        ),
        determinism=Determinism.BITWISE,
        has_attention=True,
        defaults=ModelDefaults(
            beam_size=4,
            length_penalty=1.5,
            min_target_tokens=2,
            repetition_penalty=1.2,
            no_repeat_ngram_size=3,
            vocabulary="language",
        ),
        memory=ModelMemory(weights_bytes=80 << 20, kv_cache_bytes=5 << 20, max_kv_cache_bytes=3 << 30),
        load_time=LOAD_TIME,
        active_calls=3,
        vocabulary_lists=VocabularyLists(
            languages=("fr", "en"),
            shortlists=(
                ShortlistFacts(
                    source="en",
                    target="fr",
                    share_identical=0.9875,
                    bleu_difference=-0.0625,
                    mean_length=312.5,
                    p95_length=640.0,
                    num_sentences=1000,
                    per_token=100,
                ),
                ShortlistFacts(
                    source="fr",
                    target="en",
                    share_identical=1.0,
                    bleu_difference=None,
                    mean_length=250.0,
                    p95_length=400.0,
                    num_sentences=500,
                    per_token=50,
                ),
            ),
        ),
    )
    assert model.load_time is not None
    assert model.load_time.utcoffset() == timedelta(0)
    # As many fields as the contract has, so that none of a later one is forgotten here.
    assert len(dataclasses.fields(model)) == len(pb.Model.DESCRIPTOR.fields)


def test_what_a_bundle_does_not_tell_is_absent(server: FakeServer, call: Call) -> None:
    server.models.models = [failed("broken", "no manifest.json")]
    model = call("model", "broken")

    assert (model.state, model.error) == (ModelState.FAILED, "no manifest.json")
    assert model.languages == model.default_for == ()
    assert model.limits is model.parity is model.defaults is model.memory is model.load_time is None
    assert model.vocabulary_lists is None
    assert model.determinism is Determinism.UNSPECIFIED
    assert model.precision == model.device == ""


def test_a_model_that_is_not_in_memory_was_not_replayed(server: FakeServer, call: Call) -> None:
    server.models.models[0].parity.ClearField("replayed_logprob_difference")
    parity = call("model", "en-fr").parity
    assert (parity.max_logprob_difference, parity.replayed_logprob_difference) == (0.25, None)


def test_a_model_is_asked_for_by_its_name(server: FakeServer, call: Call) -> None:
    assert call("model", "many@0123456789ab").name == "many"
    with pytest.raises(NotFoundError, match="There is no model other"):
        call("model", "other")


def test_a_model_prints_as_its_name_and_version(call: Call) -> None:
    model = call("model", "many")
    assert f"{model}" == model.full_name == "many@0123456789ab"
    assert repr(model) == "ModelInfo(name='many', version='0123456789ab', state='ready', num_pairs=4)"
    assert str(dataclasses.replace(model, version="")) == "many"


def test_a_model_can_be_hashed_and_written_as_json(call: Call) -> None:
    first, second = call("model", "many"), call("model", "many")
    assert first == second
    assert hash(first) == hash(second)
    value = json.loads(json.dumps(dataclasses.asdict(first) | {"load_time": None}))
    assert (value["state"], value["determinism"]) == ("ready", "bitwise")


@pytest.mark.parametrize(
    ("enum", "values", "prefix"),
    [(ModelState, pb.ModelState, "MODEL_STATE"), (Determinism, pb.Determinism, "DETERMINISM")],
)
def test_every_value_of_an_enum_is_known(enum: Any, values: Any, prefix: str) -> None:
    assert {f"{prefix}_{value.name}" for value in enum} == set(values.keys())


@pytest.mark.parametrize("state", ModelState)
def test_every_state_is_converted(server: FakeServer, call: Call, state: ModelState) -> None:
    server.models.models[0].state = pb.ModelState.Value(f"MODEL_STATE_{state.name}")
    assert call("model", "en-fr").state is state


def test_values_of_the_future_are_unspecified(server: FakeServer, call: Call) -> None:
    future = pb.Model.FromString(b"\x0a\x01a\x18\x63\x60\x63")  # state = determinism = 99
    assert (future.name, future.state, future.determinism) == ("a", 99, 99)
    server.models.models = [future]
    [model] = call("models")
    assert (model.state, model.determinism) == (ModelState.UNSPECIFIED, Determinism.UNSPECIFIED)


GROUPS = [
    (("en",), ("fr",), [("en", "fr")]),
    (("en",), ("en",), [("en", "en")]),
    (("en",), ("en", "fr"), [("en", "fr")]),
    (("en", "fr"), ("fr", "en"), [("en", "fr"), ("fr", "en")]),
    (("en", "fr"), ("de",), [("en", "de"), ("fr", "de")]),
    ((), ("de",), []),
]


@pytest.mark.parametrize(("sources", "targets", "pairs"), GROUPS)
def test_a_group_has_each_source_with_each_other_target(
    sources: tuple[str, ...], targets: tuple[str, ...], pairs: list[tuple[str, str]]
) -> None:
    languages = LanguageGroup(sources, targets)
    assert list(languages.pairs()) == pairs
    assert languages.num_pairs == len(pairs)


def test_languages_of_200_are_not_multiplied_out() -> None:
    codes = tuple(f"a{n:03}" for n in range(200))
    pairs = LanguagePairs(
        [LanguageGroup(codes, codes), LanguageGroup(("en",), ("a000", "fr")), LanguageGroup((), ("x",))]
    )
    assert sys.getsizeof(pairs) < 1000
    assert pickle.loads(pickle.dumps(pairs)) == pairs
    assert len(pairs) == 201
    assert list(pairs) == [*codes, "en"]
    assert pairs["a007"] == tuple(code for code in codes if code != "a007")
    assert pairs["en"] == ("a000", "fr")
    assert ("fr" in pairs, "x" in pairs, None in pairs) == (False, False, False)
    assert pairs.get("fr") is None
    assert repr(pairs) == "<LanguagePairs: 201 sources>"
    assert sum(map(len, pairs.values())) == 200 * 199 + 2


def test_languages_of_a_few_are_shown() -> None:
    pairs = LanguagePairs([LanguageGroup(("fr", "en"), ("en", "fr")), LanguageGroup(("pt",), ("pt",))])
    assert repr(pairs) == "{'en': ('fr',), 'fr': ('en',), 'pt': ('pt',)}"
    assert pairs == {"en": ("fr",), "fr": ("en",), "pt": ("pt",)}
    assert repr(LanguagePairs([])) == "{}"


def test_languages_are_those_of_all_models(server: FakeServer, call: Call) -> None:
    server.models.models = [
        ready("a", group("fr", "en"), group("en", "it fr")),
        ready("b", group("en", "fr de"), group("pt", "pt")),
        ready("c", group("de en", "en de")),
    ]
    languages = call("languages")

    assert languages == {"de": ("en",), "en": ("de", "fr", "it"), "fr": ("en",), "pt": ("pt",)}
    assert list(languages) == sorted(languages)
    assert server.models.requests == [pb.ListModelsRequest()]


@pytest.mark.parametrize(
    ("state", "takes_calls"),
    [("READY", True), ("LISTED", True), ("LOADING", True), ("DRAINING", False), ("FAILED", False)],
)
def test_languages_are_those_of_models_that_take_calls(
    server: FakeServer, call: Call, state: str, takes_calls: bool
) -> None:
    other = ready("a", group("en", "fr de"))
    other.state = pb.ModelState.Value(f"MODEL_STATE_{state}")
    server.models.models = [ready("b", group("en", "fr")), other]
    assert call("languages") == {"en": ("de", "fr") if takes_calls else ("fr",)}
