"""What a run on a GPU measures, and how far it gets in its time."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from benchmarks.models import Model, at_precision, default_model, opus_base
from benchmarks.settings import Settings
from dragoman_server.runtime.device_memory import Memory

Size = tuple[int, int]  # beam size and sentences

# The most important first, for a run that is cut off.
_STEP_BATCHES = (1, 64, 8, 32, 128, 256, 512)
_SIZES: tuple[Size, ...] = (
    *((1, batch) for batch in (64, 1, 8, 32, 128, 256, 512)),
    *((4, batch) for batch in (64, 1, 8, 32, 128, 256, 512)),
)
_QUICK_SIZES: tuple[Size, ...] = (*_SIZES[:7], (4, 64), (4, 1))
_TINY_BATCHES, _TINY_SIZES = (1, 4), ((1, 4), (4, 1))


class LeftOutError(Exception):
    """Something is not measured on this machine; the reason."""


@dataclass(frozen=True)
class Plan:
    """Options of a run. On a CPU, where it is only rehearsed, all sizes are tiny."""

    device: Literal["cpu", "cuda"]
    sentences: tuple[str, ...]
    is_quick: bool
    max_seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def is_tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def step_batches(self) -> tuple[int, ...]:
        return _TINY_BATCHES if self.is_tiny else _STEP_BATCHES

    @property
    def sizes(self) -> tuple[Size, ...]:
        if self.is_tiny:
            return _TINY_SIZES
        return _QUICK_SIZES if self.is_quick else _SIZES

    @property
    def num_steps(self) -> int:
        """That the median is taken of."""
        return 3 if self.is_tiny else 50

    @property
    def memory(self) -> Memory:
        """Where the graphs compute."""
        return Memory(self.device)

    @cached_property
    def settings(self) -> Settings:
        """For the parts that are shared with runs on CPUs. A GPU's host does not compute, on one thread or another."""
        num_pairs = 1 if self.is_tiny else 3 if self.is_quick else 7
        load_seconds = 0.5 if self.is_tiny else 3.0 if self.is_quick else 15.0
        return Settings(self.sentences, 1, self.is_tiny, num_pairs, settle_seconds=0.0, load_seconds=load_seconds)

    def require_time(self) -> None:
        """To be called before each figure.

        Raises:
            LeftOutError: the time of the run is over.
        """
        if (passed := time.monotonic() - self.started) > self.max_seconds:
            raise LeftOutError(f"{passed:.0f} s had passed, of {self.max_seconds:.0f}")


class Models:
    """The models at fp16, each made when it is first asked for."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder

    @classmethod
    @contextlib.contextmanager
    def of(cls, plan: Plan) -> Iterator[Self]:
        """In a folder that is removed at the end."""
        with tempfile.TemporaryDirectory() as folder:
            yield cls(plan, Path(folder))

    @cached_property
    def opus_base(self) -> Model:
        """The dimensions of OPUS-MT; much less where the run is tiny."""
        return opus_base(self._folder, self._plan.settings, precision="fp16")

    @cached_property
    def default(self) -> Model:
        """The shipped model."""
        return at_precision(default_model(), self._folder / "default", "fp16")

    def folder(self, name: str) -> Path:
        """For files of a peer."""
        return self._folder / name
