"""Models in Marian's own format against Marian itself.

Some are kept with what Marian gave for them. More are compared where `pymarian` is installed, with the extra `bench`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dragoman_export.bundle.parity import Comparison
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from support.generating import SCORE_TOLERANCE, TIE_MARGIN, Ids, decode
from support.marian_answers import LENGTH_FACTOR
from support.marian_native import EOS_ID, PRE_NORM, write_native
from support.marian_recorded import FOLDER, NORMALIZE, RECORDED, Record, ask, read_record

pytestmark = pytest.mark.timeout(600)

_UNTIED = {"tied_embeddings_all": False}
# Arguments of `write_native`: what OPUS-MT has, and what else changes the arithmetic.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as OPUS-MT": {},
    "several targets, relu, two layers": {
        "targets": ("fra", "deu"),
        "transformer_ffn_activation": "relu",
        "dec_depth": 2,
    },
    "two lists, tied output": {"tokenizers": "two lists", "tied_embeddings": True, "seed": 1, **_UNTIED},
    "two models, nothing tied, gelu": {
        "tokenizers": "two models",
        "transformer_ffn_activation": "gelu",
        "eos_bias": 6.0,
        **_UNTIED,
    },
    "one model, no bias of the output": {"tokenizers": "one model", "output_omit_bias": True},
    "tied source and target, deep decoder, two heads": {
        "tied_embeddings_src": True,
        "dec_depth": 3,
        "transformer_heads": 2,
        **_UNTIED,
    },
    "RMS norms, norm of embeddings, wide": {
        "transformer_postprocess": "dar",
        "transformer_postprocess_emb": "rd",
        "dim_emb": 128,
        "transformer_heads": 8,
        "transformer_dim_ffn": 64,
    },
    "pre-norm": PRE_NORM,
    "pre-norm with RMS norms, two models": {
        "tokenizers": "two models",
        "tied_embeddings": True,
        **{name: value.replace("n", "r") for name, value in PRE_NORM.items()},
        **_UNTIED,
    },
}


@dataclass(frozen=True)
class Model:
    """What Marian gave for a model, and the bundle that was made of it."""

    checkpoint: Checkpoint
    bundle: Bundle
    comparison: Comparison
    record: Record

    @classmethod
    def of(cls, folder: Path, record: Record, out: Path) -> "Model":
        has_tags = record.sources[0].startswith(">>")
        stated = Stated(source="en") if has_tags else Stated(pair="en-fr")
        checkpoint = read_model(folder, "model", stated)
        bundle, comparison = export(checkpoint, out / "bundle", "fp32", read_sources(checkpoint, (), 4))
        return cls(checkpoint, bundle, comparison, record)

    @cached_property
    def source_ids(self) -> dict[str, int]:
        ids = range(self.bundle.tokenizer.source_vocabulary.size)
        return dict(zip(self.bundle.tokenizer.source_pieces(ids), ids, strict=True))

    @cached_property
    def target_ids(self) -> dict[str, int]:
        ids = range(self.bundle.tokenizer.vocabulary.size)
        return dict(zip(self.bundle.tokenizer.pieces(ids), ids, strict=True))

    @cached_property
    def sources(self) -> list[Ids]:
        """What the encoder reads of each line."""
        found = []
        for line in self.record.sources:
            if self.has_pieces:
                ids = [self.source_ids[piece] for piece in line.split(" ")]
            else:
                ids = self.bundle.tokenizer.encode(line)
            found.append((*ids, EOS_ID))
        return found

    @property
    def has_pieces(self) -> bool:
        """Whether lines are pieces, and not texts."""
        return all(piece in self.target_ids for line in self.record.scored for piece in line.split(" "))

    @cached_property
    def scored(self) -> list[Ids]:
        found = []
        for line in self.record.scored:
            if self.has_pieces:
                ids = [self.target_ids[piece] for piece in line.split(" ")]
            else:
                ids = self.bundle.tokenizer.encode_target(line)
            found.append((*ids, EOS_ID))
        return found

    def emitted(self, pieces: str) -> Ids:
        """A target as Marian writes it, without end-of-sentence."""
        return tuple(self.target_ids[piece] for piece in pieces.split(" ") if piece)


def _models() -> Iterator[Any]:
    yield from (pytest.param((name, True), id=f"recorded: {name}") for name in RECORDED)
    yield from (pytest.param((name, False), id=name, marks=pytest.mark.slow) for name in CONFIGURATIONS)


@pytest.fixture(scope="module", params=_models())
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name, is_recorded = request.param
    out = tmp_path_factory.mktemp("marian")
    if is_recorded:
        return Model.of(FOLDER / name, read_record(FOLDER / name), out)
    pytest.importorskip("pymarian")
    native = write_native(out / "source", **CONFIGURATIONS[name])
    return Model.of(native.folder, ask(native, 100), out)


@pytest.fixture
def decoded(model: Model) -> Model:
    """A model whose decoder computes in Marian's translator as in its training and scorer."""
    if model.checkpoint.config.dimensions.norm == "pre":
        pytest.skip("Marian's translator leaves out the norm of keys and values in the decoder of pre-norm models")
    return model


