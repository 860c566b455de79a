import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.languages import Pair, aliases, parse_pair, standard_tag, standard_tags
from dragoman_server.bundle.languages import LanguageTable


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("fr", "fr"),
        ("fra", "fr"),
        ("deu", "de"),
        ("EN", "en"),
        ("pt_BR", "pt-BR"),
        ("pt_br", "pt-BR"),
        ("cmn_Hans", "zh-Hans"),
        ("zho_Hant", "zh-Hant"),
        ("eng_Latn", "en"),
        ("srp_Cyrl", "sr-Cyrl"),
        ("yue", "yue"),
        ("iw", "he"),
        ("mul", "mul"),
        ("x-klingon", "x-klingon"),
    ],
)
def test_a_code_becomes_the_shortest_tag(code: str, tag: str) -> None:
    assert standard_tag(code) == tag


@pytest.mark.parametrize("code", ["", "english", "ROMANCE", "en-QB", "5", "en fr", "xq", "é"])
def test_what_is_no_language_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="is not a BCP 47 language tag"):
        standard_tag(code)


@pytest.mark.parametrize(
    ("codes", "tags"),
    [
        (["fra", "deu"], ["fr", "de"]),
        (["pt_br", "pt_BR"], ["pt-BR-x-pt-br", "pt-BR"]),
        (["cmn", "zho"], ["cmn", "zh"]),
        (["cmn_Hans", "zho_Hans", "cmn_Hant"], ["cmn", "zh-Hans", "zh-Hant"]),
        (["srp_Cyrl", "kor_Hang", "uzb_Cyrl"], ["sr", "ko", "uz-Cyrl"]),
        (["aka_Latn", "twi_Latn"], ["ak", "tw"]),
        (["no", "nob", "nno"], ["no", "nb", "nn"]),
        (["two words", "fra"], ["two words", "fr"]),
    ],
)
def test_target_languages_of_a_model_stay_apart(codes: list[str], tags: list[str]) -> None:
    assert standard_tags(codes) == dict(zip(codes, tags, strict=True))
    assert standard_tags(reversed(codes)) == standard_tags(codes)


@given(
    st.sets(
        st.builds(
            lambda language, rest: language + rest,
            st.sampled_from(
                ["zh", "zho", "cmn", "yue", "ar", "ara", "arb", "pt", "por", "sr", "srp", "hbs", "iw", "he"]
            ),
            st.sampled_from(["", "_Hans", "_Hant", "_BR", "-BR", "_Latn", "-Latn-BR"]),
        )
    )
)
def test_no_two_target_languages_have_one_tag(codes: set[str]) -> None:
    tags = standard_tags(codes)
    assert tags.keys() == codes
    assert len({tag.lower() for tag in tags.values()}) == len(codes)


@pytest.mark.parametrize(
    ("codes", "others", "expected"),
    [
        (["fra", "deu"], ["en"], {"fra": "fr", "deu": "de"}),
        (["fra", "deu"], ["FRA"], {"deu": "de"}),
        # A code that reads as a tag of the model is that one's.
        (["pt_br", "pt_BR", "fr"], [], {}),
        (["cmn", "zho"], [], {"zho": "zh"}),
        (["nob", "nno"], [], {"nob": "nb", "nno": "nn", "no": "nb"}),
        (["pbt", "tgl"], [], {"tgl": "fil", "ps": "pbt", "tl": "fil"}),
        (["srp_Latn"], [], {"srp_Latn": "sr-Latn", "sr": "sr-Latn", "sh": "sr-Latn"}),
    ],
)
def test_the_models_own_codes_are_aliases(codes: list[str], others: list[str], expected: dict[str, str]) -> None:
    assert aliases(standard_tags(codes), others) == expected


def test_tags_that_do_not_begin_with_that_of_a_language_find_it_all_the_same() -> None:
    tags = standard_tags(["zho_Hans", "zho_Hant", "yue_Hant", "nob_Latn"])
    names = aliases(tags)
    assert {names[code] for code in ("zh", "cmn", "cmn-Hans")} == {"zh-Hans"}
    assert {names[code] for code in ("zh-TW", "zh-HK", "cmn-Hant")} == {"zh-Hant"}
    assert not {"zh-CN", "zh-SG", "zh-Hant"} & names.keys()
    assert names["no"] == "nb"


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("en-fr", ("en", "fr")),
        ("eng-fra", ("en", "fr")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("en-pt-BR", ("en", "pt-BR")),
        ("pt_BR-en", ("pt-BR", "en")),
        ("zh-Hans-zh-Hant", ("zh-Hans", "zh-Hant")),
        ("de-CH-fr", ("de-CH", "fr")),
        ("sr-Latn-en-US", ("sr-Latn", "en-US")),
        ("pt-BR:en", ("pt-BR", "en")),
        ("en:pt-br", ("en", "pt-BR")),
        ("en-PT:br", ("en-PT", "br")),
    ],
)
def test_a_pair_is_divided_where_there_are_two_languages(text: str, pair: Pair) -> None:
    assert parse_pair(text) == pair


def test_of_several_readings_the_models_own_is_taken() -> None:
    assert parse_pair("en-pt-br", LanguageTable.of([("en", "pt-BR")])) == ("en", "pt-BR")
    assert parse_pair("en-pt-br", LanguageTable.of([("en-PT", "br")])) == ("en-PT", "br")
    with pytest.raises(ValueError, match="'en-pt-br' can be read in several ways; write en:pt-BR or en-PT:br"):
        parse_pair("en-pt-br", LanguageTable.of([("en", "fr")]))


def test_a_direction_comes_back_as_the_model_has_it() -> None:
    assert parse_pair("en-fr", LanguageTable.of([("eng", "fra")])) == ("eng", "fra")
    assert parse_pair("klingon-tt2", LanguageTable.of([("klingon", "tt2")])) == ("klingon", "tt2")
    assert parse_pair("en-de", LanguageTable.of([("eng", "fra")])) == ("en", "de")


@pytest.mark.parametrize("text", ["", "-", ":", "en", "en-", "-fr", "en:", "en-klingon", "english-french"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form SOURCE-TARGET"):
        parse_pair(text)
