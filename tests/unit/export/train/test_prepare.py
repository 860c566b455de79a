import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm

from dragoman_export.text_files import CorpusFile
from dragoman_export.train import prepare as prepare_module
from dragoman_export.train.corpus import TextPair
from dragoman_export.train.prepare import CorpusOptions, prepare
from dragoman_export.train.prepared import Links, Prepared, PreparedText, TokenRows
from support.tiny_model import WORDS, tokenizer, tokenizer_model


@pytest.fixture
def files(tmp_path: Path) -> tuple[CorpusFile, ...]:
    """A corpus, and a few phrases of the same two languages, one of which is in the corpus too."""
    many = tmp_path / "many.tsv"
    many.write_text("".join(f"{a} {b}\t{b} {a}\n" for a in WORDS for b in WORDS), encoding="utf-8")
    few = tmp_path / "few.tsv"
    few.write_text("".join(f"{word} dog\tdog {word}\n" for word in WORDS), encoding="utf-8")
    return (CorpusFile(("en", "fr"), many), CorpusFile(("en", "fr"), few))


def texts_of(prepared: Prepared, text: PreparedText, side: int) -> list[str]:
    processor = spm.SentencePieceProcessor(model_proto=prepared.tokenizer)
    return [processor.decode(text.sides[side][row].tolist()) for row in range(len(text))]


def test_files_become_token_ids_and_development_pairs(files: tuple[CorpusFile, ...], tmp_path: Path) -> None:
    (tmp_path / "test.en").write_text("The old.\n")
    told: list[str] = []
    options = CorpusOptions(files, held_out=(tmp_path / "test.en",), development_share=0.2)
    prepared = prepare(options, tokenizer_model(), told.append)
    many, few = prepared.texts
    assert (many.name, many.languages, many.weight, few.name) == ("many", ("en", "fr"), 1.0, "few")
    pairs = set(zip(texts_of(prepared, many, 0), texts_of(prepared, many, 1), strict=True))
    assert len(pairs) + len(many.development) == len(WORDS) ** 2 - 2
    assert not {("the old", "old the"), ("old the", "the old")} & (pairs | set(many.development))
    assert not pairs & set(many.development)
    assert "2 left out" in told[0]
    # The same sentence is on the same side of the split in both files.
    assert not {first for first, _ in few.development} & set(texts_of(prepared, many, 0))
    assert many.links is None


def test_a_file_of_more_weight_is_never_set_aside_and_keeps_its_sentences_in_training(
    files: tuple[CorpusFile, ...],
) -> None:
    options = CorpusOptions(files, weights={files[1].path: 20.0}, development_share=0.5)
    many, few = prepare(options, tokenizer_model()).texts
    assert (few.weight, few.development, len(few)) == (20.0, (), len(WORDS))
    assert many.development
    assert not [first for first, _ in many.development if first.endswith(" dog")]


def test_a_weight_for_no_file_is_refused(files: tuple[CorpusFile, ...]) -> None:
    with pytest.raises(ValueError, match=r"a weight is given for other\.tsv, which is none of the files of pairs"):
        CorpusOptions(files, weights={Path("other.tsv"): 2.0})


@pytest.mark.parametrize("name", ["development_share", "changed_share"])
@pytest.mark.parametrize("value", [-0.1, 11, math.inf, math.nan])
def test_a_share_without_sense_is_refused(files: tuple[CorpusFile, ...], name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}, must be between 0 and"):
        CorpusOptions(files, **{name: value})  # type: ignore[arg-type]


def test_pairs_are_changed_before_they_are_tokenized(files: tuple[CorpusFile, ...]) -> None:
    plain, changed = (prepare(CorpusOptions(files, changed_share=share), 400, lambda _: None) for share in (0.0, 0.5))
    assert len(changed.texts[0]) > 1.1 * len(plain.texts[0])
    assert plain.tokenizer != changed.tokenizer  # it learns what is written in the changed pairs
    texts = texts_of(changed, changed.texts[0], 0)
    assert any(text.isupper() for text in texts)


