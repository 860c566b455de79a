"""Whole translations of batches of token ids: the engine on the device against Hugging Face and CTranslate2."""

import contextlib
import importlib.util
import random
from collections.abc import Iterator

import torch

from benchmarks.comparison import Workload, compare
from benchmarks.gpu.plan import LeftOutError, Models, Plan
from benchmarks.models import Model
from benchmarks.report import Row, Subject, package_version
from benchmarks.systems import DragomanSystem, System, TransformersSystem
from dragoman_server.config import EngineOptions
from dragoman_server.registry.model import Model as ServedModel
from dragoman_server.runtime.hardware import Hardware

_FORCED_TOKENS = 20
# A GPU encodes a whole batch faster than it is told of several parts.
_MAX_ENCODER_TOKENS = 16_384
_MAX_RUNNING = 2048


def opus_base(plan: Plan, models: Models) -> Iterator[Row]:
    """20 tokens to exactly 20, of random weights."""
    model = models.opus_base
    num_sentences = max(batch for _, batch in plan.sizes)
    sources = model.random_sources(num_sentences, _FORCED_TOKENS)
    yield from _measure(plan, models, Workload(model, sources, 1, _FORCED_TOKENS))


def default(plan: Plan, models: Models) -> Iterator[Row]:
    """Real sentences, in random order."""
    sources = models.default.sentence_sources(plan.sentences)
    random.Random(0).shuffle(sources)
    yield from _measure(plan, models, Workload(models.default, sources, 1 if plan.is_tiny else 8))


def _measure(plan: Plan, models: Models, workload: Workload) -> Iterator[Row]:
    peers = []
    for name, load in (("Transformers", _transformers), ("CTranslate2", _ctranslate2)):
        try:
            peers.append(load(plan, models, workload.model))
        except LeftOutError as reason:
            print(f"{workload.model.name}: {name} is left out: {reason}.", flush=True)
    with _dragoman(plan, workload.model) as ours:
        for beam, batch in plan.sizes:
            plan.require_time()
            yield from compare(ours, peers, workload, batch, beam, plan.settings, slow_every=1)


@contextlib.contextmanager
def _dragoman(plan: Plan, model: Model) -> Iterator[DragomanSystem]:
    """The engine as the server has it, with room for the largest batch."""
    num_rows = 16 if plan.is_tiny else _MAX_RUNNING
    options = EngineOptions(device=plan.device, max_running=num_rows, max_encoder_tokens=_MAX_ENCODER_TOKENS)
    with Hardware(options) as hardware, ServedModel.open(model.bundle.folder, options, hardware) as served:
        version = package_version("dragoman")
        subject = Subject("Dragoman", version, served.manifest.precision, 1, model.name, f"{num_rows} rows")
        yield DragomanSystem(subject, served.engine, served.runners)


def _transformers(plan: Plan, models: Models, model: Model) -> System:
    """Raises LeftOutError where PyTorch has no CUDA."""
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LeftOutError("torch.cuda.is_available() is False")
    return TransformersSystem.load(model, torch.get_num_threads(), plan.device, "fp16")


def _ctranslate2(plan: Plan, models: Models, model: Model) -> System:
    """Raises LeftOutError where CTranslate2 does not run on the device at float16."""
    if importlib.util.find_spec("ctranslate2") is None:
        raise LeftOutError("the package ctranslate2 is not installed")
    import ctranslate2

    from benchmarks.ct2 import CTranslate2System, save_ctranslate2

    try:
        types = ctranslate2.get_supported_compute_types(plan.device)
    except (RuntimeError, ValueError) as error:
        raise LeftOutError(f"its wheel does not run on {plan.device}: {error}") from error
    compute_type = "float16" if "float16" in types else "float32"
    if plan.device == "cuda" and compute_type != "float16":
        raise LeftOutError(f"on this device it computes at {', '.join(sorted(types))} alone")
    folder = models.folder(f"ctranslate2-{model.name}")
    save_ctranslate2(model.checkpoint, folder)
    CTranslate2System.load(folder, model, "fp32", 1)  # checks that the weights are the same
    try:
        translator = ctranslate2.Translator(str(folder), device=plan.device, compute_type=compute_type)
        translator.translate_batch([["5", "6"]], max_decoding_length=2)
    except RuntimeError as error:
        raise LeftOutError(f"its wheel does not run on {plan.device}: {error}") from error
    precision = {"float16": "fp16", "float32": "fp32"}[compute_type]
    subject = Subject("CTranslate2", package_version("ctranslate2"), precision, 1, model.name)
    return CTranslate2System.on_device(translator, subject, model.bundle.manifest.eos_token_id)
