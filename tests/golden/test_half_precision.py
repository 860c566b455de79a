"""Graphs for CUDA against PyTorch, without a GPU: at fp16 within the stated tolerance, in float32 to rounding."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.bundle.evaluation import TestSet, evaluate
from dragoman_export.bundle.parity import compare
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.twin import open_twin
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import TokenPair, corpus_scores, translate
from dragoman_export.model import Transformer
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.search import Search
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Hypothesis, Request
from dragoman_server.engine.slots import Move
from dragoman_server.runtime.device_pool import CAPACITY_STEP
from dragoman_server.runtime.device_runner import DeviceRunner
from dragoman_server.runtime.runner import OnnxRunner
from dragoman_server.runtime.runners import ModelRunner, open_runner
from support.fake_runner import running_engine
from support.tiny_model import random_checkpoint, random_source, random_sources

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "post-norm, heads of 32, relu": {"d_model": 64, "num_heads": 2},
    "pre-norm, heads of 64, gelu, learned positions": {
        "d_model": 128,
        "num_heads": 2,
        "norm": "pre",
        "activation": "gelu",
        "positions": "learned",
        "position_offset": 2,
    },
    "post-norm, heads of 128, silu, two vocabularies": {
        "d_model": 256,
        "num_heads": 2,
        "activation": "silu",
        "position_layout": "split",
        "shared_vocabulary": False,
        "output_bias": False,
        "num_decoder_layers": 1,
    },
    "pre-norm, heads of 32, relu, two vocabularies, learned positions": {
        "d_model": 96,
        "num_heads": 3,
        "norm": "pre",
        "positions": "learned",
        "shared_vocabulary": False,
        "scale_embedding": False,
    },
    "pre-norm, heads of 32, gelu, embedding norm, a projection of its own": {
        "d_model": 64,
        "num_heads": 2,
        "norm": "pre",
        "activation": "gelu",
        "positions": "learned",
        "position_offset": 2,
        "embedding_norm": True,
        "tied_projection": False,
    },
    "post-norm, heads of 64, relu, embedding norm, fairseq's positions": {
        "d_model": 64,
        "num_heads": 1,
        "position_layout": "fairseq",
        "position_offset": 2,
        "embedding_norm": True,
        "scale_embedding": False,
    },
    "as T5: relative positions, RMS norm, heads of 32, relu": {
        "d_model": 96,
        "num_heads": 2,
        "head_size": 32,
        "norm": "pre",
        "norm_kind": "rms",
        "linear_bias": False,
        "positions": "relative",
        "scale_embedding": False,
    },
    "as T5 1.1: relative positions, RMS norm, heads of 64, gated, a projection of its own": {
        "d_model": 64,
        "num_heads": 2,
        "head_size": 64,
        "norm": "pre",
        "norm_kind": "rms",
        "linear_bias": False,
        "activation": "gelu_tanh",
        "gated": True,
        "positions": "relative",
        "num_position_buckets": 8,
        "max_position_distance": 20,
        "scale_embedding": False,
        "tied_projection": False,
        "num_encoder_layers": 1,
    },
    "pre-norm, heads of 64, silu, deeper decoder": {
        "d_model": 64,
        "num_heads": 1,
        "norm": "pre",
        "activation": "silu",
        "position_offset": 1,
        "num_encoder_layers": 1,
        "num_decoder_layers": 3,
    },
}
# Side by side in one batch, the longest beyond the first capacity of the pool.
SOURCE_LENGTHS = (2, 5, CAPACITY_STEP, 3, CAPACITY_STEP + 9, 31, 17, 100)
TARGET_LENGTHS = (90, 1, 7, 40, CAPACITY_STEP, 2, CAPACITY_STEP + 1, 12)
# The folder that models/default/prepare.sh takes.
DATA = os.environ.get("DRAGOMAN_DATA", "")


@dataclass(frozen=True)
class Exported:
    """A model, and the same at fp32 and fp16."""

    checkpoint: Checkpoint
    fp32: Bundle
    fp16: Bundle

    @classmethod
    def of(cls, checkpoint: Checkpoint, folder: Path, num_sources: int) -> "Exported":
        sources = read_sources(checkpoint, (), num_sources)
        fp32, fp16 = (
            export(checkpoint, folder / precision, precision, sources)[0] for precision in _precisions("fp32", "fp16")
        )
        return cls(checkpoint, fp32, fp16)

    @property
    def model(self) -> Transformer:
        return self.checkpoint.model


def _precisions(*names: Precision) -> tuple[Precision, ...]:
    return names


@pytest.fixture(scope="module", params=list(CONFIGURATIONS.values()), ids=list(CONFIGURATIONS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported.of(random_checkpoint(**request.param), tmp_path_factory.mktemp("half"), num_sources=24)


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    checkpoint = Checkpoint.load(Path(__file__).parents[2] / "models" / "default")
    return Exported.of(checkpoint, tmp_path_factory.mktemp("default"), num_sources=24)


def ragged_pairs(checkpoint: Checkpoint) -> list[TokenPair]:
    """Random targets, which a random model would not write."""
    rng = random.Random(5)
    size = checkpoint.config.dimensions.target_vocabulary_size
    return [
        TokenPair(random_source(checkpoint, source, rng), tuple(rng.randrange(size) for _ in range(target)))
        for source, target in zip(SOURCE_LENGTHS, TARGET_LENGTHS, strict=True)
    ]


@torch.inference_mode()
def largest_difference(model: Transformer, runner: Runner, pairs: Sequence[TokenPair], start_id: int) -> float:
    """From PyTorch's log-probs of the vocabulary, over every step of all pairs in one batch."""
    runner.encode([pair.source.ids for pair in pairs], first_row=0)
    inputs = [decoder_inputs(start_id, pair.target_ids) for pair in pairs]
    expected = []
    for pair, read in zip(pairs, inputs, strict=True):
        source = torch.tensor([pair.source.ids])
        logits, _ = model(source, torch.ones_like(source, dtype=torch.bool), torch.tensor([read]))
        expected.append(logits[0].log_softmax(dim=-1).numpy())
    largest = 0.0
    for position in range(max(map(len, inputs))):
        token_ids = [each[min(position, len(each) - 1)] for each in inputs]  # the shorter ones go on with their last
        step = runner.decode_step(token_ids, [position] * len(pairs), all_rows=range(len(pairs)))
        for row, table in enumerate(expected):
            if position < len(table):
                largest = max(largest, float(np.abs(step.all_logprobs[row] - table[position]).max()))
    return largest