def _decode(model: Model, options: SearchOptions) -> list[list[tuple[Ids, float]]]:
    """All targets as Marian emits them, with their scores, of each source."""
    found = decode(model.bundle, model.sources, options, limit=lambda source: LENGTH_FACTOR * len(source))
    targets = [([tuple(i for i in target if i != EOS_ID) for target in each.targets], each.scores) for each in found]
    return [[*zip(*each, strict=True)] for each in targets]


def test_greedy_targets_are_those_of_marian(decoded: Model) -> None:
    found = [target for ((target, _),) in _decode(decoded, SearchOptions())]
    expected = [decoded.emitted(target) for ((target, _),) in decoded.record.greedy]
    assert found == expected
    # Otherwise what was compared would mean little.
    assert len(set(expected)) > len(expected) // 3
    assert len({len(target) for target in expected}) > 3
    assert len({token_id for target in expected for token_id in target}) > 10


def test_hypotheses_and_scores_of_a_beam_are_those_of_marian(decoded: Model) -> None:
    options = SearchOptions(
        beam_size=4, num_hypotheses=4, length_penalty=NORMALIZE, early_stopping=EarlyStopping.NARROWING
    )
    num_tied = 0
    for source, found, answer in zip(decoded.sources, _decode(decoded, options), decoded.record.beam, strict=True):
        scores = [score for _, score in found]
        assert scores == pytest.approx([score for _, score in answer], abs=SCORE_TOLERANCE)
        if [target for target, _ in found] != [decoded.emitted(target) for target, _ in answer]:
            print(f"{source} gives {found}, not {answer}")
            assert min(a - b for a, b in pairwise(scores)) < TIE_MARGIN
            num_tied += 1
    assert num_tied <= len(decoded.sources) // 50


def test_a_bundle_searches_as_marian_by_default(model: Model) -> None:
    generation = model.bundle.manifest.generation
    assert (generation.beam_size, generation.early_stopping) == (4, "narrowing")


@torch.inference_mode()
def _sum_logprob(checkpoint: Checkpoint, source: Ids, target: Ids) -> float:
    """Of a target with end-of-sentence."""
    inputs = torch.tensor([[checkpoint.config.bos_token_id, *target[:-1]]])
    logits, _ = checkpoint.model(torch.tensor([source]), torch.ones(1, len(source), dtype=torch.bool), inputs)
    return float(logits[0].log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum())


def test_log_probs_of_given_targets_are_those_of_marians_scorer(model: Model) -> None:
    for source, target, total in zip(model.sources, model.scored, model.record.sums, strict=True):
        found = _sum_logprob(model.checkpoint, source, target)
        assert found == pytest.approx(total, abs=SCORE_TOLERANCE * len(target))


def test_the_import_itself_found_no_difference(model: Model) -> None:
    assert all(divergence.margin < TIE_MARGIN for divergence in model.comparison.divergences)
    assert model.comparison.max_distribution_difference < SCORE_TOLERANCE


def test_nothing_of_this_machine_is_in_what_is_kept() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        assert not re.search(rb"/(tmp|home|root|work|usr)/", path.read_bytes())
