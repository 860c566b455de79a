"""Which tokens a language can use."""

import dataclasses

import pytest

from dragoman_export.shortlist.language_lists import LanguageLists, script_names, script_of
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Manifest, Precision
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from support.piece_tokenizers import EOS_ID, UNK_ID, write_kind


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """NLLB's kind, with pieces of Latin, Cyrillic, Japanese, Arabic and Devanagari."""
    folder = tmp_path_factory.mktemp("pieces")
    write_kind("pieces", folder)
    return load_tokenizer("pieces", folder)


@pytest.fixture(scope="module")
def lists(tiny_bundles: dict[Precision, Bundle], tokenizer: TextCodec) -> LanguageLists:
    manifest: Manifest = tiny_bundles["fp32"].manifest
    architecture = dataclasses.replace(manifest.architecture, vocabulary_size=tokenizer.vocabulary.size)
    return LanguageLists(dataclasses.replace(manifest, architecture=architecture, eos_token_id=EOS_ID), tokenizer)


def of_scripts(lists: LanguageLists, language: str) -> set[int]:
    found = lists.by_scripts(language)
    assert found is not None
    return {*found.tolist()}


@pytest.mark.parametrize(
    ("language", "own", "foreign"),
    [
        ("fr", "Le vieux chat dort sur ma chaise, où est la forêt ?", "Кошка"),
        ("ru", "Кошка спит на стуле.", "猫は椅子"),
        ("uk", "Кошка", "नमस्ते"),
        ("ja", "猫は椅子の上で寝ています。", "Кошка"),
        ("zh-Hant", "猫椅子", "寝ています"),
        ("ar", "مرحبا بالعالم", "Кошка"),
        ("fa", "مرحبا", "猫"),
        ("hi", "नमस्ते दुनिया", "مرحبا"),
    ],
)
def test_a_language_has_the_tokens_of_its_scripts(
    lists: LanguageLists, tokenizer: TextCodec, language: str, own: str, foreign: str
) -> None:
    found = of_scripts(lists, language)
    space = tokenizer.encode_target(".")[0]
    assert {*tokenizer.encode_target(own)} <= found
    assert not ({*tokenizer.encode_target(foreign)} - {space}) <= found
    # What all languages have.
    assert {EOS_ID, UNK_ID, *tokenizer.encode_target("LX > 0 a_b / d")} <= found


def test_other_controls_are_left_out(lists: LanguageLists, tokenizer: TextCodec) -> None:
    controls = {i for i in range(tokenizer.vocabulary.size) if tokenizer.is_control(i)}
    assert of_scripts(lists, "fr") & controls == {EOS_ID, UNK_ID}


def test_text_leaves_out_what_it_has_not_but_for_single_characters(lists: LanguageLists, tokenizer: TextCodec) -> None:
    text = "Le vieux chat dort sur ma chaise Кошка"
    found = {*lists.by_text("fr", [text]).ids.tolist()}
    assert {*tokenizer.encode_target(text)} <= found
    able = of_scripts(lists, "fr")
    rest = able - found
    assert rest
    assert all(len(tokenizer.decode([token]).strip()) > 1 for token in rest)
    singles = {t for t in able if len(tokenizer.decode([t]).strip()) == 1}
    assert singles <= found


def test_of_more_text_a_list_lacks_as_much_as_its_own_has_once(lists: LanguageLists, tokenizer: TextCodec) -> None:
    twice = ["vieux chat dort"] * 2
    assert len(tokenizer.encode_target(twice[0])) == 3
    assert lists.by_text("fr", twice).missing_share == 0
    assert lists.by_text("fr", [*twice, "vieux chaise"]).missing_share == 1 / 8
    assert lists.by_text("fr", [*twice, "vieux ."]).missing_share == 0  # single characters are in all lists


@pytest.mark.parametrize("language", ["art-x-mine", "und-Zsye", "not a language"])
def test_a_language_of_no_known_script_has_no_list(lists: LanguageLists, language: str) -> None:
    assert lists.by_scripts(language) is None
    assert script_names(language) == frozenset()


def test_a_models_own_code_may_say_the_script(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["fp32"]
    languages = dataclasses.replace(bundle.manifest.languages, aliases={"art_Latn": "art"})
    lists = LanguageLists(dataclasses.replace(bundle.manifest, languages=languages), bundle.tokenizer)
    assert lists.by_scripts("art") is not None


@pytest.mark.parametrize(
    ("characters", "script"),
    [
        ("éŁß", "LATIN"),
        ("жЇ", "CYRILLIC"),
        ("猫", "CJK"),
        ("は", "HIRAGANA"),
        ("カー", "KATAKANA"),
        ("안", "HANGUL"),
        ("ม", "THAI"),
        ("ლ", "GEORGIAN"),
        ("አ", "ETHIOPIC"),
        ("aZ09?", ""),
        ("—«…€。\u0301😀", ""),
    ],
)
def test_the_script_of_a_character(characters: str, script: str) -> None:
    for character in characters:
        assert script_of(character) == script, character


@pytest.mark.parametrize(
    ("language", "names"),
    [
        ("ko", {"HANGUL", "CJK"}),
        ("sr", {"CYRILLIC"}),
        ("sr-Latn", {"LATIN"}),
        ("pt-BR", {"LATIN"}),
        ("am", {"ETHIOPIC"}),
        ("zh", {"CJK", "BOPOMOFO"}),
    ],
)
def test_the_scripts_of_a_language(language: str, names: set[str]) -> None:
    assert script_names(language) == names


def test_bytes_and_pieces_of_bytes_are_in_every_list(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["fp32"]
    found = LanguageLists(bundle.manifest, bundle.tokenizer).by_text("fr", [])
    assert found.missing_share == 0
    names = bundle.tokenizer.pieces(found.ids.tolist())
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= {*names}