# -- log-probs ---------------------------------------------------------------------------------------------------------


def test_the_graphs_for_cuda_in_float32_give_every_log_prob_of_pytorch(exported: Exported) -> None:
    pairs = ragged_pairs(exported.checkpoint)
    twin = DeviceRunner(open_twin(exported.model, exported.fp32), len(pairs))
    start_id = exported.checkpoint.config.bos_token_id
    assert largest_difference(exported.model, twin, pairs, start_id) < 1e-4


def require_within_tolerance(exported: Exported, pairs: Sequence[TokenPair]) -> None:
    comparison = compare(exported.checkpoint, exported.fp16, pairs)
    tolerance = exported.fp16.manifest.parity.logprob_tolerance
    # The tolerance is twice the largest difference of a few sentences, which says less of a product of two activations.
    most = 2 * tolerance if exported.model.dims.gated else tolerance
    assert 0 < comparison.max_logprob_difference <= most
    assert tolerance < 0.1
    assert comparison.max_distribution_difference < 0.2
    assert all(divergence.margin < 2 * tolerance for divergence in comparison.divergences)


def test_fp16_is_within_its_tolerance_on_sentences_that_were_not_measured(exported: Exported) -> None:
    checkpoint = exported.checkpoint
    sources = [*random_sources(checkpoint, 30, seed=8), *(pair.source for pair in ragged_pairs(checkpoint))]
    require_within_tolerance(exported, translate(checkpoint.model, checkpoint.config, sources))


def test_the_default_model_is_within_its_tolerance_on_sentences_that_were_not_measured(default_model: Exported) -> None:
    checkpoint = default_model.checkpoint
    sources = read_sources(checkpoint, (), 48)[24:]
    require_within_tolerance(default_model, translate(checkpoint.model, checkpoint.config, sources))


def test_the_default_model_in_float32_gives_every_log_prob_of_pytorch(default_model: Exported) -> None:
    checkpoint = default_model.checkpoint
    pairs = translate(checkpoint.model, checkpoint.config, read_sources(checkpoint, (), 12))
    twin = DeviceRunner(open_twin(checkpoint.model, default_model.fp32), len(pairs))
    assert largest_difference(checkpoint.model, twin, pairs, checkpoint.config.bos_token_id) < 1e-4


