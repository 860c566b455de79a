from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.evaluation import TestSet
from dragoman_export.languages import Pair, parse_pair, split_pair, standard_tag, standard_tags
from dragoman_export.train.command import parse_weight
from dragoman_export.train.corpus import CorpusFile


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
        (["cmn", "zho"], ["zh-x-cmn", "zh"]),
        (["cmn_Hans", "zho_Hans", "cmn_Hant"], ["zh-Hans-x-cmn-hans", "zh-Hans", "zh-Hant"]),
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
    assert parse_pair("en-pt-br", [("en", "pt-BR")]) == ("en", "pt-BR")
    assert parse_pair("en-pt-br", [("en-PT", "br")]) == ("en-PT", "br")
    with pytest.raises(ValueError, match="'en-pt-br' can be read in several ways; write en:pt-BR or en-PT:br"):
        parse_pair("en-pt-br", [("en", "fr")])


def test_a_direction_comes_back_as_the_model_has_it() -> None:
    assert parse_pair("en-fr", [("eng", "fra")]) == ("eng", "fra")
    assert parse_pair("klingon-tt2", [("klingon", "tt2")]) == ("klingon", "tt2")
    assert parse_pair("en-de", [("eng", "fra")]) == ("en", "de")


@pytest.mark.parametrize("text", ["", "-", ":", "en", "en-", "-fr", "en:", "en-klingon", "english-french"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form SOURCE-TARGET"):
        parse_pair(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("en-fr=pairs.tsv", (("en", "fr"), "pairs.tsv")),
        ("pt-BR-en=a-b/c=d.tsv", (("pt-BR", "en"), "a-b/c=d.tsv")),
        ("pt-BR:en=2", (("pt-BR", "en"), "2")),
    ],
)
def test_what_belongs_to_a_pair_stands_after_the_first_equals_sign(text: str, expected: tuple[Pair, str]) -> None:
    assert split_pair(text, "SOURCE-TARGET=FILE") == expected


def test_the_direction_before_the_equals_sign_is_the_models() -> None:
    assert split_pair("en-pt-br=x", "SOURCE-TARGET=FILE", [("en-PT", "br")]) == (("en-PT", "br"), "x")


@pytest.mark.parametrize("text", ["", "en-fr", "en-fr=", "pairs.tsv"])
def test_a_pair_of_which_nothing_is_said_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not of the form SOURCE-TARGET=FILE"):
        split_pair(text, "SOURCE-TARGET=FILE")


@pytest.mark.parametrize("text", ["=x", "en=x", "en-klingon=x"])
def test_what_stands_before_the_equals_sign_must_be_a_pair(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form SOURCE-TARGET, two BCP 47"):
        split_pair(text, "SOURCE-TARGET=FILE")


def test_the_languages_of_files_and_weights_are_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("Oi.\n", encoding="utf-8")
    expected = ("pt-BR", "en")
    assert CorpusFile.parse(f"pt-BR-en={file}").languages == expected
    test = TestSet.parse(f"pt-BR-en={file},{file}")
    assert (test.source_language, test.target_language) == expected
    assert parse_weight("pt-BR-en=2")[0] == expected