def test_nothing_to_train_on_is_an_error(files: tuple[CorpusFile, ...]) -> None:
    held_out = files[0].path.with_name("test.en")
    held_out.write_text("One two!\n")
    for file in files:
        file.path.write_text("one two\tun deux\n")
    with pytest.raises(ValueError, match="no pairs are left to train on"):
        prepare(CorpusOptions(files, held_out=(held_out,)), 400)


def test_texts_of_the_same_languages_are_aligned_together(
    files: tuple[CorpusFile, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[TextPair]] = []

    def align(pairs: Sequence[TextPair], spans: object) -> Iterator[list[tuple[int, int]]]:
        seen.append(pairs)
        return iter([[(0, 1), (1, 0)] if "dog" in first else [] for first, _ in pairs])

    monkeypatch.setattr(prepare_module, "align_pairs", align)
    german = CorpusFile(("en", "de"), files[1].path)
    prepared = prepare(CorpusOptions((*files, german), align=True), tokenizer_model())
    assert [len(pairs) for pairs in seen] == [
        len(prepared.texts[0]) + len(prepared.texts[1]),
        len(prepared.texts[2]),
    ]
    for text in prepared.texts:
        assert text.links is not None
        dogs = ["dog" in sentence for sentence in texts_of(prepared, text, 0)]
        assert np.diff(text.links.offsets).tolist() == [2 * dog for dog in dogs]
    few = prepared.texts[1].links
    assert few is not None
    assert (few.first[:2].tolist(), few.second[:2].tolist()) == ([0, 1], [1, 0])


SEPARATOR = "\u2028"  # which str.splitlines takes for the end of a line
TEXTS = (
    PreparedText(
        "a",
        ("en", "fr"),
        2.5,
        (TokenRows.of([[1, 70000], []]), TokenRows.of([[3], [4, 5, 6]])),
        Links.of([[(0, 0), (1, 0)], []]),
        ((f"one{SEPARATOR}two", "un"), ("", "rien")),
    ),
    PreparedText("a", ("en", "de"), 1.0, (TokenRows.of([[7]]), TokenRows.of([[8]])), None, ()),
)


def assert_same(prepared: Prepared, other: Prepared) -> None:
    assert prepared.tokenizer == other.tokenizer
    assert len(prepared.texts) == len(other.texts)
    for text, same in zip(prepared.texts, other.texts, strict=True):
        for name in ("name", "languages", "weight", "development"):
            assert getattr(text, name) == getattr(same, name)
        for side, same_side in zip(text.sides, same.sides, strict=True):
            np.testing.assert_array_equal(side.flat, same_side.flat)
            np.testing.assert_array_equal(side.offsets, same_side.offsets)
            assert side.flat.dtype == same_side.flat.dtype
        assert (text.links is None) == (same.links is None)
        if text.links is not None and same.links is not None:
            for name, values in vars(text.links).items():
                np.testing.assert_array_equal(values, getattr(same.links, name))


def test_prepared_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    prepared = Prepared(tokenizer_model(), TEXTS)
    prepared.save(tmp_path)
    loaded = Prepared.load(tmp_path)
    assert_same(prepared, loaded)
    assert prepared.fingerprint == loaded.fingerprint
    assert (tmp_path / "development" / "1-a.fr").read_text() == "un\nrien\n"


def test_any_change_of_the_text_changes_its_fingerprint() -> None:
    prints = {
        Prepared(model, texts).fingerprint
        for model, texts in (
            (tokenizer_model(), TEXTS),
            (b"another", TEXTS),
            (tokenizer_model(), TEXTS[::-1]),
            (tokenizer_model(), (dataclasses.replace(TEXTS[0], weight=1.0), TEXTS[1])),
            (tokenizer_model(), (dataclasses.replace(TEXTS[0], links=None), TEXTS[1])),
            (tokenizer_model(), (dataclasses.replace(TEXTS[0], sides=TEXTS[0].sides[::-1]), TEXTS[1])),
        )
    }
    assert len(prints) == 6


def test_the_tokens_are_those_of_the_tokenizer(files: tuple[CorpusFile, ...]) -> None:
    prepared = prepare(CorpusOptions(files[1:], development_share=0.0), tokenizer_model())
    assert prepared.texts[0].sides[0][0].tolist() == tokenizer().encode(f"{WORDS[0]} dog")
