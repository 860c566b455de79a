"""A model of NLLB-200's size, from its folder to a service: what the import takes, and how fast it is served.

    python -m benchmarks.nllb

Not a part of `python -m benchmarks`: it takes half an hour, 8 GB of memory and 10 GB in the folder for temporary files.
The folder is as Hugging Face has it, with the dimensions of the distilled model of 600 M parameters, its languages and
random weights. `dragoman-export import` runs in a process of its own. What is served is a call of sentences over gRPC;
CTranslate2 has the same ids in this process, at its best setting. Then the same with a list of the target language.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import M2M100Config, M2M100ForConditionalGeneration
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from benchmarks.comparison import Workload, compare
from benchmarks.ct2 import CTranslate2System, save_ctranslate2
from benchmarks.models import DEFAULT_CHECKPOINT, Model
from benchmarks.report import Row, Subject
from benchmarks.servers import ServedSystem, dragoman_server
from benchmarks.settings import TARGET_LANGUAGE, Settings, run_part
from benchmarks.statistics import Summary
from benchmarks.systems import Source
from benchmarks.vocabulary import SIZES, against_full, save_vmap, with_lists
from dragoman import Client
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision

_NAME = "NLLB-600M"
_NUM_PIECES, _VOCABULARY_SIZE = 256_000, 256_206
_LIST_TOKENS = 60_000  # of a language; text in a language of Latin script uses fewer
_FORCED_TOKENS = 20
_MIN_SENTENCES = 4  # of one run
_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_TIMEOUT_SECONDS = 300.0


def run(settings: Settings) -> Iterator[Row]:
    """Time and memory of the import; throughput of the served bundle against CTranslate2 at int8.

    Raises:
        UnequalWeightsError: CTranslate2 does not reproduce the model.
        RuntimeError: the import has failed, or the server does not start.
    """
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name) / "source", Path(name)
        _write_model(source, is_quick=settings.is_quick)
        for precision in _PRECISIONS:
            yield from _import(source, folder / precision, precision, settings)
        # The golden sentences of the fp32 bundle hold for CTranslate2 at float32.
        checkpoint = read_model(source, "nllb", Stated())
        save_ctranslate2(checkpoint, folder / "ctranslate2")
        exact = Model(_NAME, checkpoint, Bundle.open(folder / "fp32"))
        CTranslate2System.load(folder / "ctranslate2", exact, "fp32", settings.threads)
        served = replace(exact, bundle=Bundle.open(folder / "int8"))
        texts = dict(zip(served.sentence_sources(settings.sentences), settings.sentences, strict=True))
        num_sentences = 1 if settings.is_quick else _MIN_SENTENCES
        workload = Workload(served, list(texts), num_sentences, _FORCED_TOKENS)
        yield from _served(workload, texts, folder / "ctranslate2", settings)
        size, eos_id = served.bundle.manifest.architecture.vocabulary_size, served.bundle.manifest.eos_token_id
        ids = np.union1d(np.random.default_rng(0).choice(size, _LIST_TOKENS, replace=False), [eos_id])
        listed = with_lists(served, folder / "listed", [], {TARGET_LANGUAGE: ids})
        save_vmap(folder / "ctranslate2", ids, {})
        workload = replace(workload, model=listed)
        yield from against_full(workload, "language", texts, folder / "ctranslate2", settings)


def _write_model(folder: Path, *, is_quick: bool) -> None:
    """A model with the files of a folder that was downloaded: weights, tokenizer, languages, defaults."""
    folder.mkdir()
    # Hugging Face reads SentencePiece's first three pieces as these.
    default = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        (DEFAULT_CHECKPOINT / "tokenizer.model").read_bytes()
    )
    words = [piece for piece in default.pieces if piece.type == piece.NORMAL]
    del default.pieces[:]
    for name, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        default.pieces.add(piece=name, type=kind, score=0.0)
    default.pieces.extend(words)
    for number in range(len(default.pieces), _NUM_PIECES):
        default.pieces.add(piece=f"\u2581<filling {number}>", score=-1000.0)
    default.trainer_spec.byte_fallback = False
    (folder / "sentencepiece.bpe.model").write_bytes(default.SerializeToString())
    tokenizer_config = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": FAIRSEQ_LANGUAGE_CODES}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    num_layers = 1 if is_quick else 12
    config = M2M100Config(
        vocab_size=_VOCABULARY_SIZE,
        d_model=64 if is_quick else 1024,
        encoder_layers=num_layers,
        decoder_layers=num_layers,
        encoder_attention_heads=8 if is_quick else 16,
        decoder_attention_heads=8 if is_quick else 16,
        encoder_ffn_dim=128 if is_quick else 4096,
        decoder_ffn_dim=128 if is_quick else 4096,
        max_position_embeddings=1024,
        scale_embedding=True,
        decoder_start_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        M2M100ForConditionalGeneration(config).save_pretrained(folder)


def _import(source: Path, folder: Path, precision: Precision, settings: Settings) -> Iterator[Row]:
    command = [sys.executable, "-m", "dragoman_export", "import", str(source), str(folder), "--precision", precision]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    # Of this child alone, where resource.getrusage has the largest of all.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the import at {precision} ended with {process.returncode}")
    subject = Subject.of("Dragoman import", "dragoman", precision, settings.threads, _NAME)
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    peak = usage.ru_maxrss * 1024
    yield Row("import", subject, "time, certificate included", "s", Summary.single(seconds))
    yield Row("import", subject, "peak memory", "GB", Summary.single(peak / 1e9))
    yield Row("import", subject, "peak memory over the float32 weights", "", Summary.single(peak / weights))


def _served(workload: Workload, texts: Mapping[Source, str], folder: Path, settings: Settings) -> Iterator[Row]:
    model = workload.model
    peer = CTranslate2System.load(folder, model, "int8", settings.threads)
    for beam, batch in SIZES:
        with dragoman_server(model, settings) as server, Client(server.address, timeout=_TIMEOUT_SECONDS) as client:
            ours = ServedSystem(server.subject, client, texts)
            yield from compare(ours, [peer], workload, batch, beam, settings)


if __name__ == "__main__":
    run_part("nllb", run)
