"""What becomes of paragraphs that are translated whole, sentence by sentence, or in packs of sentences.

Not a part of `python -m benchmarks`: it measures translations, not time, and needs a test set of single sentences with
reference translations, two files of one sentence a line.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import sacrebleu
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.settings import read_sentences
from dragoman_server.bundle.bundle import embedded_bundle
from dragoman_server.config import EngineOptions, InputLimits
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.runtime.hardware import Hardware
from dragoman_server.service.calls import CallContext, TextInput, TranslateCall, TranslateConfig
from dragoman_server.service.results import TranslatedText
from dragoman_server.service.translate import Translator
from dragoman_server.text.segmentation import Segmentation
from dragoman_server.text.sentences import sentence_spans

_FEWEST, _MOST = 3, 6  # sentences of a paragraph
_TEXTS_PER_CALL = 32


@dataclass(frozen=True, slots=True)
class Paragraphs:
    """Neighbouring places are the same paragraph in both languages."""

    sources: Sequence[str]
    references: Sequence[str]


def paragraphs(sources: Sequence[str], references: Sequence[str], number: int, seed: int) -> Paragraphs:
    """Paragraphs of random sentences, each of which is used once before any is used again."""
    rng = random.Random(seed)
    order: list[int] = []
    chosen = []
    for _ in range(number):
        size = rng.randint(_FEWEST, _MOST)
        if len(order) < size:
            order = rng.sample(range(len(sources)), len(sources))
        chosen.append([order.pop() for _ in range(size)])
    return Paragraphs(*([" ".join(side[i] for i in places) for places in chosen] for side in (sources, references)))


@contextmanager
def translator(folder: Path) -> Iterator[Translator]:
    """What the server runs for a bundle, without the network."""
    options = EngineOptions()
    with Hardware(options) as hardware, Model.open(folder, options, hardware) as model:
        translator = Translator(Registry.of(model), InputLimits(), options.max_waiting, options.max_running)
        try:
            yield translator
        finally:
            translator.close()


async def translate(translator: Translator, texts: Sequence[str], config: TranslateConfig) -> list[str]:
    """The translations of all texts.

    Raises:
        InvalidInputError: a text cannot be translated.
    """
    translated: list[str] = []
    for begin in range(0, len(texts), _TEXTS_PER_CALL):
        call = TranslateCall([TextInput(text) for text in texts[begin : begin + _TEXTS_PER_CALL]], config)
        for result in (await translator.translate(call, CallContext())).results:
            if not isinstance(result, TranslatedText):
                raise result
            translated.append(result.text)
    return translated


def num_sentences(texts: Sequence[str], language: str) -> int:
    """The sentences of all texts."""
    return sum(len(list(sentence_spans(text, language))) for text in texts)


def main(
    sources: Annotated[Path, typer.Option(help="File of sentences, one a line.")],
    references: Annotated[Path, typer.Option(help="File of their translations, one a line.")],
    source_language: Annotated[str, typer.Option("--from", help="Language of the sentences.")],
    target_language: Annotated[str, typer.Option("--to", help="Language of the translations.")],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model bundle. Default: the shipped one.")] = None,
    number: Annotated[int, typer.Option(min=1, help="How many paragraphs are made.")] = 200,
    seed: Annotated[int, typer.Option(help="Which sentences stand together.")] = 0,
) -> None:
    """Translate paragraphs at every segmentation, and compare them with their references."""
    pairs = read_sentences(sources), read_sentences(references)
    if len(pairs[0]) != len(pairs[1]):
        raise typer.BadParameter(f"{references} has {len(pairs[1])} sentences, {sources} has {len(pairs[0])}")
    made = paragraphs(*pairs, number, seed)
    table = Table(title=f"{number} paragraphs, {source_language} to {target_language}")
    for heading in ("segmentation", "BLEU", "sentences"):
        table.add_column(heading, justify="left" if heading == "segmentation" else "right")
    table.add_row("(source)", "", str(num_sentences(made.sources, source_language)))
    table.add_row("(reference)", "", str(num_sentences(made.references, target_language)))
    with translator(bundle or embedded_bundle()) as own:
        for segmentation in Segmentation:
            config = TranslateConfig(source_language, target_language, segmentation=segmentation)
            translated = asyncio.run(translate(own, made.sources, config))
            bleu = sacrebleu.corpus_bleu(translated, [made.references]).score
            table.add_row(segmentation.name.lower(), f"{bleu:.1f}", str(num_sentences(translated, target_language)))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
