"""Peers in processes of their own: Marian, and ONNX Runtime by optimum."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.conversion import UnequalWeightsError, with_split_positions, without_eos
from benchmarks.marian import as_marian_computes, save_marian
from benchmarks.models import Model
from benchmarks.peers import marian_model
from benchmarks.report import Subject
from benchmarks.systems import Decoding, Source, until
from benchmarks.worker import Worker, running
from dragoman_export.greedy import greedy_decode

_FOLDER = Path(__file__).parent
OPTIMUM_PYTHON = _FOLDER.parent / ".venv-optimum" / "bin" / "python"
_MINI_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_SUB_BATCHES = (32, 64)
_LENGTH_FACTOR = 8.0  # of a source: more than any translation needs
_CHECK_FACTOR = 2  # of the length of a source: how long the targets are that are compared


# -- Marian ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MarianSystem:
    """Marian with packed int8 weights and a worker for each thread; `at` gives it another mini-batch."""

    subject: Subject
    worker: Worker
    eos_token_id: int
    threads: int
    mini_batch: int = 1
    precision: str = "int8"

    def settings(self, num_sentences: int) -> list[int]:
        """Sentences that each of its threads takes at a time."""
        return [size for size in _MINI_BATCHES if size == 1 or size < 2 * num_sentences / self.threads]

    def at(self, setting: int) -> "MarianSystem":
        """The same weights at a setting, which the table tells."""
        words = f"{self.threads}x1, {setting} at a time"
        return replace(self, mini_batch=setting, subject=replace(self.subject, setting=words))

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        # Marian's limit is a multiple of the longest source of a mini-batch: for an exact one all must be as long.
        is_exact = decoding.min_target_tokens == decoding.max_target_tokens
        factor = decoding.max_target_tokens / max(map(len, batch)) if is_exact else _LENGTH_FACTOR
        targets = self.worker.ask(
            sources=[without_eos(source, self.eos_token_id) for source in batch],
            precision=self.precision,
            threads=self.threads,
            mini_batch=self.mini_batch,
            beam_size=decoding.beam_size,
            length_factor=factor,
        )
        # As CTranslate2, it decodes end-of-sentence and leaves it out of the answer.
        return [t if len(t) >= decoding.max_target_tokens else [*t, self.eos_token_id] for t in targets]


@contextlib.contextmanager
def marian(model: Model, folder: Path, threads: int, *, never_ends: bool) -> Iterator[MarianSystem | None]:
    """Marian with a model's weights, which are written to the folder; None, and a line on stderr, where it is missing.

    Raises:
        UnequalWeightsError: at float32 it does something else than our model with Marian's positions.
        RuntimeError: it does not start.
    """
    if importlib.util.find_spec("pymarian") is None:
        _leave_out(
            "Marian", "the package pymarian is not installed, which has wheels for Python 3.11 and 3.12 on x86_64"
        )
        yield None
        return
    config = model.checkpoint.config
    save_marian(model.checkpoint, folder / "same")
    with running("Marian", sys.executable, _FOLDER / "marian_worker.py", folder / "same") as worker:
        subject = Subject("Marian", worker.version, "int8", threads, model.name)
        system = MarianSystem(subject, worker, config.eos_token_id, threads)
        _check_marian(replace(system, precision="fp32"), model)
        if not never_ends:
            yield system
            return
    save_marian(model.checkpoint, folder / "endless", never_ends=True)
    with running("Marian", sys.executable, _FOLDER / "marian_worker.py", folder / "endless") as worker:
        yield replace(system, worker=worker)


def _check_marian(system: MarianSystem, model: Model) -> None:
    checkpoint = with_split_positions(model.checkpoint)
    reference = as_marian_computes(checkpoint.model, checkpoint.config.bos_token_id)
    for golden in model.bundle.manifest.parity.golden:
        limit = _CHECK_FACTOR * len(golden.source_ids)
        [expected] = greedy_decode(reference, checkpoint.config, [golden.source_ids], limit)
        [target] = system.translate([golden.source_ids], Decoding(1, limit, limit))
        if list(target) != expected:
            raise UnequalWeightsError("Marian does not give the greedy ids of PyTorch with Marian's positions")


# -- optimum ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OptimumSystem:
    """ONNX Runtime at int8 behind Hugging Face's generate; `at` gives it another number of sentences at a time."""

    subject: Subject
    worker: Worker
    eos_token_id: int
    threads: int
    max_batch: int = 1
    precision: str = "int8"

    def settings(self, num_sentences: int) -> list[int]:
        """The batch in one piece or in several."""
        return sorted({num_sentences, *(size for size in _SUB_BATCHES if size < num_sentences)})

    def at(self, setting: int) -> "OptimumSystem":
        """The same weights at a setting, which the table tells."""
        words = f"1x{self.threads}, {setting} at a time"
        return replace(self, max_batch=setting, subject=replace(self.subject, setting=words))

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        targets = self.worker.ask(
            sources=batch,
            precision=self.precision,
            threads=self.threads,
            max_batch=self.max_batch,
            beam_size=decoding.beam_size,
            min_target_tokens=decoding.min_target_tokens,
            max_target_tokens=decoding.max_target_tokens,
        )
        return [until(target, self.eos_token_id) for target in targets]


@contextlib.contextmanager
def optimum(model: Model, folder: Path, threads: int) -> Iterator[OptimumSystem | None]:
    """optimum with a model's weights; None, and a line on stderr, where its environment is missing.

    Raises:
        UnequalWeightsError: at float32 it does something else than the bundle.
        RuntimeError: it does not start.
    """
    if not OPTIMUM_PYTHON.exists():
        _leave_out("optimum", f"{OPTIMUM_PYTHON} is missing, an environment of its own that `make bench` sets up")
        yield None
        return
    marian_model(with_split_positions(model.checkpoint)).save_pretrained(folder / "model")
    with running(
        "optimum", OPTIMUM_PYTHON, _FOLDER / "optimum_worker.py", folder / "model", folder / "graphs"
    ) as worker:
        subject = Subject("ONNX Runtime by optimum", worker.version, "int8", threads, model.name)
        system = OptimumSystem(subject, worker, model.checkpoint.config.eos_token_id, threads)
        exact = replace(system, precision="fp32")
        for golden in model.bundle.manifest.parity.golden:
            [target] = exact.translate([golden.source_ids], Decoding(1, len(golden.token_ids)))
            if tuple(target) != tuple(golden.token_ids):
                raise UnequalWeightsError("optimum does not give the greedy ids of the golden sentences of the bundle")
        yield system


def _leave_out(peer: str, reason: str) -> None:
    Console(stderr=True).print(f"{peer} is left out: {reason}.", soft_wrap=True)
