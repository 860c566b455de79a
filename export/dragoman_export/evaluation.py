"""BLEU and chrF of a bundle, translated by the engine that serves it."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dragoman_export.greedy import corpus_scores
from dragoman_export.languages import Pair, parse_pair
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.device import Device


@dataclass(frozen=True)
class TestSet:
    """`en-fr=source.txt,reference.txt`: line i of one file translates line i of the other."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    source_language: str
    target_language: str
    sources: tuple[str, ...]
    references: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, directions: Collection[Pair] = ()) -> "TestSet":
        """Reads the languages as `parse_pair` does.

        Raises:
            ValueError: the text has another form, or the files differ in length.
        """
        pair, _, paths = text.partition("=")
        source_path, _, reference_path = paths.partition(",")
        if not (source_path and reference_path):
            raise ValueError(f"{text!r} is not of the form LANGUAGE-LANGUAGE=SOURCE_FILE,REFERENCE_FILE")
        source_language, target_language = parse_pair(pair, directions)
        sources, references = (read_lines(Path(path)) for path in (source_path, reference_path))
        if len(sources) != len(references):
            raise ValueError(f"{source_path} has {len(sources)} lines and {reference_path} has {len(references)}")
        return cls(source_language, target_language, sources, references)


@dataclass(frozen=True)
class DirectionScores:
    """Scores of one direction and what it took."""

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


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file without their line breaks; raises ValueError where it is not UTF-8."""
    try:
        return tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def evaluate(folder: Path, test_sets: Iterable[TestSet], options: EngineOptions) -> Evaluation:
    """Translates every test set greedily, each line as one segment.

    Raises:
        BundleError: the folder is not a bundle that can be served.
        ValueError: the model does not translate the direction of a test set.
    """
    started = time.monotonic()
    directions = []
    with Device.of(options) as device, Model.open(folder, options, device) as model:
        load_seconds = time.monotonic() - started
        for test in test_sets:
            if (test.source_language, test.target_language) not in model.manifest.directions:
                raise ValueError(f"the model does not translate {test.source_language} to {test.target_language}")
            directions.append(_evaluate_direction(model, test))
    return Evaluation(load_seconds, tuple(directions))


def _evaluate_direction(model: Model, test: TestSet) -> DirectionScores:
    manifest, tokenizer = model.manifest, model.tokenizer
    prefix = manifest.source_prefix_ids[test.target_language]
    sources = [(*prefix, *tokenizer.encode(text), manifest.eos_token_id) for text in test.sources]
    started = time.monotonic()
    futures = model.engine.submit([Request(source, _target_limit(source, manifest)) for source in sources])
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


def _target_limit(source_ids: Sequence[int], manifest: Manifest) -> int:
    return min(2 * len(source_ids) + 16, manifest.limits.max_target_tokens)
