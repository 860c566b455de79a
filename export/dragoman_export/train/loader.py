"""Batches that are made ahead of the training, on separate threads."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dragoman_export.train.batches import BatchArrays, BatchMaker, BatchOptions, Direction, EpochPlan, plan_epoch

BATCHES_AHEAD = 8


@dataclass(frozen=True)
class Batch:
    """The arrays of `BatchArrays` as tensors; on their way to the device when it is a GPU."""

    source_ids: Tensor
    source_mask: Tensor | None
    target_ids: Tensor
    token_positions: Tensor | None
    labels: Tensor
    link_positions: Tensor
    link_weights: Tensor
    num_linked_tokens: int
    num_pairs: int
    num_tokens: int
    num_padded_tokens: int

    @classmethod
    def of(cls, arrays: BatchArrays, pinned: bool = False) -> "Batch":
        """Tensors in page-locked memory if `pinned`, from which a GPU copies asynchronously."""
        tensors = {
            name: torch.from_numpy(value) for name, value in vars(arrays).items() if isinstance(value, np.ndarray)
        }
        if pinned:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return cls(**{**vars(arrays), **tensors}, num_padded_tokens=arrays.num_padded_tokens)

    def to(self, device: torch.device) -> "Batch":
        """Does not wait for the copies, which read page-locked memory."""
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return Batch(**{**vars(self), **moved})


@dataclass(frozen=True)
class PlacedBatch:
    """A batch and its place in the epoch."""

    batch: Batch
    epoch: int
    index: int
    num_batches: int  # of its epoch


class BatchLoader:
    """Plans epochs and assembles their batches on two threads: one plans the next epoch, one assembles."""

    def __init__(
        self,
        directions: Sequence[Direction],
        maker: BatchMaker,
        options: BatchOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        self._directions, self._maker, self._options, self._seed = directions, maker, options, seed
        self._pinned = device.type == "cuda"

    def batches(self, epoch: int, index: int) -> Generator[PlacedBatch]:
        """All batches from the given place on, without end; raises ValueError for an epoch that has none."""
        with ThreadPoolExecutor(1) as planner, ThreadPoolExecutor(1) as assembler:
            ahead: deque[Future[PlacedBatch]] = deque()
            for place in self._places(planner, epoch, index):
                ahead.append(assembler.submit(self._make, *place))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead.popleft().result()

    def _places(self, planner: ThreadPoolExecutor, epoch: int, index: int) -> Iterator[tuple[EpochPlan, int, int]]:
        plan = self._plan(epoch)
        while True:
            following = planner.submit(self._plan, epoch + 1)
            for place in range(index, len(plan)):
                yield plan, epoch, place
            plan, epoch, index = following.result(), epoch + 1, 0

    def _plan(self, epoch: int) -> EpochPlan:
        plan = plan_epoch(self._directions, self._options, self._seed, epoch)
        if not len(plan):
            raise ValueError(
                f"an epoch has no pair: none has at most {self._options.max_tokens} tokens and some weight"
            )
        return plan

    def _make(self, plan: EpochPlan, epoch: int, index: int) -> PlacedBatch:
        return PlacedBatch(Batch.of(self._maker.assemble(plan, index), self._pinned), epoch, index, len(plan))
