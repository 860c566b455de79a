"""Choosing the weights that words are aligned from, and alignments made by hand."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dragoman_export import __main__
from dragoman_export.bundle.align_tune import ForcedPair, candidates, error_rates, tune, write_alignment
from dragoman_export.bundle.gold_alignment import GoldAlignments, GoldPair, alignment_error_rate
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import Alignment, Precision, default_alignment
from dragoman_server.text.tokenizer import load_tokenizer

DIAGONAL = frozenset({(0, 0), (1, 1), (2, 2)})


def gold(sure: frozenset[tuple[int, int]] = DIAGONAL, possible: frozenset[tuple[int, int]] = frozenset()) -> GoldPair:
    return GoldPair(("a", "b", "c"), ("x", "y", "z"), sure, sure | possible)


@pytest.fixture
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    """A bundle of one's own, to be written to."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, copy)
    return copy


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (DIAGONAL, 0.0),
        ({(0, 1), (1, 2), (2, 0)}, 1.0),
        (set(), 1.0),
        ({(0, 0), (1, 1)}, 1 - 4 / 5),  # one is missing
        ({*DIAGONAL, (0, 1)}, 1 - 6 / 7),  # one is too many
        ({*DIAGONAL, (0, 2)}, 0.0),  # which is possible
    ],
)
def test_alignment_error_rate(found: set[tuple[int, int]], expected: float) -> None:
    pair = gold(possible=frozenset({(0, 2)}))
    assert alignment_error_rate([(pair, frozenset(found))]) == pytest.approx(expected)


def test_links_are_counted_over_all_pairs() -> None:
    short = gold(frozenset({(0, 0)}))
    rate = alignment_error_rate([(gold(), DIAGONAL), (short, frozenset({(0, 1)}))])
    assert rate == pytest.approx(1 - 6 / 8)


def forced(*layers: list[list[int]]) -> ForcedPair:
    """Word i of the target, then end-of-sentence; head h of a layer looks at source word `layers[...][h][i]`.

    A source is a tag, its three words and end-of-sentence, which gets most.
    """
    cross = np.zeros((len(layers), len(layers[0]), 4, 5), np.float32)
    cross[..., 4] = 0.6
    for layer, heads in enumerate(layers):
        for head, words in enumerate(heads):
            cross[layer, head, np.arange(4), np.array(words) + 1] = 0.4
    spans = ((0, 1), (1, 2), (2, 3))
    is_text = (True, True, True)
    return ForcedPair(gold(), cross, (False, *is_text, False), (*is_text, False), spans, spans)


def test_a_set_that_is_no_better_than_a_single_head_is_none() -> None:
    pair = forced([[0, 1, 2, 0], [0, 1, 2, 0]])
    assert [alignment.heads for alignment in candidates({"en-fr": [pair]}, "output_row", 0, 2)] == [(0, 1), (0,)]


def test_words_are_linked_by_the_rows_of_the_method() -> None:
    pair = forced([[0, 1, 2, 0], [2, 0, 1, 2]])
    assert pair.links(Alignment("output_row", 0, (0,))) == DIAGONAL
    assert pair.links(Alignment("shifted", 0, (1,))) == DIAGONAL
    assert pair.links(Alignment("shifted", 0, (0,))) == {(1, 0), (2, 1), (0, 2)}


def test_the_set_of_heads_grows_while_that_helps() -> None:
    """Head 1 has one word right, heads 2 and 3 the other two: together, where they are surer, all."""
    pair = forced([[1, 2, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [1, 2, 2, 0]])
    for head, word in ((1, 0), (2, 1), (3, 2)):
        pair.cross[0, head, word] *= 4
    every, single, best = candidates({"en-fr": [pair]}, "output_row", 0, 4)
    assert every == Alignment("output_row", 0, (0, 1, 2, 3))
    assert single == Alignment("output_row", 0, (1,))
    assert best == Alignment("output_row", 0, (1, 2, 3))
    assert error_rates({"en-fr": [pair]}, best) == {"en-fr": 0.0}


GOLD_LINES = [
    {"source_words": ["the", "old", "dog"], "target_words": ["dog", "the", "old"], "sure": [[0, 1], [1, 2], [2, 0]]},
    {"source_words": ["a", "bird", "sees"], "target_words": ["sees", "bird"], "sure": [[2, 0]], "possible": [[1, 1]]},
    {"source_words": ["green", "house"], "target_words": ["green", "house"], "sure": [[0, 0], [1, 1]]},
]


@pytest.fixture
def gold_file(tmp_path: Path) -> Path:
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in GOLD_LINES), encoding="utf-8")
    return path


