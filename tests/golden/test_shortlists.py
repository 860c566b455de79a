"""Shortlists of a trained model: nearly all of its translations are as they were, over a part of the vocabulary."""

import random
from pathlib import Path

import pytest

from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.families.table import read_model
from dragoman_export.progress import QUIET
from dragoman_export.shortlist.making import Wanted, make_lists
from dragoman_export.stated import Stated
from dragoman_export.text_files import CorpusFile
from dragoman_server.bundle.languages import Direction
from support.trained_models import sentence, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_TRAINING, NUM_SENTENCES = 6000, 4000
DIRECTIONS = (Direction("en", "fr"), Direction("fr", "en"))


def test_most_translations_of_a_trained_model_are_the_same_with_shortlists(tmp_path: Path) -> None:
    rng = random.Random(0)
    seen = [sentence(rng) for _ in range(NUM_TRAINING)]
    unseen = [sentence(rng) for _ in range(NUM_SENTENCES)]
    train(tmp_path / "source", seen)
    checkpoint = read_model(tmp_path / "source", "trained", Stated())
    bundle, _ = export(checkpoint, tmp_path / "bundle", "fp32", read_sources(checkpoint, (), 4))
    files = []
    for side, direction in enumerate(DIRECTIONS):
        path = tmp_path / f"{direction.source}.txt"
        path.write_text("\n".join(pair[side] for pair in unseen), encoding="utf-8")
        files.append(CorpusFile(direction, path))
    made = make_lists(
        bundle, tmp_path / "new", Wanted(files, per_token=20, num_frequent=30, num_held_out=400), 1, QUIET
    )
    for measured in made.measured:
        facts = measured.facts
        print(facts, measured.curve)
        assert facts.num_sentences > 300
        assert facts.share_identical >= 0.985
        assert facts.mean_length < 0.5 * bundle.manifest.architecture.vocabulary_size
