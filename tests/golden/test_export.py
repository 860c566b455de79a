"""An exported bundle does what its PyTorch source does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dragoman_export.bundle_writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import pad
from dragoman_export.parity import Comparison, Divergence, ParityError, SentenceParity, compare
from dragoman_server.bundle.bundle import ATTENTION_FILE, Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Precision
from dragoman_server.engine.runner import open_session
from support.tiny_model import random_checkpoint, random_sources


def test_at_fp32_200_sentences_are_reproduced_step_by_step(
    tiny_exports: dict[Precision, tuple[Bundle, Comparison]],
) -> None:
    _, comparison = tiny_exports["fp32"]
    assert len(comparison.sentences) == 200
    assert comparison.max_distribution_difference < 1e-4
    assert comparison.max_attention_difference < 1e-5
    assert all(divergence.margin < 1e-5 for divergence in comparison.divergences), comparison.divergences
    # A model that repeats itself would prove little.
    assert len({sentence.token_ids for sentence in comparison.sentences}) > 150


def test_at_int8_distributions_stay_close(tiny_exports: dict[Precision, tuple[Bundle, Comparison]]) -> None:
    bundle, comparison = tiny_exports["int8"]
    assert 0 < comparison.max_logprob_difference < 1.0
    assert comparison.max_attention_difference < 0.1
    assert bundle.manifest.parity.max_logprob_difference == comparison.max_logprob_difference


VARIANTS: tuple[dict[str, Any], ...] = (
    {"norm": "pre"},
    {"activation": "silu", "position_layout": "split"},
    {"activation": "gelu", "positions": "learned", "position_offset": 2, "scale_embedding": False},
    {"shared_vocabulary": False, "output_bias": False},
    {"num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 3},
)


@pytest.mark.parametrize("dimensions", VARIANTS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_kind_of_model_is_reproduced(precision: Precision, dimensions: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = random_checkpoint(**dimensions)
    _, comparison = export(checkpoint, tmp_path / "bundle", precision, random_sources(checkpoint, 5))
    # export itself refuses fp32 that is off by more than 1e-4.
    assert comparison.max_distribution_difference < (1e-4 if precision == "fp32" else 3.0)


def test_attention_of_a_padded_batch_is_that_of_each_sentence_alone(
    tiny_checkpoint: Checkpoint, tiny_bundles: dict[Precision, Bundle]
) -> None:
    session = open_session(tiny_bundles["fp32"].folder / ATTENTION_FILE, num_threads=1)
    sources = random_sources(tiny_checkpoint, 4)
    targets = [[2, *source[1:-1]] for source in sources]
    config = tiny_checkpoint.config
    source_ids, source_mask = pad(sources, config.pad_token_id)
    target_ids, _ = pad(targets, config.pad_token_id)
    feeds = {
        "input_ids": source_ids.numpy(),
        "attention_mask": source_mask.int().numpy(),
        "decoder_input_ids": target_ids.numpy(),
        "labels": target_ids.numpy(),
    }
    encoder, decoder, cross, _ = session.run(None, feeds)
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = torch.tensor([source])
        with torch.inference_mode():
            _, weights = tiny_checkpoint.model(alone, torch.ones_like(alone, dtype=torch.bool), torch.tensor([target]))
        num_source, num_target = len(source), len(target)
        for found, wanted, rows, columns in (
            (encoder, weights.encoder, num_source, num_source),
            (decoder, weights.decoder, num_target, num_target),
            (cross, weights.cross, num_target, num_source),
        ):
            np.testing.assert_allclose(found[i, :, :, :rows, :columns], wanted[0].numpy(), atol=1e-5)
            np.testing.assert_allclose(found[i, :, :, :rows].sum(axis=-1), 1.0, atol=1e-5)
            assert not found[i, :, :, :rows, columns:].any()  # padding weighs nothing at all


def sentence(difference: float) -> SentenceParity:
    return SentenceParity((4, 3), (3,), (0.0,), difference, difference, difference)


@pytest.mark.parametrize(
    ("comparison", "fault"),
    [
        (Comparison((sentence(1e-3),), ()), "by 0.001"),
        (Comparison((sentence(float("nan")),), ()), "by nan"),
        (Comparison((sentence(0.0),), (Divergence(0, 3, 17, 18, margin=1e-4),)), "step=3"),
    ],
)
def test_a_difference_that_rounding_does_not_explain_is_an_error(comparison: Comparison, fault: str) -> None:
    with pytest.raises(ParityError, match=fault):
        comparison.require_equality()


def test_another_token_at_a_tie_is_none() -> None:
    Comparison((sentence(0.0),), (Divergence(0, 3, 17, 18, margin=1e-6),)).require_equality()


def test_a_bundle_of_other_weights_is_noticed(tiny_bundles: dict[Precision, Bundle]) -> None:
    other = random_checkpoint(seed=1)
    comparison = compare(other, tiny_bundles["fp32"], random_sources(other, 2))
    with pytest.raises(ParityError):
        comparison.require_equality()


def test_a_failed_export_leaves_no_folder(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Comparison) -> None:
        raise ParityError("no")

    monkeypatch.setattr(Comparison, "require_equality", refuse)
    with pytest.raises(ParityError):
        export(tiny_checkpoint, tmp_path / "bundle", "fp32", random_sources(tiny_checkpoint, 1))
    assert not (tmp_path / "bundle").exists()


def test_nothing_is_overwritten(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).touch()
    with pytest.raises(FileExistsError):
        export(tiny_checkpoint, tmp_path, "fp32", random_sources(tiny_checkpoint, 1))
    assert (tmp_path / MANIFEST_FILE).exists()
