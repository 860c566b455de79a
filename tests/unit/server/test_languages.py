"""Which direction of a model the language codes of a call stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle.languages import Languages

MANY = Languages((f"a{number}", "en") for number in range(100))


@pytest.mark.parametrize(
    ("directions", "source", "target", "found"),
    [
        (["en>fr"], "en", "fr", "en>fr"),
        (["en>fr"], "en-US", "fr-FR", "en>fr"),
        (["en>fr"], "EN-us", "FR_fr", "en>fr"),
        (["en>pt_BR"], "en", "pt-br", "en>pt_BR"),
        (["en>pt_BR"], "en", "pt_BR", "en>pt_BR"),
        (["en>zh-Hant", "zh>fr"], "en", "zh-Hant-TW", "en>zh-Hant"),
        # A singleton goes with the subtag that it opened.
        (["zh>en"], "zh-x-private", "en", "zh>en"),
        (["zh-x>en"], "zh-x-private", "en", None),
        (["zh-Hant-CN>en"], "zh-Hant-CN-x-private1-private2", "en", "zh-Hant-CN>en"),
        # Nothing is guessed beyond the look-up.
        (["en>pt-BR"], "en", "pt", None),
        (["en>fr"], "eng", "fra", None),
        (["en>fr", "fr>en"], "en-US", "en-GB", None),
        (["en>fr", "fr>en"], "fr", "fr", None),
        # The nearest source counts first, then the nearest target.
        (["en>fr", "en-US>fr", "en>fr-CA"], "en-US", "fr-CA", "en-US>fr"),
        (["en>fr", "en>fr-CA"], "en-US", "fr-CA", "en>fr-CA"),
        (["en-US>de", "en>fr"], "en-US", "fr-CA", "en>fr"),
    ],
)
def test_a_direction_is_looked_up_jointly(directions: list[str], source: str, target: str, found: str | None) -> None:
    direction = Languages((name.split(">")[0], name.split(">")[1]) for name in directions).find(source, target)
    assert (direction and ">".join(direction)) == found


@pytest.mark.parametrize(
    "code", ["en", "x", "pt-BR", "pt_BR", "zh-Hant-CN-x-private1-private2", "cmn_Hans", "a-" * 31 + "a"]
)
def test_what_may_be_a_code_has_no_fault(code: str) -> None:
    assert MANY.fault_of(code) is None


@pytest.mark.parametrize(
    "code",
    [
        "",
        " ",
        "e n",
        "en ",
        "en-",
        "-",
        "-en",
        "en--US",
        "en\n",
        "en\0",
        "\U0001f600",
        "fr\u0301",
        "ｅｎ",
        "e;n",
        "../en",
        "٣",
    ],
)
def test_what_is_no_code_is_told_without_repeating_it(code: str) -> None:
    assert MANY.fault_of(code) == 'is not a BCP 47 language tag, such as "en" or "pt-BR"'


def test_a_code_has_a_largest_length() -> None:
    assert MANY.fault_of("a" * 65) == "has 65 characters, may have at most 64"
    assert MANY.fault_of("a-" * 500_000) == "has 1000000 characters, may have at most 64"


def test_a_model_is_reached_by_its_own_codes_whatever_they_are() -> None:
    languages = Languages([("sr@latin", "en")])
    assert languages.fault_of("SR@Latin") is None
    assert languages.find("SR@Latin", "en") == ("sr@latin", "en")


def test_of_many_directions_those_of_the_source_are_named_first() -> None:
    languages = Languages([*((f"a{number}", "en") for number in range(100)), ("de", "fr"), ("de", "en")])
    described = languages.described("de-AT")
    assert described.startswith("de-fr, de-en, a0-en, a1-en, ")
    assert described.endswith("a17-en and 82 more")


CODES = st.lists(st.sampled_from(["en", "fr", "US", "Hant", "x", "a", "b1"]), min_size=1, max_size=5).map("-".join)


@given(st.lists(st.tuples(CODES, CODES), max_size=8), CODES, CODES)
def test_what_is_found_is_a_direction_whose_codes_begin_those_of_the_call(
    directions: list[tuple[str, str]], source: str, target: str
) -> None:
    found = Languages(directions).find(source, target)
    if (source, target) in directions:
        assert found is not None
        assert (found.source.lower(), found.target.lower()) == (source.lower(), target.lower())
    if found is not None:
        assert found in directions
        assert f"{source}-".lower().startswith(f"{found.source}-".lower())
        assert f"{target}-".lower().startswith(f"{found.target}-".lower())
