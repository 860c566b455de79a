"""Translations of a test set by a bundle and by the model that it was made from, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import sacrebleu
from rich.console import Console

from dragoman_export.bundle.evaluation import TestSet
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.greedy import Source, corpus_scores, target_limit, translate
from dragoman_export.progress import QUIET
from dragoman_export.reading import listed
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.config import EngineOptions
from dragoman_server.engine.sequence import Request
from dragoman_server.registry.model import Model
from dragoman_server.runtime.hardware import Hardware


@dataclass(frozen=True)
class Difference:
    """A sentence that the two translate differently."""

    source: str
    of_model: str
    of_bundle: str
    chrf: float  # of the bundle's translation against the model's, in percent


@dataclass(frozen=True)
class TestComparison:
    """The result of one test set.

    Attributes:
        direction: of the languages.
        num_sentences: of the test set.
        model_bleu: of the model's translations against the references, in percent.
        bundle_bleu: of the bundle's.
        differences: sentences with another translation, the least alike first.
    """

    __test__ = False  # pytest takes the name for that of a test case

    direction: Direction
    num_sentences: int
    model_bleu: float
    bundle_bleu: float
    differences: tuple[Difference, ...]

    @property
    def agreement(self) -> float:
        """Share of sentences with the same translation."""
        return 1 - len(self.differences) / self.num_sentences


def compare_translations(
    checkpoint: Checkpoint,
    bundle: Bundle,
    tests: Sequence[tuple[TestSet, Sequence[Source]]],
    console: Console = QUIET,
) -> list[TestComparison]:
    """Translates test sets greedily by PyTorch and by the engine that serves the bundle, each line as one segment.

    Args:
        checkpoint: the model.
        bundle: made from it.
        tests: with their `framed_sources`.
        console: shows the progress.

    Raises:
        BundleError: the bundle cannot be served here.
    """
    options = EngineOptions(max_waiting=1_000_000)
    with Hardware(options) as hardware, Model.open(bundle.folder, options, hardware) as served:
        return [_compare(checkpoint, served, *test, console) for test in tests]


def framed_sources(bundle: Bundle, test: TestSet) -> list[Source]:
    """The sources of a test set as the encoder reads them.

    Raises:
        ValueError: the bundle does not translate their direction, or lines are too long for it.
    """
    direction, manifest, codec = (
        Direction(test.source_language, test.target_language),
        bundle.manifest,
        bundle.tokenizer,
    )
    name = f"{direction.source}-{direction.target}"
    if direction not in manifest.languages:
        raise ValueError(f"--test {name}: the bundle does not translate {direction.source} to {direction.target}")
    framing, most = manifest.framing_of(direction), manifest.limits.max_source_tokens
    sources = [Source(direction, framing.frame(codec.encode(text))) for text in test.sources]
    faults = [
        f"line {number} has {len(source.ids)} tokens"
        for number, source in enumerate(sources, start=1)
        if len(source.ids) > most
    ]
    if faults:
        raise ValueError(f"--test {name}: the model reads at most {most} tokens, but {listed(faults)}")
    return sources


def _compare(
    checkpoint: Checkpoint, served: Model, test: TestSet, sources: Sequence[Source], console: Console
) -> TestComparison:
    config, tokenizer = checkpoint.config, served.tokenizer
    direction = Direction(test.source_language, test.target_language)
    framing = config.framing_of(direction)
    requests = [
        Request(source.ids, target_limit(source, config), prefix_ids=framing.target_prefix) for source in sources
    ]

    def text_of(target_ids: Sequence[int]) -> str:
        place = framing.target_text_range(target_ids)
        return tokenizer.decode(target_ids[place.start : place.stop])

    of_model = [text_of(pair.target_ids) for pair in translate(checkpoint.model, config, sources, console)]
    of_bundle = [text_of(future.result().hypotheses[0].token_ids) for future in served.engine.submit(requests)]
    differences = [
        Difference(text, mine, other, sacrebleu.sentence_chrf(other, [mine]).score)
        for text, mine, other in zip(test.sources, of_model, of_bundle, strict=True)
        if mine != other
    ]
    return TestComparison(
        direction,
        len(sources),
        corpus_scores(of_model, test.references).bleu,
        corpus_scores(of_bundle, test.references).bleu,
        tuple(sorted(differences, key=lambda difference: difference.chrf)),
    )
