"""The commands `dragoman-export prepare` and `dragoman-export train`."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast, get_args

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from dragoman_export.checkpoint import TOKENIZER_FILE, Checkpoint, load_tensors, unique_tensors
from dragoman_export.dimensions import Dimensions
from dragoman_export.languages import parse_pair_and_value
from dragoman_export.text_files import CorpusFile
from dragoman_export.train.batches import BatchOptions
from dragoman_export.train.optimizers import OptimizerName
from dragoman_export.train.prepare import CorpusOptions, prepare
from dragoman_export.train.prepared import Prepared
from dragoman_export.train.recipe import DirectionOptions, make_trainer
from dragoman_export.train.run_folder import RunFolder, Setting
from dragoman_export.train.training import Progress, Report, TrainingOptions, Validation

STEPS_PER_LINE = 100  # of a log file
DEVELOPMENT_SHARE, VOCABULARY_SIZE = 0.002, 8000

Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--pair",
        metavar="FIRST-SECOND=FILE",
        help="Tab-separated sentence pairs, or a zip of such files: en-fr=fra-eng.zip. Columns are the first two, or "
        "those that a header calls by the languages. Repeatable.",
    ),
]
FileWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--file-weight",
        metavar="FILE=WEIGHT",
        help="How often an epoch shows each pair of a file of --pair; others have 1. Of a file with more than 1, "
        "nothing is set aside for development. Repeatable.",
    ),
]
HeldOut = Annotated[list[Path] | None, typer.Option(help="File of test sentences to keep out of training. Repeatable.")]
VocabularySize = Annotated[int, typer.Option(min=1, help="Pieces of the joint tokenizer.")]
DevelopmentShare = Annotated[
    float, typer.Option(min=0.0, max=0.5, help="Share of the sentences of each file that is not trained on.")
]
ChangedShare = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Changed pairs beside each pair, which teach to copy: with other names, numbers, placeholders, "
        "addresses, code; in capitals, small letters, without a full stop. 0 changes nothing.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random.")]


def parse_weight(text: str) -> tuple[tuple[str, str], float]:
    """`en-fr=2` -> (("en", "fr"), 2.0); raises ValueError for another form or a negative weight."""
    direction, number = parse_pair_and_value(text, "WEIGHT")
    return direction, _weight(text, number)


def parse_file_weight(text: str) -> tuple[Path, float]:
    """`pairs.tsv=20` -> (Path("pairs.tsv"), 20.0); raises ValueError for another form or a negative weight."""
    path, _, number = text.rpartition("=")
    if not path:
        raise ValueError(f"{text!r} is not of the form FILE=WEIGHT, such as phrases.tsv=20")
    return Path(path), _weight(text, number)


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"the weight in {text!r} is {number!r}, must be a number of at least 0")
    return weight


def add_commands(app: typer.Typer, console: Console) -> None:
    """Gives the application its commands `prepare` and `train`."""

    @app.command("prepare")
    def _prepare(
        folder: Annotated[Path, typer.Argument(help="Folder to be created.")],
        pair: Pairs = None,
        file_weight: FileWeights = None,
        held_out: HeldOut = None,
        development_share: DevelopmentShare = DEVELOPMENT_SHARE,
        changed_share: ChangedShare = 0.0,
        align: Annotated[bool, typer.Option(help="Align the words with eflomal: pip install eflomal.")] = False,
        vocabulary_size: VocabularySize = VOCABULARY_SIZE,
        tokenizer_from: Annotated[
            Path | None, typer.Option(help="Checkpoint whose tokenizer is taken in place of a new one.")
        ] = None,
        seed: Seed = 1,
    ) -> None:
        """Make sentence pairs ready for several trainings.

        They are split, changed, tokenized and aligned. The folder holds the development sentences as text, too.
        """
        if folder.exists():
            raise ValueError(f"{folder} exists already; prepared text is never overwritten")
        if not pair:
            raise ValueError("give at least one --pair")
        options = _corpus_options(pair, file_weight, held_out, development_share, changed_share, seed, align)
        tokenizer = Checkpoint.load(tokenizer_from).tokenizer if tokenizer_from else vocabulary_size
        prepared = prepare(options, tokenizer, console.print)
        prepared.save(folder)
        num_pairs = sum(len(text) for text in prepared.texts)
        num_tokens = sum(len(side.flat) for text in prepared.texts for side in text.sides)
        console.print(f"Wrote {num_pairs:,} pairs of {num_tokens:,} tokens to {folder}.")

    @app.command("train")
    def _train(
        folder: Annotated[Path, typer.Argument(help="Checkpoint folder; one that has a saved state is continued.")],
        pair: Pairs = None,
        prepared: Annotated[
            Path | None, typer.Option(help="Folder that `prepare` has made, in place of --pair and what belongs to it.")
        ] = None,
        file_weight: FileWeights = None,
        held_out: HeldOut = None,
        development_share: DevelopmentShare = DEVELOPMENT_SHARE,
        changed_share: ChangedShare = 0.0,
        name: Annotated[str, typer.Option(help="Name of the model.")] = "model",
        both_directions: Annotated[bool, typer.Option(help="Train the second language to the first as well.")] = True,
        weight: Annotated[
            list[str] | None,
            typer.Option(
                metavar="SOURCE-TARGET=WEIGHT",
                help="How often an epoch shows the pairs of a direction: en-de=2, de-en=0.5. Repeatable; others have "
                "1. Multiplied with the weight of the file.",
            ),
        ] = None,
        start_from: Annotated[
            Path | None,
            typer.Option(help="Checkpoint to go on from: its tokenizer, dimensions and weights are taken over."),
        ] = None,
        vocabulary_size: VocabularySize = VOCABULARY_SIZE,
        d_model: Annotated[int, typer.Option(help="Width of the model.")] = 256,
        num_heads: Annotated[int, typer.Option(help="Attention heads; d_model / num_heads is a multiple of 8.")] = 8,
        d_feed_forward: Annotated[int, typer.Option(help="Inner width of the feed-forward layers.")] = 1024,
        num_encoder_layers: Annotated[int, typer.Option(min=1, help="Layers of the encoder.")] = 4,
        num_decoder_layers: Annotated[int, typer.Option(min=1, help="Layers of the decoder.")] = 3,
        epochs: Annotated[float, typer.Option(help="Passes over the data, at most.")] = 10.0,
        max_minutes: Annotated[
            float, typer.Option(help="Minutes of training, at most, summed over resumptions.")
        ] = math.inf,
        optimizer: Annotated[
            str, typer.Option(help=f"{' or '.join(get_args(OptimizerName))}; muon is for the matrices of the layers.")
        ] = "adamw",
        learning_rate: Annotated[
            float, typer.Option(help="Peak rate, reached after warm-up; falls linearly to 0.")
        ] = 1e-3,
        warmup_steps: Annotated[int, typer.Option(min=1, help="Steps of linear warm-up.")] = 800,
        weight_decay: Annotated[float, typer.Option(min=0.0, help="Decoupled, times the learning rate.")] = 0.01,
        label_smoothing: Annotated[float, typer.Option(min=0.0, max=1.0, help="0 turns it off.")] = 0.1,
        dropout: Annotated[float, typer.Option(min=0.0, max=1.0, help="0 turns it off.")] = 0.1,
        batch_tokens: Annotated[int, typer.Option(min=1, help="Padded tokens of the longer side in one batch.")] = 3072,
        join_share: Annotated[
            float, typer.Option(min=0.0, max=1.0, help="Share of the pairs joined into longer examples.")
        ] = 0.1,
        alignment_weight: Annotated[
            float,
            typer.Option(
                min=0.0,
                help="Of the loss that teaches a head of cross-attention the word alignments of --prepared text; 0 "
                "turns it off.",
            ),
        ] = 0.0,
        alignment_layer: Annotated[int, typer.Option(min=0, help="Decoder layer of that head.")] = 0,
        alignment_head: Annotated[int, typer.Option(min=0, help="Number of that head.")] = 0,
        compile_layers: Annotated[
            bool, typer.Option(help="Compile the layers: a minute or two that long trainings on a GPU earn back.")
        ] = False,
        seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and the order of the data.")] = 1,
        device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    ) -> None:
        """Train a model on sentence pairs.

        After a kill at any moment, the same command continues.
        """
        _check_device(device)
        if (prepared is None) == (not pair):
            raise ValueError("give either --pair or --prepared")
        if prepared is not None:
            _refuse_beside_prepared(
                file_weight=bool(file_weight),
                held_out=bool(held_out),
                development_share=development_share != DEVELOPMENT_SHARE,
                changed_share=changed_share > 0,
                vocabulary_size=vocabulary_size != VOCABULARY_SIZE,
            )
        corpus = _corpus_options(pair, file_weight, held_out, development_share, changed_share, seed)
        directions = DirectionOptions(both_directions, dict(parse_weight(text) for text in weight or ()))
        dimensions = Dimensions(
            source_vocabulary_size=vocabulary_size,
            target_vocabulary_size=vocabulary_size,
            d_model=d_model,
            num_heads=num_heads,
            d_feed_forward=d_feed_forward,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
        )
        options = TrainingOptions(
            epochs=epochs,
            max_minutes=max_minutes,
            optimizer=_optimizer(optimizer),
            peak_learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            dropout=dropout,
            alignment_weight=alignment_weight,
            alignment_layer=alignment_layer,
            alignment_head=alignment_head,
            compile_layers=compile_layers,
            seed=seed,
            batch=BatchOptions(batch_tokens=batch_tokens, join_share=join_share),
        )
        base = Checkpoint.load(start_from) if start_from else None
        source = Prepared.load(prepared) if prepared else corpus
        train(name, folder, source, directions, dimensions, options, device, console, base)
        console.print(f"The model is in {folder}. Next: dragoman-export export {folder} BUNDLE")


def train(
    name: str,
    folder: Path,
    source: Prepared | CorpusOptions,
    directions: DirectionOptions,
    dimensions: Dimensions,
    options: TrainingOptions,
    device: str,
    console: Console,
    start_from: Checkpoint | None = None,
) -> Checkpoint:
    """Trains a model and saves it in `folder`.

    Text that is not prepared yet is prepared first, with a new tokenizer if the folder has none. The vocabulary sizes
    in `dimensions` are upper bounds: a small corpus does not fill a large vocabulary. With `start_from`, training
    begins with its tokenizer, dimensions and weights.

    Raises:
        ValueError: the training in the folder was begun with other values, or something in the arguments is wrong.
        FloatingPointError: the loss diverges.
    """
    run = RunFolder(folder)
    if start_from is not None:
        dimensions = start_from.config.dimensions
    settings = _settings(dimensions, options, directions)
    if isinstance(source, CorpusOptions) and start_from is None:
        settings["vocabulary_size"] = dimensions.target_vocabulary_size
    run.check(settings)
    prepared = source if isinstance(source, Prepared) else _prepare_in(run, source, start_from, dimensions, console)
    if start_from is not None and start_from.tokenizer != prepared.tokenizer:
        raise ValueError("the prepared text has another tokenizer than the checkpoint to start from")
    run.begin({**settings, "pairs_sha256": prepared.fingerprint})
    with _display(console) as report:
        trainer = make_trainer(name, run, prepared, directions, dimensions, options, device, report)
        if trainer.is_resumed:
            console.print(f"resuming at step {trainer.step:,}")
        elif start_from is not None:
            load_tensors(trainer.model, unique_tensors(start_from.model))
        checkpoint = trainer.run()
    checkpoint.save(folder)
    return checkpoint


def _settings(dimensions: Dimensions, options: TrainingOptions, directions: DirectionOptions) -> dict[str, Setting]:
    """Settings that may not change when a training continues: the shape of its state, its place in the data."""
    shape = ("d_model", "num_heads", "d_feed_forward", "num_encoder_layers", "num_decoder_layers")
    weights = " ".join(sorted(f"{'-'.join(pair)}={weight:g}" for pair, weight in directions.weights.items()))
    return {
        **{name: getattr(dimensions, name) for name in shape},
        "optimizer": options.optimizer,
        "seed": options.seed,
        "batch_tokens": options.batch.batch_tokens,
        "join_share": options.batch.join_share,
        "both_directions": directions.both,
        "weight": weights or "1",
    }


def _prepare_in(
    run: RunFolder, corpus: CorpusOptions, start_from: Checkpoint | None, dimensions: Dimensions, console: Console
) -> Prepared:
    """Prepares text with the tokenizer of `start_from`, of the training to continue, or a new one, which is saved."""
    path = run.path / TOKENIZER_FILE
    if start_from is not None:
        return prepare(corpus, start_from.tokenizer, console.print)
    if run.is_begun and path.exists():
        return prepare(corpus, path.read_bytes(), console.print)
    prepared = prepare(corpus, dimensions.target_vocabulary_size, console.print)
    run.path.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_bytes(prepared.tokenizer)
    partial.replace(path)
    return prepared


def _corpus_options(
    pair: Sequence[str] | None,
    file_weight: Sequence[str] | None,
    held_out: Sequence[Path] | None,
    development_share: float,
    changed_share: float,
    seed: int,
    align: bool = False,
) -> CorpusOptions:
    return CorpusOptions(
        files=tuple(CorpusFile.parse(text) for text in pair or ()),
        weights=dict(parse_file_weight(text) for text in file_weight or ()),
        held_out=tuple(held_out or ()),
        development_share=development_share,
        changed_share=changed_share,
        seed=seed,
        align=align,
    )


def _refuse_beside_prepared(**is_given: bool) -> None:
    for name, given in is_given.items():
        if given:
            raise ValueError(f"--{name.replace('_', '-')} has no effect on prepared text: give it to `prepare`")


def _optimizer(name: str) -> OptimizerName:
    for known in get_args(OptimizerName):
        if name == known:
            return cast("OptimizerName", known)
    raise ValueError(f"optimizer is {name!r}, must be one of {', '.join(get_args(OptimizerName))}")


def _check_device(name: str) -> None:
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ValueError(f"device is {name!r}, must be cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, and PyTorch finds no CUDA device")


@contextmanager
def _display(console: Console) -> Iterator[Report]:
    """A bar on a terminal, lines in a log file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0)
        last: Progress | None = None

        def report(event: Progress | Validation) -> None:
            nonlocal last
            if isinstance(event, Validation):
                figures = "  ".join(
                    f"{name} {score.bleu:.1f} ({event.losses[name]:.3f})" for name, score in event.scores.items()
                )
                bar.console.print(f"step {event.step:,}: development BLEU (loss) {figures}")
                return
            last = event
            bar.update(task, completed=event.fraction, description=describe(event))
            if not console.is_terminal and event.step % STEPS_PER_LINE == 0:
                console.print(f"{event.fraction:6.1%} {describe(event)}")

        yield report
    if last is not None:
        console.print(f"Trained to step {last.step:,}: {describe_speed(last)} since it was started.")


def describe(event: Progress) -> str:
    """One line of a progress display."""
    alignment = "" if event.alignment_loss is None else f"alignment {event.alignment_loss:.3f} "
    return (
        f"step {event.step:,} epoch {event.epoch} loss {event.loss:.3f} {alignment}rate {event.learning_rate:.2e} "
        f"{describe_speed(event)}"
    )


def describe_speed(event: Progress) -> str:
    """Tokens of both sides, and the share of time in which the device computes."""
    speed = event.speed
    busy = "" if speed.utilisation is None else f", device busy {speed.utilisation:.0%}"
    return f"{speed.tokens_per_second:,.0f} tokens/s{busy}"