# -- beams -------------------------------------------------------------------------------------------------------------


def hypotheses(
    bundle: Bundle, runner: ModelRunner, requests: Sequence[Request], *, max_running: int
) -> list[tuple[Hypothesis, ...]]:
    with running_engine(runner, Search.of(bundle.manifest), max_running=max_running) as engine:
        return [future.result(timeout=100).hypotheses for future in engine.submit(requests)]


def test_beams_are_those_of_the_graphs_for_cpus(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows move with every step, requests join while others run, and both halves of the pool grow under them."""
    max_running = 13  # three requests and a row
    num_moved, move_rows = [], DeviceRunner.move_rows

    def counted(runner: DeviceRunner, moves: Sequence[Move]) -> None:
        num_moved.append(len(moves))
        move_rows(runner, moves)

    monkeypatch.setattr(DeviceRunner, "move_rows", counted)
    options = SearchOptions(beam_size=4, num_hypotheses=4, min_target_tokens=CAPACITY_STEP + 6)
    short = SearchOptions(beam_size=4, num_hypotheses=4)
    requests = [
        Request(pair.source.ids, CAPACITY_STEP + 16 if i % 3 == 0 else 20, options=short if i % 3 else options)
        for i, pair in enumerate(ragged_pairs(exported.checkpoint))
    ]
    twin = DeviceRunner(open_twin(exported.model, exported.fp32), max_running)
    first_bytes = twin.kv_pool_bytes
    expected = hypotheses(
        exported.fp32, OnnxRunner.open(exported.fp32, max_running, num_threads=1), requests, max_running=max_running
    )
    found = hypotheses(exported.fp32, twin, requests, max_running=max_running)
    assert [[h.token_ids for h in each] for each in found] == [[h.token_ids for h in each] for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], rtol=0, atol=1e-4)
    assert twin.kv_pool_bytes == 2 * first_bytes
    assert sum(num_moved) > CAPACITY_STEP


# -- translations ------------------------------------------------------------------------------------------------------


def greedy_bleu(bundle: Bundle, test: TestSet) -> float:
    (scores,) = evaluate(bundle.folder, [test], EngineOptions(num_threads=1, max_waiting=10_000)).directions
    return scores.bleu


def beam_bleu(bundle: Bundle, test: TestSet) -> float:
    framing = bundle.manifest.framing_of((test.source_language, test.target_language))
    sources = [framing.frame(bundle.tokenizer.encode(text)) for text in test.sources]
    options = SearchOptions(beam_size=4)
    requests = [Request(ids, 2 * len(ids) + 16, options=options, prefix_ids=framing.target_prefix) for ids in sources]
    runner = open_runner(bundle, 128, num_threads=1)
    with running_engine(runner, Search.of(bundle.manifest), max_running=128, max_waiting=10_000) as engine:
        futures = engine.submit(requests)
        targets = [future.result(timeout=3000).hypotheses[0].token_ids for future in futures]
    return corpus_scores([bundle.tokenizer.decode(ids) for ids in targets], test.references).bleu


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DATA, reason="DRAGOMAN_DATA names no folder with the test set")
@pytest.mark.parametrize(("source", "target"), [("en", "fr"), ("de", "en"), ("en", "es")])
def test_fp16_translates_as_well_as_fp32(default_model: Exported, source: str, target: str) -> None:
    codes = {"en": "eng", "fr": "fra", "de": "deu", "es": "spa"}
    other = codes[source if target == "en" else target]
    paths = [Path(DATA) / "tatoeba-laser-test" / f"tatoeba.{other}-eng.{codes[code]}" for code in (source, target)]
    test = TestSet.parse(f"{source}-{target}={paths[0]},{paths[1]}")
    for name, bleu in (("greedy", greedy_bleu), ("beam 4", beam_bleu)):
        fp32, fp16 = bleu(default_model.fp32, test), bleu(default_model.fp16, test)
        print(f"{source}-{target}, {name}: BLEU {fp32:.2f} at fp32, {fp16:.2f} at fp16")
        assert abs(fp16 - fp32) <= 0.2
