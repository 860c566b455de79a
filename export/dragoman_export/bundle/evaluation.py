"""BLEU and chrF of a bundle, translated by the engine that serves it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dragoman_export.greedy import corpus_scores
from dragoman_export.languages import parse_pair_and_value
from dragoman_export.text_files import read_lines
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.service.options import TargetLimit


@dataclass(frozen=True)
class TestSet:
    """`en-fr=source.txt,reference.txt`: line i of one file translates line i of the other."""

    __test__ = False  # pytest takes the name for that of a test case

    source_language: str
    target_language: str
    sources: tuple[str, ...]
    references: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, table: LanguageTable | None = None) -> "TestSet":
        """Reads the languages as `parse_pair` does.

        Raises:
            ValueError: the text has another form, or the files differ in length.
        """
        form = "SOURCE_FILE,REFERENCE_FILE"
        (source_language, target_language), paths = parse_pair_and_value(text, form, table)
        source_path, _, reference_path = paths.partition(",")
        if not (source_path and reference_path):
            raise ValueError(f"{text!r} is not of the form SOURCE-TARGET={form}")
        sources, references = (read_lines(Path(path)) for path in (source_path, reference_path))
        if len(sources) != len(references):
            raise ValueError(f"{source_path} has {len(sources)} lines and {reference_path} has {len(references)}")
        return cls(source_language, target_language, sources, references)


@dataclass(frozen=True)
class DirectionScores:
    """Scores and speed of one direction."""

    direction: str
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    num_sentences: int
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`, for the model card."""

    load_seconds: float  # opening the bundle, creating the sessions and replaying the parity certificate
    directions: tuple[DirectionScores, ...]


def evaluate(folder: Path, test_sets: Iterable[TestSet], options: EngineOptions) -> Evaluation:
    """Translates every test set greedily, each line as one segment, with the target limits of a call that sets none.

    Raises:
        BundleError: the folder is not a bundle that can be served.
        ValueError: the model does not translate the direction of a test set.
    """
    started = time.monotonic()
    directions = []
    with Hardware(options) as hardware, Model.open(folder, options, hardware) as model:
        load_seconds = time.monotonic() - started
        for test in test_sets:
            if (test.source_language, test.target_language) not in model.manifest.languages:
                raise ValueError(f"the model does not translate {test.source_language} to {test.target_language}")
            directions.append(_evaluate_direction(model, test))
    return Evaluation(load_seconds, tuple(directions))


def _evaluate_direction(model: Model, test: TestSet) -> DirectionScores:
    manifest, tokenizer = model.manifest, model.tokenizer
    framing = manifest.framing_of((test.source_language, test.target_language))
    limit = TargetLimit(manifest.limits.max_target_tokens)
    sources = [framing.frame(tokenizer.encode(text)) for text in test.sources]
    requests = [Request(source, limit.of(len(source)), prefix_ids=framing.target_prefix) for source in sources]
    started = time.monotonic()
    futures = model.engine.submit(requests)
    targets = [future.result().hypotheses[0].token_ids for future in futures]
    seconds = time.monotonic() - started
    translations = [tokenizer.decode(ids) for ids in targets]
    scores = corpus_scores(translations, test.references)
    return DirectionScores(
        f"{test.source_language}-{test.target_language}",
        bleu=scores.bleu,
        chrf=scores.chrf,
        bleu_signature=scores.bleu_signature,
        chrf_signature=scores.chrf_signature,
        num_sentences=len(sources),
        tokens_per_second=sum(map(len, targets)) / seconds,
    )
