"""What stands around the ids of a text, for every family that is served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle.framing import Framing, FramingTemplate, decoder_inputs
from dragoman_server.bundle.languages import DirectionGroup, LanguageTable

EOS = 2
TOKEN_IDS = {"en": (90,), "fr": (91,), "pt-BR": (92, 93)}
TEMPLATES = {
    "Marian for one pair": (FramingTemplate((), (EOS,), ()), Framing((), (EOS,), (), (EOS,))),
    "Marian for several targets": (FramingTemplate(("target",), (EOS,), ()), Framing((91,), (EOS,), (), (EOS,))),
    "M2M-100, NLLB, mBART-50": (
        FramingTemplate(("source",), (EOS,), ("target",)),
        Framing((90,), (EOS,), (91,), (EOS,)),
    ),
    "mBART-25": (FramingTemplate((), (EOS, "source"), ()), Framing((), (EOS, 90), (), (EOS,))),
    "BART": (FramingTemplate((0,), (EOS,), (0,)), Framing((0,), (EOS,), (0,), (EOS,))),
    "T5": (
        FramingTemplate((7, "source", 8, "target", 9), (EOS,), ()),
        Framing((7, 90, 8, 91, 9), (EOS,), (), (EOS,)),
    ),
}


@pytest.mark.parametrize(("template", "framing"), TEMPLATES.values(), ids=TEMPLATES)
def test_every_family_has_its_framing(template: FramingTemplate, framing: Framing) -> None:
    assert template.of(("en", "fr"), TOKEN_IDS, EOS) == framing


IDS = st.lists(st.integers(3, 12), max_size=5).map(tuple)
FRAMINGS = st.builds(Framing, IDS, st.builds(lambda ids: (EOS, *ids), IDS), IDS, st.just((EOS,)))


@given(FRAMINGS, IDS, IDS)
def test_a_text_is_found_in_its_frame(framing: Framing, source: tuple[int, ...], target: tuple[int, ...]) -> None:
    source_ids, target_ids = framing.frame(source), framing.frame_target(target)
    assert len(source_ids) == len(source) + framing.num_specials
    assert tuple(source_ids[place] for place in framing.text_range(source_ids)) == source
    assert tuple(target_ids[place] for place in framing.target_text_range(target_ids)) == target
    assert framing.is_ended(target_ids)
    assert framing.frames(source_ids, target_ids)


@given(FRAMINGS, IDS, st.integers(0, 10))
def test_a_target_may_be_cut_off_anywhere(framing: Framing, target: tuple[int, ...], length: int) -> None:
    whole = (*framing.target_prefix, *target)
    cut = whole[:length]
    assert not framing.is_ended(cut)
    assert tuple(cut[place] for place in framing.target_text_range(cut)) == whole[len(framing.target_prefix) : length]


@pytest.mark.parametrize(
    ("source_ids", "target_ids"),
    [
        ((91, 5, EOS), (91, EOS)),
        ((90, 5), (91, EOS)),
        ((90,), (91, EOS)),
        ((EOS,), (91, EOS)),
        ((90, 5, EOS), (90, EOS)),
    ],
)
def test_what_is_framed_otherwise_is_seen(source_ids: tuple[int, ...], target_ids: tuple[int, ...]) -> None:
    framing = Framing((90,), (EOS,), (91,), (EOS,))
    assert framing.frames((90, EOS), (91, EOS))
    assert not framing.frames(source_ids, target_ids)


def test_the_decoder_reads_its_start_and_all_but_the_last() -> None:
    assert decoder_inputs(1, (5, 6, EOS)) == [1, 5, 6]
    assert decoder_inputs(1, ()) == [1]


def test_room_is_made_for_the_longest_language() -> None:
    languages = LanguageTable((DirectionGroup(("en", "fr"), ("fr", "pt-BR")),), TOKEN_IDS)
    assert FramingTemplate((7, "source", "target"), (EOS,), ("target",)).max_specials(languages) == (1 + 1 + 2 + 1, 2)
    assert FramingTemplate((), (EOS,), ()).max_specials(languages) == (1, 0)
