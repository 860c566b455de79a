"""Compares a bundle with the PyTorch model it was made from: every step, every token, every attention weight."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from dragoman_export.bundle.forcing import MAX_ROWS, MAX_TABLE_BYTES, batches
from dragoman_export.bundle.twin import open_twin
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import Source, TokenPair, is_large, num_processors
from dragoman_export.progress import QUIET, phase
from dragoman_export.reading import listed
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import decoder_inputs
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.device_runner import DeviceRunner
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


def require_same_model(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Raises ParityError where a bundle is of another shape than the checkpoint, or makes other ids of a text.

    It may have fewer directions than the checkpoint.
    """
    manifest, config = bundle.manifest, checkpoint.config
    if manifest.architecture != config.architecture:
        raise ParityError(
            f"{bundle.folder} is of another model: {manifest.architecture} instead of {config.architecture}"
        )
    specials = "decoder_start_token_id", "eos_token_id", "pad_token_id"
    expected = dict(zip(specials, (config.bos_token_id, config.eos_token_id, config.pad_token_id), strict=True))
    faults = [
        f"{name} is {getattr(manifest, name)} instead of {expected[name]}"
        for name in specials
        if getattr(manifest, name) != expected[name]
    ]
    for direction in manifest.languages:
        name = f"{direction.source}-{direction.target}"
        if direction not in config.languages:
            faults.append(f"it translates {name}, which the source does not")
        elif manifest.framing_of(direction) != config.framing_of(direction):
            faults.append(f"other ids stand before or behind the texts of {name}")
    own = {str(name): digest for name, digest in manifest.files.items()}
    faults += [
        f"{name} is not the tokenizer of the source"
        for name, digest in checkpoint.tokenizer_hashes().items()
        if own.get(name) != digest
    ]
    if faults:
        raise ParityError(
            f"{bundle.folder} is not an import of this source with these options (--pair, --from, --source-prefix, "
            f"--tokenizer): {listed(faults)}"
        )


@torch.inference_mode()
def compare(checkpoint: Checkpoint, bundle: Bundle, pairs: Sequence[TokenPair], console: Console = QUIET) -> Comparison:
    """Compares the step and attention graphs with PyTorch on sources and PyTorch's translations of them.

    The graphs are run exactly as the server runs them on a CPU, but for a large model at fp32: it is in memory already,
    so its weights are read where they are, and are not packed for each session, which may round otherwise. No CPU runs
    the graphs of bf16, so their twin is: the same operators on the bundle's weights, in float32. The log-probs of the
    whole vocabulary are compared at each step.
    """
    num_threads = num_processors(checkpoint.model)
    is_packed = bundle.manifest.precision != "fp32" or not is_large(checkpoint.model)
    # Read once, and let go where sessions have packed weights of their own.
    contents = bundle.contents()._replace(are_packed=is_packed)
    if bundle.manifest.precision == "bf16":
        runner: ModelRunner = DeviceRunner(open_twin(checkpoint.model, bundle, num_threads), MAX_ROWS)
    else:
        runner = open_runner(bundle, MAX_ROWS, num_threads, contents)
    attention = AttentionPass(bundle, num_threads, contents=contents)
    del contents
    found: dict[int, _Sentence] = {}
    with phase("Comparing with ONNX Runtime", len(pairs), console) as advance:
        for rows in batches(pairs):
            for i in rows:
                found[i] = _Sentence(checkpoint, attention, pairs[i], i)
            _compare_steps(checkpoint, runner, [found[i] for i in rows])
            advance(len(rows))
    runner.close()
    sentences = [found[i] for i in range(len(pairs))]
    divergences = (sentence.divergence for sentence in sentences if sentence.divergence is not None)
    return Comparison(tuple(sentence.parity() for sentence in sentences), tuple(divergences))


