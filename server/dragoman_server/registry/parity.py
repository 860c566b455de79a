"""Replays the parity certificate: before a model is served, it must still do what its PyTorch source did."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import numpy as np

from dragoman.types import AttentionKind
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import ATTENTION_FILE, Golden
from dragoman_server.engine.runner import Runner
from dragoman_server.engine.search import StepOutput
from dragoman_server.errors import BundleError
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.runtime.memory import memory_limit
from dragoman_server.runtime.runners import ModelRunner
from dragoman_server.runtime.session import denormals_flushed

# Golden sentences, which may be as long as the model allows.
MAX_TOGETHER = 8

# What running these may take beside the pool of keys and values: several times what the largest models need.
_MAX_BYTES = 4 << 30

# How far softmax weights may be from 1 in sum, and what is the same from being the same: all float32 at any precision.
_MAX_ROUNDING = 1e-3


def replay(bundle: Bundle, runner: ModelRunner) -> float:
    """Feeds the golden targets through the decoder and compares; returns the largest log-prob difference (nats).

    At fp32 the model must also choose every golden token by itself. int8 chooses differently now and then, which is
    what the recorded tolerance is for. Sentences are decoded together, as they will be when the model is served: those
    of other lengths beside them, and the padding, must not matter.

    Raises:
        BundleError: naming the golden sentence and what differs, or why it cannot be run.
    """
    parity = bundle.manifest.parity
    largest = 0.0
    num_together = min(runner.max_rows, MAX_TOGETHER)
    for first in range(0, len(parity.golden), num_together):
        goldens = parity.golden[first : first + num_together]
        with _running(str(bundle.folder), first, runner.max_kv_bytes):
            found = force(runner, goldens, bundle.manifest.decoder_start_token_id)
        for index, (golden, (chosen, logprobs)) in enumerate(zip(goldens, found, strict=True), first):
            num_forced = len(bundle.manifest.framing_of(golden.direction).target_prefix)
            expected = list(golden.token_ids[num_forced:])
            if bundle.manifest.precision == "fp32" and chosen[num_forced:] != expected:
                raise BundleError(
                    f"{bundle.folder}: on this machine the model does not reproduce golden sentence {index} of its "
                    f"parity certificate: it chooses tokens {chosen[num_forced:]} instead of {expected}"
                )
            largest = max(largest, _difference(bundle, str(bundle.folder), index, logprobs))
    runner.give_back_memory()  # large pages, of which the golden sentences filled little
    return largest


def replay_attention(bundle: Bundle, attention: AttentionPass) -> None:
    """Has the attention graph read and write the first golden sentence, and looks at its weights and log-probs.

    Raises:
        BundleError: naming the graph and what is wrong, or why it cannot be run.
    """
    golden, path = bundle.manifest.parity.golden[0], str(bundle.folder / ATTENTION_FILE)
    with _running(path, 0):
        weights = {
            kind: np.stack(attention.weights(kind, golden.source_ids, golden.token_ids))
            for kind in get_args(AttentionKind)
        }
        logprobs = attention.logprobs(golden.source_ids, golden.token_ids).tolist()
    for kind, rows in weights.items():
        # Also refuses NaN. Negative weights may sum to 1, too.
        if not (abs(rows.sum(axis=-1) - 1) <= _MAX_ROUNDING).all() or rows.min() < 0:
            raise BundleError(f"{path}: the {kind} weights of golden sentence 0 are no weights that sum to 1")
    if np.triu(weights["decoder"], k=1).any():
        raise BundleError(f"{path}: in golden sentence 0 the decoder attends to tokens that it has yet to write")
    _difference(bundle, path, 0, logprobs)


def force(
    runner: Runner, goldens: Sequence[Golden], decoder_start_token_id: int, *, is_checked: bool = True
) -> list[tuple[list[int], list[float]]]:
    """Decodes golden targets together, one a row; the model's own choices and the target's log-probs of each.

    Raises:
        ValueError: `is_checked`, and the outputs of a step contradict each other.
    """
    runner.encode([golden.source_ids for golden in goldens], first_row=0)
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in goldens]
    inputs = [decoder_start_token_id] * len(goldens)
    for position in range(max(len(golden.token_ids) for golden in goldens)):
        # A row that is at its end goes on with its last token.
        labels = [golden.token_ids[min(position, len(golden.token_ids) - 1)] for golden in goldens]
        all_rows = range(len(goldens)) if position == 0 else ()
        output = runner.decode_step(inputs, [position] * len(goldens), top_k=2, score_ids=labels, all_rows=all_rows)
        if all_rows and is_checked:
            _check_agreement(output, labels)
        for row, golden in enumerate(goldens):
            if position < len(golden.token_ids):
                chosen, logprobs = found[row]
                chosen.append(int(output.top_ids[row, 0]))
                logprobs.append(float(output.score_logprobs[row]))
        inputs = labels
    return found


def _check_agreement(output: StepOutput, labels: Sequence[int]) -> None:
    """Raises ValueError unless all that a step says of its rows is about the same distributions."""
    logprobs, logits = output.all_logprobs, output.all_logits
    for found, expected in (
        (np.exp(logprobs).sum(axis=1), 1.0),
        (logits - logits.max(axis=1, keepdims=True), logprobs - logprobs.max(axis=1, keepdims=True)),
        (output.top_logprobs[:, 0], logprobs.max(axis=1)),
        (output.top_logprobs, np.take_along_axis(logprobs, output.top_ids, axis=1)),
        (output.score_logprobs, logprobs[np.arange(len(labels)), labels]),
    ):
        if not np.allclose(found, expected, rtol=0, atol=_MAX_ROUNDING):
            raise ValueError("the outputs of a step contradict each other")


def _difference(bundle: Bundle, subject: str, index: int, logprobs: Sequence[float]) -> float:
    """The largest difference from the log-probs of a golden sentence; BundleError where it is out of tolerance."""
    parity = bundle.manifest.parity
    difference = float(np.abs(np.subtract(logprobs, parity.golden[index].token_logprobs)).max())
    if not difference <= parity.logprob_tolerance:  # also refuses NaN
        raise BundleError(
            f"{subject}: on this machine the log-probs of golden sentence {index} differ by {difference:.3g} "
            f"from those of its parity certificate; the tolerance is {parity.logprob_tolerance:.3g}"
        )
    return difference


@contextmanager
def _running(subject: str, index: int, num_bytes: int = 0) -> Iterator[None]:
    """Where golden sentences run, the first of them `index`, that may take `num_bytes` more than others."""
    try:
        with memory_limit(_MAX_BYTES + num_bytes), denormals_flushed():  # as in the lanes
            yield
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{subject}: golden sentence {index} cannot be run: {error}") from error
