"""Holds a bundle against the PyTorch model it was made from: every step, every token, every attention weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import greedy_decode
from dragoman_server.attention.attention_pass import AttentionPass
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.runtime.runner import OnnxRunner

# Two tokens closer than this (nats) are a tie that rounding may break either way.
TIE_MARGIN = 1e-5
EQUALITY_TOLERANCE = 1e-4


class ParityError(Exception):
    """The exported model does not do what its source does."""


@dataclass(frozen=True)
class Divergence:
    """The first step at which greedy decoding of a sentence chose differently."""

    sentence: int
    step: int
    torch_token_id: int
    onnx_token_id: int
    margin: float  # by how many nats PyTorch preferred its choice


@dataclass(frozen=True)
class SentenceParity:
    """One sentence, decoded greedily by PyTorch and then forced through ONNX Runtime."""

    source_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]  # PyTorch's
    max_logprob_difference: float  # over all tokens of the target
    max_distribution_difference: float  # over the whole vocabulary at every step
    max_attention_difference: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Differences are absolute; log-probs in nats."""

    sentences: tuple[SentenceParity, ...]
    divergences: tuple[Divergence, ...]

    @property
    def max_logprob_difference(self) -> float:
        return max(s.max_logprob_difference for s in self.sentences)

    @property
    def max_distribution_difference(self) -> float:
        return max(s.max_distribution_difference for s in self.sentences)

    @property
    def max_attention_difference(self) -> float:
        return max(s.max_attention_difference for s in self.sentences)

    @property
    def token_agreement(self) -> float:
        """Share of sentences whose greedy tokens are all the same."""
        return 1.0 - len(self.divergences) / len(self.sentences)

    def require_equality(self) -> None:
        """Raises ParityError unless all differences are rounding: within 1e-4, other choices only at ties."""
        worst = max(self.max_distribution_difference, self.max_attention_difference)
        if not worst <= EQUALITY_TOLERANCE:
            raise ParityError(f"the export differs from PyTorch by {worst:.3g}, more than {EQUALITY_TOLERANCE:.0e}")
        for divergence in self.divergences:
            if divergence.margin > TIE_MARGIN:
                raise ParityError(f"the export chooses other tokens than PyTorch: {divergence}")


@torch.inference_mode()
def compare(checkpoint: Checkpoint, bundle: Bundle, sources: Sequence[tuple[int, ...]]) -> Comparison:
    """Decodes every source greedily with PyTorch and holds the step and attention graphs against it.

    The graphs are run exactly as the server runs them. The whole distribution of a step is compared, log-probs being
    the logits up to a normaliser that is compared with them.
    """
    manifest = bundle.manifest
    num_threads = torch.get_num_threads()
    runner = OnnxRunner.open(bundle, max_rows=1, num_threads=num_threads)
    attention = AttentionPass(bundle, num_threads)
    sentences: list[SentenceParity] = []
    divergences: list[Divergence] = []
    for index, source_ids in enumerate(sources):
        limit = min(2 * len(source_ids) + 16, manifest.limits.max_target_tokens)
        token_ids = greedy_decode(checkpoint.model, checkpoint.config, [source_ids], limit)[0]
        inputs = [manifest.decoder_start_token_id, *token_ids[:-1]]
        source = torch.tensor([source_ids])
        logits, weights = checkpoint.model(source, torch.ones_like(source, dtype=torch.bool), torch.tensor([inputs]))
        expected = logits[0].log_softmax(dim=-1).numpy()
        found = _distributions(runner, source_ids, inputs)
        for step, torch_id in enumerate(token_ids):
            onnx_id = int(found[step].argmax())
            if onnx_id != torch_id:
                margin = float(expected[step, torch_id] - expected[step, onnx_id])
                divergences.append(Divergence(index, step, torch_id, onnx_id, margin))
                break
        found_weights = (
            attention.encoder(source_ids),
            attention.decoder(source_ids, token_ids),
            attention.cross(source_ids, token_ids),
        )
        steps = np.arange(len(token_ids))
        of_labels = expected[steps, token_ids]
        sentences.append(
            SentenceParity(
                source_ids=source_ids,
                token_ids=tuple(token_ids),
                token_logprobs=tuple(of_labels.tolist()),
                max_logprob_difference=max(
                    _largest_difference(of_labels, found[steps, token_ids]),
                    _largest_difference(of_labels, attention.logprobs(source_ids, token_ids)),
                ),
                max_distribution_difference=_largest_difference(expected, found),
                max_attention_difference=max(
                    _largest_difference(ours[0].numpy(), theirs)
                    for ours, theirs in zip(weights, found_weights, strict=True)
                ),
            )
        )
    return Comparison(tuple(sentences), tuple(divergences))


def _distributions(runner: OnnxRunner, source_ids: Sequence[int], inputs: Sequence[int]) -> NDArray[np.float32]:
    """Forces a target through the decoder; the log-probs of the whole vocabulary at every step, [T, V]."""
    runner.encode([source_ids], first_row=0)
    rows = []
    for position, token_id in enumerate(inputs):
        rows.append(runner.decode_step([token_id], [position], all_rows=[0]).all_logprobs[0])
    return np.stack(rows)


def _largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())
