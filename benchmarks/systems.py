"""Dragoman's engine and its peers behind one method: token ids in, token ids out."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ctranslate2
import torch
from transformers import MarianMTModel

from benchmarks.models import Model
from benchmarks.peers import check_ctranslate2, check_marian, marian_model
from benchmarks.report import Subject
from dragoman_export.greedy import pad
from dragoman_server.config import EngineOptions
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.sequence import Completion, Request
from dragoman_server.registry.model import Model as ServedModel
from dragoman_server.registry.model import SegmentEngine
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.runners import ModelRunner

Source = tuple[int, ...]
# By the precision in our tables, what CTranslate2 calls it.
COMPUTE_TYPES = {"int8": "int8", "fp32": "float32"}
_PIECES = (16, 32, 64)  # sentences that CTranslate2 is given at a time
_MOST_PIECE = 256


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a batch is decoded, by everyone."""

    beam_size: int
    max_target_tokens: int
    min_target_tokens: int = 0


class System(Protocol):
    """Something that translates a batch of token ids."""

    @property
    def subject(self) -> Subject:
        """What to call it."""

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        """The best target of each source, with end-of-sentence where that was decoded."""


@runtime_checkable
class TunableSystem(System, Protocol):
    """A peer that is only fast when it is set up for the work at hand."""

    def settings(self, num_sentences: int) -> Sequence[Any]:
        """Those that may be the best for so many sentences."""

    def at(self, setting: Any) -> "TunableSystem":
        """The same at one of the settings."""


@dataclass(frozen=True)
class DragomanSystem:
    """The engine as the server runs it, without the server."""

    subject: Subject
    engine: SegmentEngine
    runners: Sequence[ModelRunner]  # one for each lane

    def complete(self, batch: Sequence[Source], decoding: Decoding) -> list[Completion]:
        """What the engine answers, with its own times."""
        options = SearchOptions(beam_size=decoding.beam_size, min_target_tokens=decoding.min_target_tokens)
        limit = decoding.max_target_tokens
        futures = self.engine.submit([Request(source, limit, options=options) for source in batch])
        return [future.result() for future in futures]

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        return [completion.hypotheses[0].token_ids for completion in self.complete(batch, decoding)]


@contextlib.contextmanager
def dragoman(
    model: Model, threads: int, num_rows: int | None = None, lanes: int | None = None
) -> Iterator[DragomanSystem]:
    """An engine as a user gets it: on fewer threads than there are processors, with as many lanes.

    Args:
        model: what it translates with.
        threads: that compute.
        num_rows: that a lane decodes at a time, in place of the default.
        lanes: of one thread each, in place of the default.
    """
    if lanes is None and threads == available_cpus():
        options = EngineOptions()
    else:
        options = EngineOptions(lanes=lanes or threads, num_threads=1)
    if num_rows is not None:
        options = replace(options, max_running=num_rows)
    with Hardware(options) as hardware, ServedModel.open(model.bundle.folder, options, hardware) as served:
        subject = Subject.of("Dragoman", "dragoman", served.manifest.precision, threads, model.name)
        yield DragomanSystem(subject, served.engine, served.runners)


class Setting(NamedTuple):
    """How CTranslate2 shares a batch among the processors."""

    num_workers: int
    num_threads: int  # within an operator of one worker
    max_batch: int  # sentences that a worker takes at a time


def _piece_sizes(num_sentences: int, num_workers: int) -> list[int]:
    whole = min(-(-num_sentences // num_workers), _MOST_PIECE)
    return sorted({whole, *(size for size in _PIECES if size < num_sentences)})


@dataclass(frozen=True, eq=False)
class CTranslate2System:
    """CTranslate2 with its defaults but for the setting; `at` gives it another."""

    subject: Subject
    translators: Mapping[tuple[int, int], ctranslate2.Translator]  # by workers and threads of each
    eos_token_id: int
    setting: Setting

    @classmethod
    def load(cls, folder: Path, model: Model, precision: str, threads: int) -> "CTranslate2System":
        """Loads what `save_ctranslate2` wrote.

        Raises:
            UnequalWeightsError: fp32, which can be held against the bundle, does something else.
        """
        manifest = model.bundle.manifest
        translators = {
            (num_workers, num_threads): ctranslate2.Translator(
                str(folder),
                device="cpu",
                compute_type=COMPUTE_TYPES[precision],
                inter_threads=num_workers,
                intra_threads=num_threads,
            )
            for num_workers, num_threads in {(1, 1), (1, threads), (threads, 1)}
        }
        if precision == "fp32":
            check_ctranslate2(translators[1, 1], manifest)
        subject = Subject.of("CTranslate2", "ctranslate2", precision, threads, model.name)
        return cls(subject, translators, manifest.eos_token_id, Setting(1, 1, 1))

    def settings(self, num_sentences: int) -> list[Setting]:
        """One worker or all, the batch in one piece, in one for each worker, or in many."""
        return [
            Setting(num_workers, num_threads, size)
            for num_workers, num_threads in sorted(self.translators)
            for size in _piece_sizes(num_sentences, num_workers)
        ]

    def at(self, setting: Setting) -> "CTranslate2System":
        """The same weights at a setting, which the table tells."""
        words = f"{setting.num_workers}x{setting.num_threads}, {setting.max_batch} at a time"
        return replace(self, setting=setting, subject=replace(self.subject, setting=words))

    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        results = self.translators[self.setting[:2]].translate_batch(
            [list(map(str, source)) for source in batch],
            max_batch_size=self.setting.max_batch,
            beam_size=decoding.beam_size,
            min_decoding_length=decoding.min_target_tokens,
            max_decoding_length=decoding.max_target_tokens,
            return_scores=True,
        )
        targets: list[Sequence[int]] = []
        for result in results:
            target = list(map(int, result.hypotheses[0]))
            # CTranslate2 decodes end-of-sentence and leaves it out of the answer.
            targets.append([*target, self.eos_token_id] if len(target) < decoding.max_target_tokens else target)
        return targets


@dataclass(frozen=True)
class TransformersSystem:
    """Hugging Face's generate, float32."""

    subject: Subject
    model: MarianMTModel
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def load(cls, model: Model, threads: int) -> "TransformersSystem":
        """Sets the threads of PyTorch in this process.

        Raises:
            UnequalWeightsError: it does something else than the bundle.
        """
        manifest = model.bundle.manifest
        torch.set_num_threads(threads)
        converted = marian_model(model.checkpoint)
        check_marian(converted, manifest)
        subject = Subject.of("Transformers", "transformers", "fp32", threads, model.name)
        return cls(subject, converted, manifest.pad_token_id, manifest.eos_token_id)

    @torch.inference_mode()
    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        input_ids, mask = pad(batch, self.pad_token_id)
        generated = self.model.generate(
            input_ids,
            attention_mask=mask.long(),
            num_beams=decoding.beam_size,
            min_new_tokens=decoding.min_target_tokens,
            max_new_tokens=decoding.max_target_tokens,
        )
        # The first is the decoder's own start; what follows end-of-sentence is padding.
        return [until(row[1:], self.eos_token_id) for row in generated.tolist()]


def until(token_ids: list[int], eos_token_id: int) -> list[int]:
    """A target up to its end-of-sentence, without the padding that follows."""
    return token_ids[: token_ids.index(eos_token_id) + 1] if eos_token_id in token_ids else token_ids
