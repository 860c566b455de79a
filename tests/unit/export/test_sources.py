import dataclasses
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from dragoman_export.bundle.sources import (
    languages_without_samples,
    measured_sources,
    num_compared,
    read_sources,
    sample_sentences,
    sample_sources,
)
from dragoman_export.checkpoint import Checkpoint, blank_model
from dragoman_export.dimensions import Dimensions
from dragoman_export.greedy import Source
from dragoman_export.languages import standard_tag
from dragoman_export.text_files import CorpusFile
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction, DirectionGroup, LanguageTable
from dragoman_server.bundle.manifest import Golden, Precision

SAMPLES = {
    path.name.removesuffix(".txt"): path
    for path in (resources.files("dragoman_export") / "samples").iterdir()
    if path.name.endswith(".txt")
}


def translating(checkpoint: Checkpoint, *directions: tuple[str, str]) -> Checkpoint:
    token_ids = {target: checkpoint.config.languages.token_ids["fr"] for _, target in directions}
    config = dataclasses.replace(checkpoint.config, languages=LanguageTable.of(directions, token_ids))
    return dataclasses.replace(checkpoint, config=config)


@pytest.mark.parametrize("language", sorted(SAMPLES))
def test_samples_are_many_different_sentences(language: str) -> None:
    assert standard_tag(language) == language
    sentences = SAMPLES[language].read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len(set(sentences)) == len(sentences) >= 16
    assert len(sentences) % 7  # so that directions begin with different ones
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    assert max(map(len, sentences)) > 1.3 * min(map(len, sentences))


def test_the_languages_that_many_models_read_have_a_few_dozen_samples() -> None:
    two_letters = (
        "af ar az be bg bn bs ca cs da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka kk kn ko lt lv "
        "mk ml mr ms nb ne nl pa pl pt ro ru sk sl sq sr sv sw ta te th tr uk ur uz vi zh"
    )
    most_served = [*two_letters.split(), "fil", "sr-Latn", "zh-Hant"]
    assert len(most_served) >= 60
    assert all(len(sample_sentences(language)) >= 24 for language in most_served)


def test_the_samples_are_small() -> None:
    assert sum(len(path.read_bytes()) for path in SAMPLES.values()) < 500_000


def test_the_licence_of_the_samples_is_noted_beside_them() -> None:
    note = (resources.files("dragoman_export") / "samples" / "README.md").read_text(encoding="utf-8")
    assert "CC0" in note
    assert "public domain" in note


@pytest.mark.parametrize(
    ("language", "samples"),
    [
        ("en", "en"),
        ("eng", "en"),
        ("en-GB", "en"),
        ("pt-BR", "pt"),
        ("zh-Hans", "zh"),
        ("zh-CN", "zh"),
        ("zh-TW", "zh-Hant"),
        ("zh-Hant", "zh-Hant"),
        ("sr-Latn", "sr-Latn"),
        ("sr-Cyrl", "sr"),
        ("no", "nb"),
        ("tl", "fil"),
        ("arb", "ar"),
        ("ko-Hang", "ko"),
        ("fa-AF", "fa"),
        ("hi-Latn", None),
        ("uk-Latn", None),
        ("ary", None),
        ("nso", None),
        ("mul", None),
        ("no such language", None),
    ],
)
def test_samples_are_of_the_language_and_in_its_script(language: str, samples: str | None) -> None:
    expected = SAMPLES[samples].read_text(encoding="utf-8").splitlines() if samples else []
    assert list(sample_sentences(language)) == expected


def test_directions_take_turns_and_begin_with_different_samples(tiny_checkpoint: Checkpoint) -> None:
    sources = sample_sources(tiny_checkpoint, 200)
    tags = tiny_checkpoint.config.languages.token_ids
    assert [source.ids[:1] for source in sources[:4]] == [tags["de"], tags["fr"], tags["de"], tags["fr"]]
    assert [source.direction for source in sources[:2]] == [("en", "de"), ("en", "fr")]
    assert len(set(sources)) == len(sources) > 100
    assert sources[0].ids[1:] != sources[1].ids[1:]
    assert all(source.ids[-1] == tiny_checkpoint.config.eos_token_id for source in sources)
    assert sample_sources(tiny_checkpoint, 5) == sources[:5]


def test_of_any_languages_to_any_all_are_among_the_first(tiny_checkpoint: Checkpoint) -> None:
    codes = tuple(sorted(SAMPLES))[::3]
    token_ids: dict[str, tuple[int, ...]] = {code: (number,) for number, code in enumerate(codes, start=6)}
    languages = LanguageTable((DirectionGroup(codes, codes),), token_ids)
    dimensions = dataclasses.replace(tiny_checkpoint.config.dimensions, max_positions=1000)
    config = dataclasses.replace(tiny_checkpoint.config, languages=languages, dimensions=dimensions)
    sources = sample_sources(dataclasses.replace(tiny_checkpoint, config=config), 3 * len(codes))
    # The first turn would translate each language to itself.
    for turn in (sources[: len(codes)], sources[len(codes) : 2 * len(codes)]):
        assert {source.direction.source for source in turn} == {source.direction.target for source in turn} == {*codes}
    assert len({source.direction for source in sources}) == len(sources)


