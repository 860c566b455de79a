"""BLEU and chrF of a bundle, translated by the engine that serves it."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from dragoman_export.greedy import corpus_scores
from dragoman_export.languages import Pair, split_pair
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.config import EngineOptions
from dragoman_server.decoding_options import TargetLimit
from dragoman_server.engine.engine import Engine
from dragoman_server.engine.search import Search
from dragoman_server.engine.sequence import Request
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.runner import open_runners
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer


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
        form = "SOURCE-TARGET=SOURCE_FILE,REFERENCE_FILE"
        (source_language, target_language), paths = split_pair(text, form, directions)
        source_path, _, reference_path = paths.partition(",")
        if not (source_path and reference_path):
            raise ValueError(f"{text!r} is not of the form {form}")
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

    load_seconds: float  # opening the bundle and creating the sessions
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
    bundle = Bundle.open(folder)
    runners = open_runners(bundle, options)
    load_seconds = time.monotonic() - started
    manifest = bundle.manifest
    tokenizer = load_tokenizer(manifest.tokenizer, folder)
    directions = []
    with Device(len(runners)) as device:
        engine = Engine(runners, Search.of(manifest), options, device)
        engine.start()
        try:
            for test in test_sets:
                if (test.source_language, test.target_language) not in manifest.directions:
                    raise ValueError(f"the model does not translate {test.source_language} to {test.target_language}")
                directions.append(_evaluate_direction(engine, bundle, tokenizer, test))
        finally:
            engine.stop()
    return Evaluation(load_seconds, tuple(directions))


def _evaluate_direction(engine: Engine, bundle: Bundle, tokenizer: TextCodec, test: TestSet) -> DirectionScores:
    manifest = bundle.manifest
    limit = TargetLimit(manifest.limits.max_target_tokens)
    prefix = manifest.source_prefix_ids[test.target_language]
    sources = [(*prefix, *tokenizer.encode(text), manifest.eos_token_id) for text in test.sources]
    started = time.monotonic()
    futures = engine.submit([Request(source, limit.of(len(source))) for source in sources])
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
