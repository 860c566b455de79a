import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_export.train.augment import FRAMES, TRANSFORMS, Transform, augment, rename, renumber
from dragoman_export.train.copied import KINDS
from dragoman_export.train.corpus import TextPair

EN_FR, EN_DE, EN_ES = ("en", "fr"), ("en", "de"), ("en", "es")
SEEDS = st.integers(0, 10_000)

PAIRS: list[tuple[TextPair, tuple[str, str]]] = [
    (("Tom is here.", "Tom est ici."), EN_FR),
    (("Tom's dog likes Mary.", "Toms Hund mag Maria."), EN_DE),
    (("Tom and Mary live in Boston.", "Tom y María viven en Boston."), EN_ES),
    (("I saw Tom at 7 with 23 friends.", "J'ai vu Tom à 7 heures avec 23 amis."), EN_FR),
    (("There are 1200 seats in Paris.", "En París hay 1200 asientos."), EN_ES),
    (("Cannot open %s.", "%s kann nicht geöffnet werden."), EN_DE),
    (("{0} of {1} files", "{0} fichiers sur {1}"), EN_FR),
    (("We use LibreOffice.", "Wir benutzen LibreOffice."), EN_DE),
    (("Be quiet!", "¡Silencio!"), EN_ES),
    (("Wait...", "Attends..."), EN_FR),
    (("Straße means street.", "Straße heißt street."), EN_DE),
]


@given(st.sampled_from(sorted(TRANSFORMS, key=lambda transform: transform.__name__)), st.sampled_from(PAIRS), SEEDS)
def test_what_is_copied_stands_on_both_sides_as_often(
    transform: Transform, pair: tuple[TextPair, tuple[str, str]], seed: int
) -> None:
    variant = transform(random.Random(seed), *pair)
    if variant is None:
        return
    first, second = variant.pair
    for text in variant.copied:
        assert text
        assert first.count(text) >= 1
        assert second.count(text) >= 1
    assert "\n" not in first + second
    assert "\t" not in first + second
    assert variant == transform(random.Random(seed), *pair)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_changes_some_of_these_pairs(transform: Transform) -> None:
    changed = [transform(random.Random(seed), *pair) for pair in PAIRS for seed in range(5)]
    assert any(variant is not None and variant.pair not in [pair for pair, _ in PAIRS] for variant in changed)


def test_a_name_takes_its_genitive_along_in_each_language() -> None:
    variant = rename(random.Random(0), ("Tom's dog likes Mary.", "Toms Hund mag Maria."), EN_DE)
    assert variant is not None
    he, she = variant.copied
    assert variant.pair == (f"{he}'s dog likes {she}.", f"{he}s Hund mag {she}.")


def test_a_name_on_one_side_alone_is_left() -> None:
    assert rename(random.Random(0), ("Tom left.", "Il est parti."), EN_FR) is None
    assert rename(random.Random(0), ("Tomorrow.", "Tomate."), EN_FR) is None


@pytest.mark.parametrize(
    "pair",
    [
        ("I have 1 cat.", "J'ai 1 chat."),  # another number would want a plural
        ("It is 7.", "Il est 8."),
        ("It is 3.5.", "C'est 3,5."),
        ("Use $2 now.", "Utilisez $2 maintenant."),
        ("At 10:30.", "À 10:30."),
        ("The 2nd one.", "Le 2e."),
    ],
)
def test_numbers_that_are_part_of_something_are_left(pair: TextPair) -> None:
    assert renumber(random.Random(0), pair, EN_FR) is None


@given(SEEDS)
def test_equal_numbers_stay_equal(seed: int) -> None:
    variant = renumber(random.Random(seed), ("7 and 7 and 23", "7 et 23 et 7"), EN_FR)
    assert variant is not None
    first, second = (re.split(" and | et ", side) for side in variant.pair)
    assert first[0] == first[1] == second[0] == second[2]
    assert first[2] == second[1]


def test_the_frames_have_the_same_places_in_all_languages() -> None:
    assert len(FRAMES) > 40
    for frame in FRAMES:
        assert set(frame) == {"en", "fr", "de", "es"}
        places = [Counter(re.findall(r"\{(\w+)\}", template)) for template in frame.values()]
        assert all(place == places[0] for place in places), frame
        assert places[0].keys() <= KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS)
def test_text_to_be_copied_is_one_line_of_visible_text(kind: str, seed: int) -> None:
    text = KINDS[kind](random.Random(seed))
    assert text == " ".join(text.split())
    assert text


SHAPES: dict[str, Callable[[str], object]] = {
    "email": re.compile(r"[\w.]+@[\w.-]+\.\w+").fullmatch,
    "number": re.compile(r"[2-9]|[1-9]\d{1,6}").fullmatch,
    "time": re.compile(r"\d{1,2}:\d\d").fullmatch,
    "code": re.compile(r"`[^`]+`").fullmatch,
    "url": re.compile(r"(https?://|www\.)[\w.-]+(:\d+)?(/[\w-]+)*(\?\w+=\w+)?(#[\w-]+)?").fullmatch,
}


@pytest.mark.parametrize("kind", SHAPES)
@given(seed=SEEDS)
def test_made_up_text_looks_as_its_kind_does(kind: str, seed: int) -> None:
    text = KINDS[kind](random.Random(seed))
    assert SHAPES[kind](text), text


CORPUS = [pair for pair, languages in PAIRS if languages == EN_FR] * 20


def test_changed_pairs_come_after_the_others_in_the_wanted_number() -> None:
    found = augment(CORPUS, EN_FR, seed=1, share=0.5)
    assert len(CORPUS) < len(found) <= 1.5 * len(CORPUS) + len(TRANSFORMS)
    kept = found[: len(CORPUS)]
    for pair, other in zip(CORPUS, kept, strict=True):
        assert pair == other or "Tom" in pair[0]
    named = [pair for pair in kept if "est ici" in pair[1]]
    assert 0.2 < sum(pair == ("Tom is here.", "Tom est ici.") for pair in named) / len(named) < 0.8


def test_the_changes_depend_on_the_seed_alone() -> None:
    found = augment(CORPUS, EN_FR, seed=1, share=0.5)
    assert found == augment(CORPUS, EN_FR, seed=1, share=0.5)
    assert found != augment(CORPUS, EN_FR, seed=2, share=0.5)


def test_languages_without_frames_and_names_are_changed_in_other_ways() -> None:
    pairs = [("Olá, Tom.", "Ciao, Tom.")] * 50
    found = augment(pairs, ("pt", "it"), seed=1, share=1.0)
    assert found[:50] == pairs
    assert len(found) > 60
    assert all("Tom" in first or "TOM" in first or "tom" in first for first, _ in found)


def test_a_pair_is_not_repeated_without_end() -> None:
    pairs = [("nothing else", "rien d'autre")] * 500 + [("It is 7.", "Il est 7.")]
    found = augment(pairs, EN_FR, seed=1, share=2.0)[len(pairs) :]
    assert sum("Il est" in second for _, second in found) < 40
