"""Compares a bundle with the PyTorch model it was made from: every step, every token, every attention weight."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.bundle.forcing import MAX_ROWS, batches
from dragoman_export.bundle.twin import open_twin
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import Source, TokenPair
from dragoman_export.progress import QUIET, phase
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.runners import ModelRunner, open_runner

# Two tokens closer than this (nats) are a tie that rounding may break either way.
TIE_MARGIN = 1e-5
EQUALITY_TOLERANCE = 1e-4


class ParityError(Exception):
    """The exported model does not reproduce its source."""


@dataclass(frozen=True)
class Divergence:
    """The first step at which greedy decoding of a sentence chose differently."""

    sentence: int
    step: int
    torch_token_id: int
    onnx_token_id: int
    margin: float  # by how many nats PyTorch preferred its choice

    def __str__(self) -> str:
        return (
            f"sentence {self.sentence} differs first at step {self.step}: token {self.onnx_token_id} instead of "
            f"{self.torch_token_id}, which PyTorch preferred by {self.margin:.2e}"
        )


@dataclass(frozen=True)
class SentenceParity:
    """One sentence, decoded greedily by PyTorch and then forced through ONNX Runtime."""

    source: Source
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]  # PyTorch's
    max_logprob_difference: float  # over all tokens of the target
    max_distribution_difference: float  # over the whole vocabulary at every step
    max_attention_difference: float


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`. Differences are absolute; log-probs are in nats.

    Attributes:
        sentences: each with its differences.
        divergences: sentences with other tokens.
        half_arithmetic_difference: of the log-probs of the target when PyTorch computes at fp16 or bf16, where it did.
    """

    sentences: tuple[SentenceParity, ...]
    divergences: tuple[Divergence, ...]
    half_arithmetic_difference: float = 0.0

    @property
    def max_logprob_difference(self) -> float:
        return _largest(s.max_logprob_difference for s in self.sentences)

    @property
    def max_distribution_difference(self) -> float:
        return _largest(s.max_distribution_difference for s in self.sentences)

    @property
    def max_attention_difference(self) -> float:
        return _largest(s.max_attention_difference for s in self.sentences)

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


def require_same_dimensions(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Raises ParityError where a bundle's dimensions are not those of the checkpoint."""
    found, expected = bundle.manifest.architecture, checkpoint.config.architecture
    if found != expected:
        raise ParityError(f"{bundle.folder} is of another model: {found} instead of {expected}")


@torch.inference_mode()
def compare(checkpoint: Checkpoint, bundle: Bundle, pairs: Sequence[TokenPair], console: Console = QUIET) -> Comparison:
    """Compares the step and attention graphs with PyTorch on sources and PyTorch's translations of them.

    The graphs are run exactly as the server runs them on a CPU. No CPU runs those of bf16, so their twin is: the same
    operators on the bundle's weights, in float32. The log-probs of the whole vocabulary are compared at each step.
    """
    if bundle.manifest.precision == "bf16":
        runner: ModelRunner = open_twin(checkpoint.model, bundle, MAX_ROWS)
    else:
        runner = open_runner(bundle, MAX_ROWS, num_threads=1)
    attention = AttentionPass(bundle, num_threads=1)
    found: dict[int, tuple[SentenceParity, Divergence | None]] = {}
    with phase("Comparing with ONNX Runtime", len(pairs), console) as advance:
        for rows in batches(pairs, bundle.manifest.architecture.vocabulary_size):
            tables = _distributions(runner, [pairs[i] for i in rows], bundle.manifest.decoder_start_token_id)
            for i, table in zip(rows, tables, strict=True):
                found[i] = _compare_sentence(checkpoint, attention, pairs[i], table, i)
                advance(1)
    sentences, divergences = zip(*(found[i] for i in range(len(pairs))), strict=True)
    return Comparison(sentences, tuple(divergence for divergence in divergences if divergence is not None))


def _compare_sentence(
    checkpoint: Checkpoint, attention: AttentionPass, pair: TokenPair, found: NDArray[np.float32], index: int
) -> tuple[SentenceParity, Divergence | None]:
    """Compares one sentence; `found` are the log-probs that ONNX Runtime gave, [T, V]."""
    source_ids, token_ids = pair.source.ids, pair.target_ids
    source = torch.tensor([source_ids])
    inputs = torch.tensor([decoder_inputs(checkpoint.config.bos_token_id, token_ids)])
    logits, weights = checkpoint.model(source, torch.ones_like(source, dtype=torch.bool), inputs)
    expected = logits[0].log_softmax(dim=-1).numpy()
    found_weights = (
        attention.encoder(source_ids),
        attention.decoder(source_ids, token_ids),
        attention.cross(source_ids, token_ids),
    )
    steps = np.arange(len(token_ids))
    of_labels = expected[steps, token_ids]
    parity = SentenceParity(
        source=pair.source,
        token_ids=token_ids,
        token_logprobs=tuple(of_labels.tolist()),
        max_logprob_difference=max(
            _largest_difference(of_labels, found[steps, token_ids]),
            _largest_difference(of_labels, attention.logprobs(source_ids, token_ids)),
        ),
        max_distribution_difference=_largest_difference(expected, found),
        max_attention_difference=max(
            _largest_difference(ours[0].numpy(), theirs) for ours, theirs in zip(weights, found_weights, strict=True)
        ),
    )
    num_forced = len(checkpoint.config.framing_of(pair.source.direction).target_prefix)
    for step, (onnx_id, torch_id) in enumerate(zip(found.argmax(axis=1).tolist(), token_ids, strict=True)):
        if step >= num_forced and onnx_id != torch_id:
            margin = float(expected[step, torch_id] - expected[step, onnx_id])
            return parity, Divergence(index, step, torch_id, onnx_id, margin)
    return parity, None


def _distributions(runner: ModelRunner, pairs: Sequence[TokenPair], start_id: int) -> list[NDArray[np.float32]]:
    """Forces targets, the longest first, through the decoder; the log-probs of the vocabulary at every step, [T, V]."""
    runner.encode([pair.source.ids for pair in pairs], first_row=0)
    tables: list[list[NDArray[np.float32]]] = [[] for _ in pairs]
    rows = [decoder_inputs(start_id, pair.target_ids) for pair in pairs]
    for position in range(len(rows[0])):
        inputs = [row[position] for row in rows if len(row) > position]
        output = runner.decode_step(inputs, [position] * len(inputs), all_rows=range(len(inputs)))
        for table, row in zip(tables, output.all_logprobs, strict=False):  # the shorter ones have ended
            table.append(row)
    return [np.stack(table) for table in tables]


def _largest(values: Iterable[float]) -> float:
    """NaN where any is."""
    return float(np.max(list(values)))


def _largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())