class _Sentence:
    """What is found out about one sentence: of attention at once, of the distributions of tokens step by step.

    Attributes:
        pair: source and target.
        states: PyTorch's decoder states, [T, D], from which it computes its logits.
        divergence: the first step that chose differently, among those that were compared.
    """

    def __init__(self, checkpoint: Checkpoint, attention: AttentionPass, pair: TokenPair, index: int) -> None:
        self.pair, self._index = pair, index
        self.divergence: Divergence | None = None
        self._num_forced = len(checkpoint.config.framing_of(pair.source.direction).target_prefix)
        model, source = checkpoint.model, torch.tensor([pair.source.ids])
        mask = torch.ones_like(source, dtype=torch.bool)
        inputs = torch.tensor([decoder_inputs(checkpoint.config.bos_token_id, pair.target_ids)])
        hidden, encoder_weights = model.encode(source, mask)
        states, *decoder_weights = model.decode(inputs, hidden, mask)
        self.states = states[0]
        found = attention.everything(pair.source.ids, pair.target_ids)
        self._max_attention_difference = _largest(
            _largest_difference(of_layer[0].numpy(), theirs)
            for ours, of_kind in zip((encoder_weights, *decoder_weights), found, strict=False)
            for of_layer, theirs in zip(ours, of_kind, strict=True)
        )
        self._of_attention_pass = found.logprobs
        # By step: the log-prob of the target's token by PyTorch, how far ONNX Runtime's is from it, and any token's.
        self._logprobs: list[float] = []
        self._differences: list[float] = []
        self._distribution_differences: list[float] = []

    def compare_step(self, expected: NDArray[np.float32], found: NDArray[np.float32]) -> None:
        """Compares the log-probs of the vocabulary at the next step, [V]; `found` are ONNX Runtime's."""
        step = len(self._logprobs)
        torch_id, onnx_id = self.pair.target_ids[step], int(found.argmax())
        self._logprobs.append(float(expected[torch_id]))
        self._differences.append(abs(float(expected[torch_id] - found[torch_id])))
        self._distribution_differences.append(_largest_difference(expected, found))
        if self.divergence is None and step >= self._num_forced and onnx_id != torch_id:
            margin = float(expected[torch_id] - expected[onnx_id])
            self.divergence = Divergence(self._index, step, torch_id, onnx_id, margin)

    def parity(self) -> SentenceParity:
        """The result when all steps were compared."""
        of_attention_pass = _largest_difference(np.array(self._logprobs, np.float32), self._of_attention_pass)
        return SentenceParity(
            source=self.pair.source,
            token_ids=self.pair.target_ids,
            token_logprobs=tuple(self._logprobs),
            max_logprob_difference=_largest((*self._differences, of_attention_pass)),
            max_distribution_difference=_largest(self._distribution_differences),
            max_attention_difference=self._max_attention_difference,
        )


def _compare_steps(checkpoint: Checkpoint, runner: ModelRunner, sentences: Sequence[_Sentence]) -> None:
    """Forces targets, the longest first, through the decoder.

    The log-probs of a large vocabulary at all steps would take up more than the model, so they are there for some steps
    at a time.
    """
    model, config = checkpoint.model, checkpoint.config
    rows = [decoder_inputs(config.bos_token_id, sentence.pair.target_ids) for sentence in sentences]
    runner.encode([sentence.pair.source.ids for sentence in sentences], first_row=0)
    num_steps = max(1, MAX_TABLE_BYTES // (4 * config.dimensions.target_vocabulary_size * len(sentences)))
    for first in range(0, len(rows[0]), num_steps):
        parts = [sentence.states[first : first + num_steps] for sentence in sentences]
        log_probs = model.project(torch.cat(parts)).log_softmax(dim=-1).numpy()
        expected = np.split(log_probs, np.cumsum([len(part) for part in parts])[:-1])
        for position in range(first, first + len(parts[0])):
            inputs = [row[position] for row in rows if len(row) > position]
            output = runner.decode_step(inputs, [position] * len(inputs), all_rows=range(len(inputs)))
            # Those that are shorter have ended.
            for sentence, of_sentence, found in zip(sentences, expected, output.all_logprobs, strict=False):
                sentence.compare_step(of_sentence[position - first], found)


def _largest(values: Iterable[float]) -> float:
    """NaN where any is."""
    return float(np.max(list(values)))


def _largest_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Of numbers that may be minus infinity on both sides, as the log-prob of a token that is never written."""
    return float(np.abs(np.subtract(a, b, out=np.zeros_like(a), where=a != b)).max())
