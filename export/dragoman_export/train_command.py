"""`dragoman-export train`: from files of sentence pairs to a trained checkpoint."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece as spm
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from dragoman_export.checkpoint import TOKENIZER_FILE, Checkpoint, Config, load_tensors, unique_tensors
from dragoman_export.corpus import Direction, ParallelText, TextPair, TokenRows, read_held_out, read_pairs, split_pairs
from dragoman_export.languages import Pair, parse_pair
from dragoman_export.model import Dimensions
from dragoman_export.tokenizer import BOS_ID, EOS_ID, PAD_ID, language_tag, train_tokenizer
from dragoman_export.training import Progress, Trainer, TrainingOptions, Validation


@dataclass(frozen=True)
class CorpusFile:
    """`en-fr=pairs.tsv`: the languages of the two columns, and where they are."""

    languages: tuple[str, str]
    path: Path

    @classmethod
    def parse(cls, text: str, directions: Collection[Pair] = ()) -> "CorpusFile":
        """Reads the languages as `parse_pair` does.

        Raises:
            ValueError: the text is not LANGUAGE-LANGUAGE=PATH, or there is no such file.
        """
        pair, _, path = text.partition("=")
        if not path:
            raise ValueError(f"{text!r} is not of the form LANGUAGE-LANGUAGE=PATH, such as en-fr=pairs.tsv")
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist or is not a file")
        return cls(parse_pair(pair, directions), Path(path))


def parse_weight(text: str) -> tuple[tuple[str, str], float]:
    """`en-fr=2` -> (("en", "fr"), 2.0); raises ValueError for another form or a negative weight."""
    direction, _, number = text.partition("=")
    if not number or not 0 <= float(number) < math.inf:
        raise ValueError(
            f"{text!r} is not of the form SOURCE-TARGET=WEIGHT with a weight of at least 0, such as en-fr=2"
        )
    return parse_pair(direction), float(number)


@dataclass(frozen=True)
class CorpusOptions:
    """Which text is trained on, and how it is cut into pieces."""

    files: tuple[CorpusFile, ...]
    held_out: tuple[Path, ...] = ()  # files of test sentences that may not be trained on
    both_directions: bool = True
    weights: Mapping[tuple[str, str], float] = field(default_factory=dict)  # of directions, see `Direction.weight`
    development_share: float = 0.002
    max_development_pairs: int = 200  # per direction, so that validation stays short


def train(
    name: str,
    folder: Path,
    corpus: CorpusOptions,
    dimensions: Dimensions,
    options: TrainingOptions,
    device: str,
    console: Console,
    start_from: Checkpoint | None = None,
) -> Checkpoint:
    """Reads the corpora, trains the tokenizer if the folder has none, trains the model and saves it in `folder`.

    The vocabulary sizes in `dimensions` are wishes: a small corpus does not fill a large vocabulary. With `start_from`
    its tokenizer, dimensions and weights are where training begins.
    """
    held_out = read_held_out(corpus.held_out)
    texts = [split_pairs(f.languages, read_pairs(f.path), held_out, corpus.development_share) for f in corpus.files]
    for text in texts:
        console.print(
            f"{'-'.join(text.languages)}: {len(text.training):,} pairs to train on, {len(text.development):,} for "
            f"development, {text.num_held_out:,} left out because they are in the test set"
        )
    languages = sorted({code for text in texts for code in text.languages})
    if start_from is not None:
        dimensions, tokenizer = start_from.config.dimensions, start_from.tokenizer
    else:
        tokenizer = _tokenizer(folder, texts, dimensions.target_vocabulary_size, languages)
    processor = spm.SentencePieceProcessor(model_proto=tokenizer)
    directions = _directions(texts, processor, corpus)
    vocabulary_size = processor.get_piece_size()
    config = Config(
        name=name,
        dimensions=dataclasses.replace(
            dimensions, source_vocabulary_size=vocabulary_size, target_vocabulary_size=vocabulary_size
        ),
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        directions=tuple((d.source_language, d.target_language) for d in directions),
        source_prefix_ids={d.target_language: d.prefix_ids for d in directions},
        training={"pairs": {"-".join(text.languages): len(text.training) for text in texts}},
    )
    development = _development(texts, config.directions, corpus.max_development_pairs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0)

        def report(event: Progress | Validation) -> None:
            if isinstance(event, Validation):
                figures = "  ".join(f"{k} {v.bleu:.1f}" for k, v in event.scores.items())
                bar.console.print(f"step {event.step:,}: development BLEU {figures}")
                return
            bar.update(
                task,
                completed=event.fraction,
                description=f"step {event.step:,} epoch {event.epoch} loss {event.loss:.3f} "
                f"rate {event.learning_rate:.2e} {event.pairs_per_second:.0f} pairs/s",
            )
            if not console.is_terminal and event.step % 100 == 0:  # a log file has no bar
                console.print(f"{event.fraction:6.1%} {bar.tasks[task].description}")

        trainer = Trainer(folder, config, tokenizer, directions, development, options, device, report)
        if start_from is not None and not trainer.is_resumed:
            load_tensors(trainer.model, unique_tensors(start_from.model))
        if trainer.is_resumed:
            console.print(f"resuming at step {trainer.step:,}")
        checkpoint = trainer.run()
    checkpoint.save(folder)
    return checkpoint


def _tokenizer(folder: Path, texts: Sequence[ParallelText], vocabulary_size: int, languages: Sequence[str]) -> bytes:
    path = folder / TOKENIZER_FILE
    if not path.exists():
        sentences = {sentence for text in texts for pair in text.training for sentence in pair}
        model = train_tokenizer(sorted(sentences), vocabulary_size, languages)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_bytes(model)
        partial.rename(path)
    return path.read_bytes()


def _directions(
    texts: Sequence[ParallelText], processor: spm.SentencePieceProcessor, corpus: CorpusOptions
) -> list[Direction]:
    directions = []
    for text in texts:
        sides = [TokenRows.of(processor.encode([pair[side] for pair in text.training])) for side in (0, 1)]
        for source, target in ((0, 1), (1, 0)) if corpus.both_directions else ((0, 1),):
            languages = (text.languages[source], text.languages[target])
            prefix_ids = (processor.piece_to_id(language_tag(languages[1])),)
            weight = corpus.weights.get(languages, 1.0)
            directions.append(Direction(*languages, prefix_ids, sides[source], sides[target], weight))
    return directions


def _development(
    texts: Sequence[ParallelText], directions: Sequence[tuple[str, str]], max_pairs: int
) -> dict[tuple[str, str], list[TextPair]]:
    development = {}
    for text in texts:
        pairs = list(text.development[:max_pairs])
        for languages, ordered in ((text.languages, pairs), (text.languages[::-1], [(b, a) for a, b in pairs])):
            if languages in directions and ordered:
                development[languages[0], languages[1]] = ordered
    return development
