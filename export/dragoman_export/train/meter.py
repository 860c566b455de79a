"""Speed of a training, and utilisation of its device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dragoman_export.train.loader import Batch, PlacedBatch

SAMPLED_EVERY = 100  # steps
SLEEP_CYCLES = 100_000_000  # about 50 ms of a GPU, in which a whole step can be enqueued


@dataclass(frozen=True)
class Speed:
    """`utilisation` is the share of time in which the device computes, 0..1; None as long as it is not known."""

    tokens_per_second: float  # of both sides, without padding
    utilisation: float | None


class Meter:
    """Counts from the moment it was made.

    A CPU counts as busy unless the training waits for a batch. On a GPU, one step in a hundred is timed by events, with
    all of its work enqueued before any of it runs. That is the time that the device computes for that many tokens. The
    rest of the time it waits for batches, or for Python to enqueue more.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._started = time.monotonic()
        self._waited_seconds = 0.0
        self._num_steps = self._num_tokens = self._num_padded_tokens = 0
        self._sampled_seconds, self._sampled_tokens = 0.0, 0
        self._events: list[tuple[Any, Any, int]] = []

    def next(self, batches: Iterator[PlacedBatch]) -> PlacedBatch:
        """The next batch; the time it takes is waiting."""
        started = time.monotonic()
        batch = next(batches)
        self._waited_seconds += time.monotonic() - started
        return batch

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """Surrounds a step, or on a GPU the calls that enqueue it."""
        self._num_steps += 1
        self._num_tokens += batch.num_tokens
        self._num_padded_tokens += batch.num_padded_tokens
        if not self._is_cuda or self._num_steps % SAMPLED_EVERY:
            yield
            return
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        yield
        end.record()
        self._events.append((begin, end, batch.num_padded_tokens))

    def speed(self) -> Speed:
        seconds = time.monotonic() - self._started
        utilisation: float | None = 1 - self._waited_seconds / seconds
        if self._is_cuda:
            while self._events and self._events[0][1].query():
                begin, end, num_tokens = self._events.pop(0)
                self._sampled_seconds += begin.elapsed_time(end) / 1000
                self._sampled_tokens += num_tokens
            utilisation = None
            if self._sampled_tokens:
                computing = self._sampled_seconds / self._sampled_tokens * self._num_padded_tokens
                utilisation = min(1.0, computing / seconds)
        return Speed(self._num_tokens / seconds, utilisation)
