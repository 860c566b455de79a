"""Trained models of M2M-100's and T5's kinds at int8: as good as at fp32, whatever they are calibrated on."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dragoman_export.bundle.sources import sample_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.greedy import Source, corpus_scores
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import Precision
from dragoman_server.engine.search_options import SearchOptions
from support.generating import Ids, decode
from support.trained_models import FAMILIES, sentence, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_TRAINING = 6000
NUM_TEST, NUM_CALIBRATION = 1200, 100


@dataclass(frozen=True)
class Trained:
    """A model that translates English to French and, trained on the same pairs, back."""

    family: str
    checkpoint: Checkpoint
    pairs: Sequence[tuple[str, str]]  # unseen

    def sources(self, direction: Direction, count: int, begin: int = 0) -> list[Source]:
        framing, codec = self.checkpoint.config.framing_of(direction), self.checkpoint.open_tokenizer()
        side = 0 if direction.source == "en" else 1
        return [
            Source(direction, framing.frame(codec.encode(pair[side]))) for pair in self.pairs[begin : begin + count]
        ]

    def translate(self, bundle: Bundle, direction: Direction) -> list[Ids]:
        sources = [source.ids for source in self.sources(direction, NUM_TEST)]
        forced = bundle.manifest.framing_of(direction).target_prefix
        return [found.targets[0] for found in decode(bundle, sources, SearchOptions(), forced)]

    def bleu(self, targets: Sequence[Ids], direction: Direction) -> float:
        codec, side = self.checkpoint.open_tokenizer(), 1 if direction.source == "en" else 0
        return corpus_scores([codec.decode(ids) for ids in targets], [p[side] for p in self.pairs[:NUM_TEST]]).bleu


@pytest.fixture(scope="module", params=list(FAMILIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    rng = random.Random(0)
    seen = [sentence(rng) for _ in range(NUM_TRAINING)]
    unseen = [pair for pair in (sentence(rng) for _ in range(2 * (NUM_TEST + NUM_CALIBRATION))) if pair not in seen]
    train(folder, seen, request.param)
    return Trained(request.param, read_model(folder, "trained", Stated()), unseen)


def test_int8_translates_as_well_as_fp32_however_it_is_calibrated(trained: Trained, tmp_path: Path) -> None:
    directions = [Direction("en", "fr"), Direction("fr", "en")]
    own = [s for d in directions for s in trained.sources(d, NUM_CALIBRATION, begin=NUM_TEST)]
    shipped = sample_sources(trained.checkpoint, 200)
    calibrations: dict[str, tuple[Precision, Sequence[Source]]] = {
        "fp32": ("fp32", ()),
        "sources": ("int8", own),
        "samples": ("int8", shipped),
    }
    bundles = {
        name: export(trained.checkpoint, tmp_path / name, precision, own[:20], sentences)[0]
        for name, (precision, sentences) in calibrations.items()
    }
    for direction in directions:
        targets = {name: trained.translate(bundle, direction) for name, bundle in bundles.items()}
        bleu = {name: trained.bleu(found, direction) for name, found in targets.items()}
        same = {
            name: sum(a == b for a, b in zip(found, targets["fp32"], strict=True)) / NUM_TEST
            for name, found in targets.items()
        }
        print(f"{direction}: BLEU {bleu}, the same tokens {same}")
        assert bleu["fp32"] > 50
        assert abs(bleu["sources"] - bleu["fp32"]) <= 0.3
        # T5 has a little more to lose: values of its gated network have a wide range.
        assert abs(bleu["samples"] - bleu["sources"]) <= (0.1 if trained.family == "m2m100" else 0.3)
        assert min(same.values()) >= (0.9 if trained.family == "m2m100" else 0.85)