def test_of_a_hundred_languages_each_has_a_share_and_the_most_served_one_more(tiny_checkpoint: Checkpoint) -> None:
    codes = tuple(sorted(SAMPLES))
    token_ids: dict[str, tuple[int, ...]] = dict.fromkeys(codes, (6,))
    languages = LanguageTable((DirectionGroup(codes, codes),), token_ids)
    dimensions = dataclasses.replace(tiny_checkpoint.config.dimensions, max_positions=2000)
    config = dataclasses.replace(tiny_checkpoint.config, languages=languages, dimensions=dimensions)
    checkpoint = dataclasses.replace(tiny_checkpoint, config=config)
    sources = sample_sources(checkpoint, 200)
    shares = Counter(source.direction.source for source in sources)
    assert len(codes) > 100
    assert {*shares.values()} == {1, 2}
    assert {"en", "zh", "es", "fr", "de", "ru"} < {code for code, share in shares.items() if share == 2}
    assert sample_sources(checkpoint, 200) == sources


def test_samples_that_the_model_cannot_read_are_left_out(tiny_checkpoint: Checkpoint) -> None:
    dimensions = dataclasses.replace(tiny_checkpoint.config.dimensions, max_positions=40)
    config = dataclasses.replace(tiny_checkpoint.config, dimensions=dimensions)
    sources = sample_sources(dataclasses.replace(tiny_checkpoint, config=config), 200)
    assert 0 < max(len(source.ids) for source in sources) <= 40
    assert max(len(source.ids) for source in sample_sources(tiny_checkpoint, 200)) > 40


def test_languages_without_samples_are_named(tiny_checkpoint: Checkpoint) -> None:
    assert languages_without_samples(tiny_checkpoint.config) == []
    mixed = translating(tiny_checkpoint, ("en", "fr"), ("nso", "fr"), ("kab", "de"), ("nso", "de"))
    assert languages_without_samples(mixed.config) == ["kab", "nso"]
    assert 0 < len(sample_sources(mixed, 200)) <= 64


def test_random_tokens_stand_in_where_there_are_no_samples(tiny_checkpoint: Checkpoint) -> None:
    unknown = translating(tiny_checkpoint, ("nso", "fr"))
    assert sample_sources(unknown, 200) == []
    sources = read_sources(unknown, (), 30)
    assert len(sources) == 30
    assert len({len(source.ids) for source in sources}) > 5
    assert read_sources(unknown, (), 30) == sources


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("the dog\n" + "dog " * 200 + "\n", "english.txt, line 2 has 202 tokens; the model reads at most 160"),
        ("one\n", "the source files have 1 sentences, 2 are needed"),
    ],
)
def test_files_of_sentences_that_do_not_do_are_refused(
    tiny_checkpoint: Checkpoint, tmp_path: Path, text: str, fault: str
) -> None:
    path = tmp_path / "english.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=fault):
        read_sources(tiny_checkpoint, [CorpusFile(("en", "fr"), path)], 2)


def test_a_file_that_is_not_utf8_is_named(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "english.txt"
    path.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"english\.txt is not UTF-8 text: .* at byte 3"):
        read_sources(tiny_checkpoint, [CorpusFile(("en", "fr"), path)], 1)


def test_a_file_of_another_direction_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model does not translate fr to en, the direction of"):
        read_sources(tiny_checkpoint, [CorpusFile(("fr", "en"), tmp_path)], 1)


def with_golden(bundle: Bundle, *sources: Source) -> Bundle:
    golden = tuple(Golden(source.direction, source.ids, (), (2,), (0.0,)) for source in sources)
    parity = dataclasses.replace(bundle.manifest.parity, golden=golden, num_sentences=12)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, parity=parity))


def test_the_sentences_that_a_bundle_was_measured_on_are_known_from_its_golden_ones(
    tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]
) -> None:
    samples = sample_sources(tiny_checkpoint, 12)
    assert measured_sources(tiny_checkpoint, with_golden(tiny_bundles["int8"], *samples[:8])) == samples
    others = (Source(Direction("en", "fr"), (5, 6, 2)), Source(Direction("en", "fr"), (7, 8, 2)))
    assert measured_sources(tiny_checkpoint, with_golden(tiny_bundles["int8"], *others)) == list(others)
    assert measured_sources(tiny_checkpoint, with_golden(tiny_bundles["fp32"], *others)) == samples


def test_large_models_are_compared_on_fewer_sentences() -> None:
    opus_base = Dimensions(58_101, 58_101)
    nllb_600m = Dimensions(256_206, 256_206, 1024, 16, 4096, 12, 12)
    assert num_compared(blank_model(opus_base)) == 200
    assert 24 <= num_compared(blank_model(nllb_600m)) <= 48
