"""Models on the device that tests/gpu is about, and PyTorch's float32 beside them.

`GPU_TESTS_ON=cpu` has the same graphs computed in the host's memory, so that the tests are known to be right before a
GPU runs them. What only a GPU has, CUDA graphs and batches that are filled up, is not tested then.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.runtime.device_memory import Buffer, Memory
from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner
from support.tiny_model import random_source

DEVICE: Literal["cpu", "cuda"] = "cpu" if os.environ.get("GPU_TESTS_ON") == "cpu" else "cuda"
MAX_ROWS = 12
ROOT = Path(__file__).parents[2]

# Of log-probs from PyTorch's float32, in nats; see the figures that `make test-gpu` prints.
TOLERANCES: dict[Precision, float] = {"fp16": 0.1, "bf16": 0.8}

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A model, its bundle, and the bundle's graphs on the device."""

    checkpoint: Checkpoint
    bundle: Bundle
    graphs: DeviceGraphs

    @classmethod
    def open(cls, checkpoint: Checkpoint, folder: Path) -> "Case":
        """The bundle in a folder, which was exported from the checkpoint."""
        bundle, contents = Bundle.load(folder)
        return cls(checkpoint, bundle, DeviceGraphs.open(bundle.manifest, contents, Memory(DEVICE)))

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.bundle.manifest.precision]

    def runner(self, max_rows: int = MAX_ROWS, **options: int) -> DeviceRunner:
        return DeviceRunner(self.graphs, max_rows, **options)

    def histories(self, source_lengths: Sequence[int], num_targets: int, seed: int = 0) -> list["History"]:
        """One for each source: sources and targets of random tokens."""
        rng = random.Random(seed)
        start, size = self.bundle.manifest.decoder_start_token_id, self.bundle.manifest.architecture.vocabulary_size
        return [
            History(
                self.checkpoint,
                tuple(random_source(self.checkpoint, length, rng).ids),
                (start, *rng.choices(range(4, size), k=num_targets - 1)),
            )
            for length in source_lengths
        ]


@dataclass(frozen=True)
class History:
    """What a row is given: its source, and the tokens that it is fed one after the other."""

    checkpoint: Checkpoint
    source: Ids
    fed: Ids

    @cached_property
    def expected(self) -> NDArray[np.float32]:
        """PyTorch's log-probs after each of the tokens, [tokens, V]."""
        source = torch.tensor([self.source])
        with torch.inference_mode():
            logits, _ = self.checkpoint.model(
                source, torch.ones_like(source, dtype=torch.bool), torch.tensor([self.fed])
            )
            logprobs: NDArray[np.float32] = logits[0].log_softmax(dim=-1).numpy()
        return logprobs


def difference(runner: DeviceRunner, histories: Sequence[History], positions: Sequence[int]) -> float:
    """Feeds row i the token at `positions[i]` of its history.

    Twice, which changes nothing: once as the search does, which may be a CUDA graph, once for the whole vocabulary.
    Returns the largest difference from PyTorch of all that the steps say; NaN where that is anywhere.
    """
    token_ids = [history.fed[position] for history, position in zip(histories, positions, strict=True)]
    expected = np.stack([history.expected[position] for history, position in zip(histories, positions, strict=True)])
    every_row = np.arange(len(token_ids))
    score_ids = [7 * row + position for row, position in enumerate(positions)]
    output = runner.decode_step(token_ids, positions, top_k=4, score_ids=score_ids)
    differences = [
        output.top_logprobs - np.take_along_axis(expected, output.top_ids, axis=1),
        output.top_logprobs[:, 0] - expected.max(axis=1),  # they are those of the most probable tokens
        output.score_logprobs - expected[every_row, score_ids],
    ]
    whole = runner.decode_step(token_ids, positions, all_rows=every_row.tolist())
    differences.append(whole.all_logprobs - expected)
    return float(np.abs(np.concatenate([found.ravel() for found in differences])).max())


def keys_and_values(runner: DeviceRunner) -> list[NDArray[Any]]:
    """A copy of what is in the pool: self-attention's, then cross-attention's, each [tensors, rows, H, C, K]."""
    return [buffer.read().copy().reshape(-1, runner.max_rows, *buffer.shape[1:]) for buffer in _pool_buffers(runner)]


def fill(runner: DeviceRunner, value: float) -> None:
    """Fills the whole pool with a value."""
    for buffer in _pool_buffers(runner):
        buffer.write(np.full(buffer.shape, value, buffer.dtype))


def _pool_buffers(runner: DeviceRunner) -> list[Buffer]:
    pool = runner._pool
    assert pool is not None
    return [pool._self.buffer, pool._cross.buffer]
