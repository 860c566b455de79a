"""Dragoman's engine and its peers behind one method: token ids in, token ids out."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import MarianMTModel

from benchmarks.models import Model
from benchmarks.peers import check_marian, marian_model
from benchmarks.report import Subject
from dragoman_export.greedy import pad
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.search_options import SearchOptions
from dragoman_server.engine.segment_engine import SegmentEngine
from dragoman_server.engine.sequence import Completion, Request
from dragoman_server.registry.model import Model as ServedModel
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.runtime.machine import available_cpus
from dragoman_server.runtime.runners import ModelRunner

Source = tuple[int, ...]


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


@dataclass(frozen=True)
class TransformersSystem:
    """Hugging Face's generate, at float32 on the CPU or at fp16 on a GPU."""

    subject: Subject
    model: MarianMTModel
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def load(
        cls, model: Model, threads: int, device: str = "cpu", precision: Precision = "fp32"
    ) -> "TransformersSystem":
        """Sets the threads of PyTorch in this process.

        Raises:
            UnequalWeightsError: it does something else than the bundle.
        """
        manifest = model.bundle.manifest
        torch.set_num_threads(threads)
        converted = marian_model(model.checkpoint)
        check_marian(converted, manifest)
        if precision == "fp16":
            converted = converted.half()
        converted = converted.to(device)
        subject = Subject.of("Transformers", "transformers", precision, threads, model.name)
        return cls(subject, converted, manifest.pad_token_id, manifest.eos_token_id)

    @torch.inference_mode()
    def translate(self, batch: Sequence[Source], decoding: Decoding) -> list[Sequence[int]]:
        input_ids, mask = pad(batch, self.pad_token_id, self.model.device)
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
