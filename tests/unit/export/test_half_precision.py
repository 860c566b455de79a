"""What the exporter finds out before it promises half precision."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from dragoman_export.bundle import writer
from dragoman_export.bundle.forcing import forced_logprobs
from dragoman_export.bundle.half_precision import half_arithmetic_difference, require_fp16_range
from dragoman_export.bundle.parity import Comparison, ParityError
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import TokenPair, translate
from dragoman_export.model import Transformer
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, MAX_TOLERANCE, Precision
from dragoman_server.errors import BundleError
from dragoman_server.runtime.runners import open_runner
from support.tiny_model import AS_T5, random_checkpoint, random_sources


def pairs_of(checkpoint: Checkpoint, count: int = 12) -> list[TokenPair]:
    return translate(checkpoint.model, checkpoint.config, random_sources(checkpoint, count))


def faults(checkpoint: Checkpoint) -> str:
    with pytest.raises(ValueError, match="fp16 ends at 65,504") as caught:
        require_fp16_range(checkpoint.model, checkpoint.config, pairs_of(checkpoint))
    return str(caught.value)


@torch.no_grad()
def overflowing(factor: float = 2.0**16, **dimensions: Any) -> Checkpoint:
    """Activations of one feed-forward, or its gate, are scaled, and what is made of them is scaled back."""
    checkpoint = random_checkpoint(**dimensions)
    module = checkpoint.model.decoder_layers[1].feed_forward
    scaled = module.inner if module.gate is None else module.gate
    for parameter in scaled.parameters():
        parameter.mul_(factor)
    module.outer.weight.div_(factor)
    return checkpoint


# -- values beyond fp16 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [{}, AS_T5], ids=["the paper's", "T5's"])
def test_a_layer_that_overflows_fp16_is_named_and_bf16_is_the_way_out(
    tmp_path: Path, dimensions: dict[str, Any]
) -> None:
    checkpoint = overflowing(**dimensions)
    sources = random_sources(checkpoint, 10)
    with pytest.raises(
        ValueError, match=r"the activations of decoder layer 1's feed-forward reach [0-9,]{7}"
    ) as caught:
        export(checkpoint, tmp_path / "fp16", "fp16", sources)
    assert "Export with --precision bf16" in str(caught.value)
    assert "layer 0" not in str(caught.value)
    assert "encoder" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    bundle, _ = export(checkpoint, tmp_path / "bf16", "bf16", sources)
    assert bundle.manifest.precision == "bf16"


def test_activations_may_reach_half_of_fp16s_range() -> None:
    checkpoint = overflowing()
    (text,) = [part for part in faults(checkpoint).split(" reach ") if part[0].isdigit()]
    largest = float(text.split(". ")[0].replace(",", ""))
    fitting = 2.0**16 * 32_700 / largest
    require_fp16_range(overflowing(fitting).model, checkpoint.config, pairs_of(checkpoint))
    assert "reach 32,8" in faults(overflowing(fitting * 32_850 / 32_700))


@torch.no_grad()
def scaled_scores(model: Transformer) -> None:
    model.encoder_layers[0].self_attention.query.weight.mul_(1e3)
    model.encoder_layers[0].self_attention.key.weight.mul_(1e3)


@torch.no_grad()
def scaled_sums(model: Transformer) -> None:
    model.encoder_layers[1].feed_forward.outer.bias.add_(5e4)


@torch.no_grad()
def scaled_logits(model: Transformer) -> None:
    model.decoder_layers[-1].feed_forward_residual.norm.weight.mul_(1e4)


@torch.no_grad()
def scaled_embeddings(model: Transformer) -> None:
    model.source_embedding.tokens.weight.mul_(1e5)


@torch.no_grad()
def one_large_weight(model: Transformer) -> None:
    model.decoder_layers[0].cross_attention.value.bias[3] = -70_000.0


@torch.no_grad()
def one_weight_that_is_no_number(model: Transformer) -> None:
    model.decoder_layers[0].cross_attention.value.bias[3] = torch.nan


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (scaled_scores, "the attention scores of encoder layer 0's self-attention reach"),
        (scaled_sums, "the activations of encoder layer 1's feed-forward residual reach"),
        (scaled_logits, "the logits reach"),
        (scaled_embeddings, "the embeddings of the source reach"),
        (one_large_weight, "the weight decoder_layers.0.cross_attention.value.bias reach 70,000"),
        (one_weight_that_is_no_number, "the weight decoder_layers.0.cross_attention.value.bias reach nan"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_kind_of_value_is_watched(change: Callable[[Transformer], None], fault: str) -> None:
    checkpoint = random_checkpoint()
    pairs = pairs_of(checkpoint)
    require_fp16_range(checkpoint.model, checkpoint.config, pairs)
    change(checkpoint.model)
    with pytest.raises(ValueError, match="fp16 ends at 65,504") as caught:
        require_fp16_range(checkpoint.model, checkpoint.config, pairs)
    assert fault in str(caught.value)


def test_all_faults_are_told_at_once_the_largest_first() -> None:
    checkpoint = overflowing()
    one_large_weight(checkpoint.model)
    scaled_scores(checkpoint.model)
    numbers = [
        float(part.split(";")[0].split(". ")[0].replace(",", ""))
        for part in faults(checkpoint).split(" reach ")
        if part[0].isdigit()
    ]
    assert len(numbers) > 2
    assert numbers == sorted(numbers, reverse=True)


def test_minus_infinity_masks_and_is_no_overflow() -> None:
    checkpoint = random_checkpoint()
    assert checkpoint.model.output_bias is not None
    with torch.no_grad():
        checkpoint.model.output_bias[5] = -torch.inf
    require_fp16_range(checkpoint.model, checkpoint.config, pairs_of(checkpoint))


def test_no_hook_is_left_behind(tiny_checkpoint: Checkpoint) -> None:
    require_fp16_range(tiny_checkpoint.model, tiny_checkpoint.config, pairs_of(tiny_checkpoint, 1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_checkpoint.model.modules())


# -- the tolerance -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_pairs_in_batches_have_the_log_probs_of_pairs_alone(tiny_checkpoint: Checkpoint) -> None:
    pairs = pairs_of(tiny_checkpoint, 20)
    together = forced_logprobs(tiny_checkpoint.model, tiny_checkpoint.config, pairs)
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = forced_logprobs(tiny_checkpoint.model, tiny_checkpoint.config, [pair])
        assert found.shape == (len(pair.target_ids),)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "low", "high"), [("fp16", 1e-3, 0.05), ("bf16", 1e-2, 0.5)])
def test_pytorch_computes_at_half_precision_itself(
    tiny_checkpoint: Checkpoint, precision: Precision, low: float, high: float
) -> None:
    pairs = pairs_of(tiny_checkpoint, 40)
    with torch.inference_mode():
        expected = [e.tolist() for e in forced_logprobs(tiny_checkpoint.model, tiny_checkpoint.config, pairs)]
    model, config = tiny_checkpoint.model, tiny_checkpoint.config
    assert low < half_arithmetic_difference(model, config, pairs, expected, precision) < high
    assert next(tiny_checkpoint.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_tolerance_is_twice_what_pytorch_or_onnx_runtime_shows(
    precision: Precision, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle, comparison = export(tiny_checkpoint, tmp_path / "bundle", precision, random_sources(tiny_checkpoint, 30))
    largest = max(comparison.max_logprob_difference, comparison.half_arithmetic_difference)
    assert comparison.half_arithmetic_difference > comparison.max_logprob_difference > 0
    assert bundle.manifest.parity.max_logprob_difference == largest
    assert bundle.manifest.parity.logprob_tolerance == max(2 * largest, writer._MIN_HALF_TOLERANCE[precision])


@pytest.mark.parametrize(
    ("precision", "largest", "tolerance"),
    [
        ("fp16", 1e-6, 2**-6),  # few sentences show little
        ("fp16", 0.1, 0.2),
        ("fp16", 0.4, 0.5),
        ("bf16", 1e-6, 2**-3),
        ("bf16", 4.0, 5.0),
        ("int8", 0.1, 0.2),
        ("int8", 4.0, 5.0),
        ("fp32", 1e-5, 1e-3),
    ],
)
def test_tolerances(precision: Precision, largest: float, tolerance: float) -> None:
    assert writer._tolerance(largest, precision) == tolerance


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 0.51), ("bf16", 5.1), ("int8", 6.0), ("fp16", np.nan)])
def test_a_model_beyond_what_a_certificate_may_allow_is_refused(precision: Precision, largest: float) -> None:
    with pytest.raises(ParityError, match=f"at {precision} .* allows at most {MAX_TOLERANCE[precision]:g}"):
        writer._tolerance(largest, precision)


def test_a_sentence_that_is_no_number_is_not_lost_among_others(
    tiny_exports: dict[Precision, tuple[Bundle, Comparison]],
) -> None:
    _, comparison = tiny_exports["fp16"]
    first, *others = comparison.sentences
    broken = replace(first, max_logprob_difference=np.nan)
    assert np.isnan(replace(comparison, sentences=(*others, broken)).max_logprob_difference)


# -- bf16 --------------------------------------------------------------------------------------------------------------


def test_a_bf16_bundle_has_bfloat16_graphs_and_weights(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "bf16", random_sources(tiny_checkpoint, 5))
    bundle, graphs = Bundle.peek(tmp_path / "bundle")
    for name in bundle.manifest.state.cross_kv:
        assert graphs[ENCODER_FILE].inputs[name].dtype == graphs[DECODER_STEP_FILE].inputs[name].dtype == "bfloat16"
    for file in (ENCODER_FILE, DECODER_STEP_FILE):
        assert {tensor.kind for tensor in graphs[file].tensors.values() if tensor.file} == {"bfloat16"}
    stored = bundle.contents().weights["encoder.0.feed_forward.inner.bias"].view(ml_dtypes.bfloat16)
    bias = tiny_checkpoint.model.encoder_layers[0].feed_forward.inner.bias.detach().numpy()
    np.testing.assert_array_equal(stored, bias.astype(ml_dtypes.bfloat16))


def test_no_cpu_runs_a_bf16_bundle_and_the_error_says_so(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle, _ = export(tiny_checkpoint, tmp_path / "bundle", "bf16", random_sources(tiny_checkpoint, 2))
    with pytest.raises(BundleError, match=r"bundle is at bf16, for which ONNX Runtime has no CPU kernels"):
        open_runner(bundle, 1, num_threads=1)
