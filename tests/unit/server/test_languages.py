"""Which direction of a model the language codes of a call stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle.languages import DirectionGroup, Languages, LanguageTable

MANY = Languages(LanguageTable.of((f"a{number}", "en") for number in range(100)))


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
    table = LanguageTable.of((name.split(">")[0], name.split(">")[1]) for name in directions)
    direction = Languages(table).find(source, target)
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
    languages = Languages(LanguageTable.of([("sr@latin", "en")]))
    assert languages.fault_of("SR@Latin") is None
    assert languages.find("SR@Latin", "en") == ("sr@latin", "en")


def test_of_many_directions_those_of_the_source_are_named_first() -> None:
    directions = [*((f"a{number}", "en") for number in range(100)), ("de", "fr"), ("de", "en")]
    languages = Languages(LanguageTable.of(directions))
    described = languages.described("de-AT")
    assert described.startswith("de-fr, de-en, a0-en, a1-en, ")
    assert described.endswith("a17-en and 82 more")


MANY_TO_MANY = LanguageTable(
    (DirectionGroup(tuple(f"a{n}" for n in range(200)), tuple(f"a{n}" for n in range(200))),),
    aliases={"eng_Latn": "a0", "zh-TW": "a1"},
)


def test_any_of_many_languages_to_any_of_them() -> None:
    assert len(MANY_TO_MANY) == len({*MANY_TO_MANY}) == 200 * 199
    assert ("a0", "a199") in MANY_TO_MANY
    assert ("a0", "a0") not in MANY_TO_MANY
    assert ("a0", "en") not in MANY_TO_MANY
    assert [*MANY_TO_MANY.starting_from(["a7"])][:2] == [("a7", "a0"), ("a7", "a1")]
    languages = Languages(MANY_TO_MANY)
    assert languages.find("A3", "a4-US") == ("a3", "a4")
    assert languages.find("a3", "a3") is None
    described = languages.described("a9")
    assert described.startswith("a9-a0, a9-a1, ")
    assert described.endswith("a9-a20 and 39780 more")


def test_of_many_languages_the_nearest_are_named_where_a_call_has_another() -> None:
    codes = ("en", "zh-Hans", "zh-Hant", "xh", *(f"a{n}" for n in range(50)))
    languages = Languages(LanguageTable((DirectionGroup(codes, codes),), aliases={"zho_Hant": "zh-Hant"}))
    assert languages.not_found("zho_Hunt", "en").startswith(
        "zho_Hunt is none of the 54 source languages; the nearest are zh-Hant,"
    )
    assert "xx is none of the 54 source languages; " in languages.not_found("xx", "yy")
    assert "; yy is none of the 54 target languages; " in languages.not_found("xx", "yy")
    assert languages.not_found("en", "en-US") == "source and target are both en"
    assert languages.not_found("zho_Hant", "zh-Hant-TW") == "source and target are both zh-Hant"
    few = Languages(LanguageTable.of([("en", "fr")]))
    assert few.not_found("xx", "en") == "it translates en-fr"


def test_only_languages_of_the_side_in_question_are_said_to_be_near() -> None:
    sources = tuple(f"a{n}" for n in range(30))
    languages = Languages(LanguageTable((DirectionGroup(sources, ("de",)),), aliases={"a1_XX": "a1"}))
    assert languages.not_found("a1", "a2") == "a2 is none of the 1 target languages; the nearest are de"
    assert languages.not_found("a1-x", "xx").endswith("xx is none of the 1 target languages; the nearest are de")
    assert "none of the 30 source languages; the nearest are a1, " in languages.not_found("a1XX", "de")


def test_languages_of_several_models_are_those_of_all() -> None:
    codes = tuple(f"a{n}" for n in range(30))
    many = LanguageTable((DirectionGroup(codes, codes),), aliases={"b": "a0", "c": "a1"})
    languages = Languages.of_all([Languages(LanguageTable.of([("b", "de")])), Languages(many)])
    assert languages.fault_of_pair("xx", "de").startswith("xx is none of the 31 source languages; the nearest are ")
    assert languages.fault_of_pair("c", "a1-US") == "source and target are both a1"
    assert languages.fault_of_pair("b", "a0") == ""  # the first has a language of that name
    assert Languages.of_all([Languages(LanguageTable.of([("en", "de")]))]).fault_of_pair("en", "en") == ""


def test_a_model_without_a_default_says_which_languages_it_has() -> None:
    assert Languages(LanguageTable.of([("en", "fr")])).required(is_source=False) == (
        "is required: the model has no default; it has fr"
    )
    described = Languages(MANY_TO_MANY).required(is_source=True)
    assert described.startswith("is required: the model has no default; it has a0, a1, a10, ")
    assert described.endswith(" and 180 more")


def test_a_language_is_translated_to_itself_where_a_group_names_nothing_else() -> None:
    table = LanguageTable((DirectionGroup(("en",), ("en",)), DirectionGroup(("en", "fr"), ("en",))))
    assert [*table] == [("en", "en"), ("fr", "en")]
    assert len(table) == 2


def test_other_names_of_a_language_are_found_whatever_their_letter_case() -> None:
    languages = Languages(MANY_TO_MANY)
    assert languages.find("ENG-latn", "zh_tw") == ("a0", "a1")
    assert languages.find("zh-TW-x-private", "eng_Latn") == ("a1", "a0")
    assert languages.find("zh", "eng_Latn") is None


GROUPS = st.builds(
    lambda sources, targets: DirectionGroup(tuple(sources), tuple(targets)),
    st.sets(st.sampled_from("abc"), min_size=1),
    st.sets(st.sampled_from("abc"), min_size=1),
)


@given(GROUPS, GROUPS)
def test_groups_overlap_where_they_share_a_direction(first: DirectionGroup, second: DirectionGroup) -> None:
    directions = [{*LanguageTable((group,))} for group in (first, second)]
    assert [len(group) for group in (first, second)] == [len(of_group) for of_group in directions]
    assert first.overlaps(second) == bool(directions[0] & directions[1])


CODES = st.lists(st.sampled_from(["en", "fr", "US", "Hant", "x", "a", "b1"]), min_size=1, max_size=5).map("-".join)


@given(st.lists(st.tuples(CODES, CODES), max_size=8), CODES, CODES)
def test_what_is_found_is_a_direction_whose_codes_begin_those_of_the_call(
    directions: list[tuple[str, str]], source: str, target: str
) -> None:
    found = Languages(LanguageTable.of(directions)).find(source, target)
    if (source, target) in directions:
        assert found is not None
        assert (found.source.lower(), found.target.lower()) == (source.lower(), target.lower())
    if found is not None:
        assert found in directions
        assert f"{source}-".lower().startswith(f"{found.source}-".lower())
        assert f"{target}-".lower().startswith(f"{found.target}-".lower())