def test_gold_alignments_are_read(gold_file: Path) -> None:
    first, second, third = GoldAlignments.read(("en", "fr"), gold_file).pairs
    assert first.source_words == ("the", "old", "dog")
    assert second.sure == {(2, 0)}
    assert second.possible == {(2, 0), (1, 1)}
    assert third.sure == third.possible == {(0, 0), (1, 1)}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sure": None}, r"sure is not a list of \[source index, target index\]"),
        ({"sure": [[0]]}, "sure is not a list of"),
        ({"sure": [[0, True]]}, "sure is not a list of"),
        ({"sure": [[3, 0]]}, r"sure has \[3, 0\]; there are 3 source_words and 3 target_words"),
        ({"possible": [[0, -1]]}, r"possible has \[0, -1\]"),
        ({"source_words": "the old dog"}, "source_words is not a list of at least one word"),
        ({"source_words": []}, "source_words is not a list of at least one word"),
        ({"target_words": ["dog", " "]}, "target_words is not a list of .* none of them blank"),
        ({"probable": []}, "not an object of source_words, target_words, sure"),
    ],
)
def test_a_faulty_pair_is_refused_by_line_and_field(gold_file: Path, changes: dict[str, Any], fault: str) -> None:
    gold_file.write_text(f"{json.dumps(GOLD_LINES[1])}\n{json.dumps(GOLD_LINES[0] | changes)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"gold\.jsonl, line 2: {fault}"):
        GoldAlignments.read(("en", "fr"), gold_file)


def test_what_is_no_json_is_refused(gold_file: Path) -> None:
    gold_file.write_text("0-0 1-1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        GoldAlignments.read(("en", "fr"), gold_file)


def test_one_pair_is_too_few(gold_file: Path) -> None:
    gold_file.write_text(json.dumps(GOLD_LINES[0]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has 1 pairs; at least 2 are needed"):
        GoldAlignments.read(("en", "fr"), gold_file)


@pytest.mark.parametrize(
    "text", ["the minutes , of thursday", "l ' homme n ' a pas dit « oui » .", "¿ qué ? 3.5 %", "Žluťoučký kůň 猫 👩🏽"]
)
def test_words_have_the_pieces_that_they_have_in_the_text(text: str) -> None:
    tokenizer = load_tokenizer("sentencepiece", embedded_bundle())
    assert [piece for word in text.split() for piece in tokenizer.encode(word)] == tokenizer.encode(text)


def test_all_methods_layers_and_heads_are_tried_on_the_first_half(folder: Path, gold_file: Path) -> None:
    bundle = Bundle.open(folder)
    golds = [GoldAlignments.read(("en", target), gold_file) for target in ("fr", "de")]
    tuning = tune(bundle, golds, 1, Console(quiet=True))
    assert tuning.num_pairs == {"en-fr": (1, 2), "en-de": (1, 2)}
    assert list(dict.fromkeys((trial.alignment.method, trial.alignment.layer) for trial in tuning.trials)) == [
        ("output_row", 0),
        ("output_row", 1),
        ("shifted", 0),
        ("shifted", 1),
    ]
    assert tuning.best in tuning.trials
    assert tuning.best.mean_first_half == min(trial.mean_first_half for trial in tuning.trials)
    assert default_alignment(bundle.manifest.architecture) in [trial.alignment for trial in tuning.trials]


@pytest.mark.parametrize(
    ("languages", "words", "fault"),
    [
        (("en", "es"), 1, "the model does not translate en-es"),
        (("en", "fr"), 500, "en-fr, pair 1: the source has .* tokens, at most"),
    ],
)
def test_pairs_that_the_model_cannot_take_are_refused(
    folder: Path, languages: tuple[str, str], words: int, fault: str
) -> None:
    long = dataclasses.replace(gold(), source_words=("house",) * words)
    with pytest.raises(ValueError, match=fault):
        tune(Bundle.open(folder), [GoldAlignments(languages, (long, gold()))], 1, Console(quiet=True))


def test_the_choice_is_written_into_the_manifest_and_nothing_else(folder: Path) -> None:
    before = Bundle.open(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    alignment = Alignment("output_row", 1, (0, 2))
    after = write_alignment(before, alignment)
    assert after.manifest == dataclasses.replace(before.manifest, alignment=alignment)
    assert after.version != before.version
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"} == files


def test_the_command_prints_what_it_tried_and_writes_what_it_chose(
    folder: Path, gold_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ("--pairs", f"en-fr={gold_file}", "--pairs", f"en-de={gold_file}")
    monkeypatch.setattr("sys.argv", ["dragoman-export", "align-tune", str(folder), *pairs])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert not end.value.code
    chosen = Bundle.open(folder).manifest.alignment
    assert chosen is not None
    printed = capsys.readouterr().out
    assert "AER en-fr" in printed
    assert f"Chosen: {chosen.method}, layer {chosen.layer}, heads {' '.join(map(str, chosen.heads))};" in printed
