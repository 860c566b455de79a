"""Which model answers a call, where there are several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import DirectionGroup, LanguageTable
from dragoman_server.errors import ModelFailedError, ModelNotFoundError, UnsupportedLanguageError
from dragoman_server.registry.catalogue import Catalogue
from dragoman_server.registry.entry import Entry
from dragoman_server.registry.repository import Place
from support.fake_opener import manifest


def entry(name: str, *pairs: str, version: str = "1") -> Entry:
    directions = [(source, target) for source, _, target in (pair.partition(">") for pair in pairs)]
    place = Place(Path("/bundles", name, version), name, version)
    return Entry(place, name, version, Bundle(place.folder, manifest(name, directions), version))


def catalogue(*entries: Entry, pivot: str = "auto") -> Catalogue:
    found = Catalogue(pivot)
    for each in entries:
        found.put(each, None)
    return found


def routed(found: Catalogue, source: str, target: str, name: str = "") -> list[tuple[str, str, str]]:
    route = found.route(name, source, target)
    assert isinstance(route, tuple), route
    return [(leg.entry.resource_name, *leg.direction) for leg in route]


def test_the_first_model_of_a_pair_answers_unless_another_was_chosen() -> None:
    first, second = entry("a", "en>fr", "en>de"), entry("b", "en>fr")
    found = catalogue(first, second)
    assert routed(found, "en", "fr") == [("a@1", "en", "fr")]
    assert second.bundle is not None
    found.choose_model(second, second.bundle.manifest.languages)
    found.forget_routes()
    assert routed(found, "en", "fr") == [("b@1", "en", "fr")]
    assert routed(found, "en", "de") == [("a@1", "en", "de")]
    assert found.chosen_directions(second) == [("en", "fr")]


def test_the_model_with_the_nearest_languages_answers() -> None:
    found = catalogue(entry("a", "en>pt"), entry("b", "en>pt-BR"))
    assert routed(found, "en", "pt-BR") == [("b@1", "en", "pt-BR")]
    assert routed(found, "en-US", "pt") == [("a@1", "en", "pt")]
    assert routed(found, "en", "pt-PT") == [("a@1", "en", "pt")]


def test_a_name_stands_for_the_last_version_unless_another_was_chosen() -> None:
    old, new = entry("a", "en>fr", version="1"), entry("a", "en>fr", version="2")
    found = catalogue(old, new)
    assert routed(found, "en", "fr", "a") == routed(found, "en", "fr") == [("a@2", "en", "fr")]
    assert routed(found, "en", "fr", "a@1") == [("a@1", "en", "fr")]
    found.choose_version("a", old)
    found.forget_routes()
    assert routed(found, "en", "fr", "a") == routed(found, "en", "fr") == [("a@1", "en", "fr")]
    found.remove(old)
    found.forget_routes()
    assert routed(found, "en", "fr", "a") == [("a@2", "en", "fr")]


def test_what_replaces_an_entry_has_its_place_and_its_choice() -> None:
    old, other = entry("a", "en>fr", version="1"), entry("b", "en>fr")
    found = catalogue(old, entry("a", "en>fr", version="2"), other)
    found.choose_version("a", old)
    found.put(entry("a", "en>fr", version="1b"), old)
    assert routed(found, "en", "fr", "a") == [("a@1b", "en", "fr")]
    assert [each.resource_name for each in found.entries] == ["a@1b", "a@2", "b@1"]


@pytest.mark.parametrize(
    ("pivot", "models", "expected"),
    [
        ("auto", ["de>en", "en>es"], ["a@1", "b@1"]),
        ("auto", ["de>fr", "fr>es", "de>en", "en>es"], ["c@1", "d@1"]),  # English first
        ("auto", ["de>it", "it>es", "de>fr", "fr>es"], ["c@1", "d@1"]),  # else by the alphabet
        ("fr", ["de>fr", "fr>es", "de>en", "en>es"], ["a@1", "b@1"]),
        ("auto", ["de>en", "en>es", "de>es"], ["c@1"]),  # nobody goes a detour
        ("auto", ["de>pt-BR", "pt>es", "pt-BR>es"], ["a@1", "c@1"]),
    ],
)
def test_two_models_answer_what_none_does_alone(pivot: str, models: Sequence[str], expected: Sequence[str]) -> None:
    found = catalogue(*(entry(name, pair) for name, pair in zip("abcd", models, strict=False)), pivot=pivot)
    assert [leg[0] for leg in routed(found, "de-AT", "es")] == expected


@pytest.mark.parametrize(
    ("pivot", "models"),
    [("off", ["de>en", "en>es"]), ("fr", ["de>en", "en>es"]), ("auto", ["de>en", "fr>es"]), ("auto", ["en>es"])],
)
def test_else_the_pairs_there_are_are_named(pivot: str, models: Sequence[str]) -> None:
    found = catalogue(*(entry(name, pair) for name, pair in zip("ab", models, strict=False)), pivot=pivot)
    refusal = found.route("", "de", "es")
    assert isinstance(refusal, UnsupportedLanguageError)
    assert all(pair.replace(">", "-") in str(refusal) for pair in models)


def test_no_text_goes_to_another_language_and_back() -> None:
    for first, second in (("en>fr", "fr>en"), ("en-US>fr", "fr>en-GB")):
        found = catalogue(entry("a", first), entry("b", second))
        assert isinstance(found.route("", "en-US", "en-GB"), UnsupportedLanguageError)


def test_one_model_may_do_both() -> None:
    found = catalogue(entry("a", "fr>en", "en>de"))
    assert routed(found, "fr", "de") == [("a@1", "fr", "en"), ("a@1", "en", "de")]


def test_a_model_that_is_named_goes_through_no_other() -> None:
    found = catalogue(entry("a", "de>en"), entry("b", "en>es"))
    assert isinstance(found.route("a", "de", "es"), UnsupportedLanguageError)


def test_the_name_of_a_model_is_of_a_version_that_serves() -> None:
    good, broken = entry("a", "en>fr", version="1"), entry("a", "en>fr", version="2")
    broken.error = "damaged"
    found = catalogue(good, broken)
    assert found.named("a") is good
    assert found.named("a@2") is broken
    assert found.default_versions() == [good]


def test_a_model_that_failed_answers_nothing_and_says_why() -> None:
    broken = entry("a", "en>fr")
    broken.error = "weights.bin is damaged"
    found = catalogue(broken, entry("b", "en>fr"))
    assert routed(found, "en", "fr") == [("b@1", "en", "fr")]
    refusal = found.route("a", "en", "fr")
    assert isinstance(refusal, ModelFailedError)
    assert "weights.bin is damaged" in str(refusal)


def test_of_a_version_that_is_not_there_those_there_are_are_named() -> None:
    found = catalogue(entry("a", "en>fr", version="1"), entry("a", "en>fr", version="2"))
    assert str(found.route("a@3", "en", "fr")) == "there is no such version; model 'a' has 1, 2"


def test_of_many_models_some_are_named() -> None:
    found = catalogue(*(entry(f"m{number}", "en>fr") for number in range(15)))
    refusal = found.route("other", "en", "fr")
    assert isinstance(refusal, ModelNotFoundError)
    assert str(refusal).startswith("there is no such model; this server has 'm0', 'm1', ")
    assert str(refusal).endswith(" and 5 more")
    assert str(found.route("", "fr", "en")).endswith("; and 5 more")


def test_codes_that_callers_make_up_take_no_memory() -> None:
    found = catalogue(entry("a", "en>fr"))
    for number in range(2500):
        assert routed(found, f"en-{number}", "fr") == [("a@1", "en", "fr")]
    assert len(found._routes) <= 1000


def test_without_models_nothing_is_answered() -> None:
    assert str(catalogue().route("", "en", "fr")) == "this server has no model"
    assert str(catalogue().route("a", "en", "fr")) == "there is no such model; this server has none"


def entry_of_many(name: str, codes: Sequence[str], aliases: dict[str, str]) -> Entry:
    found = entry(name, "en>fr")
    assert found.bundle is not None
    table = LanguageTable((DirectionGroup(tuple(codes), tuple(codes)),), aliases=aliases)
    bundle = replace(found.bundle, manifest=replace(found.bundle.manifest, languages=table))
    return Entry(found.place, name, "1", bundle)


def test_a_model_of_many_languages_stands_beside_models_of_one_pair() -> None:
    codes = ["en", "fr", "zh-Hans", "zh-Hant", *(f"a{number}" for number in range(200))]
    nllb = entry_of_many("nllb", codes, {"eng_Latn": "en", "zh-TW": "zh-Hant", "zh": "zh-Hans"})
    found = catalogue(entry("opus-en-fr", "en>fr"), nllb, entry("opus-en-zh", "en>zh"))
    assert routed(found, "en", "fr") == [("opus-en-fr@1", "en", "fr")]
    assert routed(found, "fr", "en") == [("nllb@1", "fr", "en")]
    assert routed(found, "en", "zh-TW") == [("nllb@1", "en", "zh-Hant")]
    assert routed(found, "eng_Latn", "fr") == [("nllb@1", "en", "fr")]
    assert routed(found, "a7", "a8-XX") == [("nllb@1", "a7", "a8")]
    for source, target, fault in (
        ("en", "a1111", "a1111 is none of the 205 target languages; the nearest are a111, "),
        ("en-US", "eng-Latn", "source and target are both en"),
        ("xx", "fr", "xx is none of the 204 source languages; "),
    ):
        refusal = found.route("", source, target)
        assert isinstance(refusal, UnsupportedLanguageError)
        assert f"no model translates {source}-{target}; {fault}" in str(refusal)


def test_no_way_is_looked_for_where_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalogue(*(entry_of_many(name, [f"a{number}" for number in range(200)], {}) for name in "abc"))
    monkeypatch.setattr(found, "_through_another", lambda *_: pytest.fail("a pivot was looked for"))
    for source, target in (("a1", "a1"), ("a1", "xx"), ("xx", "a1")):
        assert isinstance(found.route("", source, target), UnsupportedLanguageError)
